"""Clients of revision 2026-07-28 and servers of SDKs that know only older ones: neither notices the other's age."""

from __future__ import annotations

from functools import partial

from tests.e2e.cases import for_pairs
from tests.e2e.kinds import BACKENDS, EVERYTHING_SSE, EVERYTHING_STREAMABLE, PYTHON2_MODERN
from tests.e2e.processes import until


@for_pairs((PYTHON2_MODERN, backend) for backend in (*BACKENDS, EVERYTHING_SSE, EVERYTHING_STREAMABLE))
class ModernEcho:
    """What every server has."""

    async def test_restart(self) -> None:
        """The client finds its revision, and carries on after a crash of the server."""
        client = await self.connected()
        self.assertEqual(await client.do("version"), "2026-07-28")
        for text in ("one", "two"):
            call = self.backend_kind.echo(text)
            self.assertEqual(await client.call(call.tool, **call.arguments), call.text)
            await self.backend.restart("KILL")


@for_pairs((PYTHON2_MODERN, backend) for backend in BACKENDS)
class Modern:
    """What ours have."""

    async def test_everything(self) -> None:
        """Lists, progress, reads, errors and questions of the server work, also after a restart."""
        client = await self.connected()
        for rounds in (1, 2):
            self.assertIn("ask", await client.do("list"))
            self.backend.shut_gate("result")
            counting = client.start_call("count", to=2, gate="result")
            # They come on another stream than the result, which could be there first.
            await until(partial(_has, client, 2 * rounds, "reported"), "both reports have arrived")
            self.backend.open_gate("result")
            self.assertEqual((await counting).get(), {"text": "counted to 2", "progress": [1, 2]})
            self.assertEqual(await client.do("read", uri="note://open"), f"note://open of {self.backend.pid}")
            self.assertEqual(await client.call("ask", kind="sampling"), "blue")
            self.assertEqual(await client.call("ask", kind="elicitation"), "accept: blue")
            missing = await client.start("read", uri="note://missing")
            self.assertEqual(getattr(missing.error, "code", None), -32602)
            await self.backend.restart("KILL")

    async def test_in_flight(self) -> None:
        """A call that is lost with the server is uncertain and not made again; what comes meanwhile is held."""
        client = await self.connected()
        self.backend.shut_gate("append")
        lost = client.start("call", tool="append", arguments={"line": "once", "gate": "append"})
        await until(lambda: self.backend.ledger() == ["once"], "the call is under way")
        await self.backend.stop("KILL")
        await self.assertError(lost, -31002)
        held = client.start("call", tool="pid", arguments={})
        await self.backend.start()
        self.assertEqual((await held).get()["text"], str(self.backend.pid))
        self.assertEqual(self.backend.ledger(), ["once"])

    async def test_listening(self) -> None:
        """Who listens for a resource is told of its changes, before a restart and after it."""
        client = await self.connected()
        await client.do("listen", uris=["note://a"])
        self.assertEqual(await self.backend.touch("note://a"), 1)
        await until(lambda: _has(client, 1), "the change is told")
        await self.backend.restart("KILL")
        await client.call("echo", text="next")
        before = len(await client.do("events"))
        self.assertEqual(await self.backend.touch("note://a"), 1)
        await until(lambda: _has(client, before + 1), "the next change is told")


async def _has(client: object, count: int, of: str = "events") -> bool:
    return len(await client.do(of)) >= count  # type: ignore[attr-defined]
