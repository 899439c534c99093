"""Clients that begin with a handshake, and a server of revision 2026-07-28 that knows none."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.e2e.cases import for_pairs
from tests.e2e.kinds import CLIENTS, MODERN, PYTHON_STREAMABLE, TYPESCRIPT2_MODERN
from tests.e2e.processes import until

TOOLS = ["echo", "pid", "append", "count", "ask"]


@for_pairs((*((client, MODERN) for client in CLIENTS), (PYTHON_STREAMABLE, TYPESCRIPT2_MODERN)))
class ModernBackend:
    """With every client of the SDKs' versions 1, and with a server of the other SDK."""

    async def test_everyday(self) -> None:
        """Lists, calls, reads, progress and questions; the server sees nothing of the handshake."""
        client = await self.connected()
        self.assertEqual(await client.do("list"), TOOLS)
        self.assertEqual(await client.call("echo", text="hällo"), "hällo")
        self.assertEqual(await client.do("read", uri="note://open"), f"note://open of {self.backend.pid}")
        await client.do("ping")
        counted = await client.do("call", tool="count", arguments={"to": 1})
        self.assertEqual(counted["text"], "counted to 1")
        self.assertEqual(await client.call("ask", kind="sampling"), "blue")
        self.assertEqual(await client.call("ask", kind="elicitation"), "accept: blue")
        self.assertEqual(self.backend.received("initialize"), [])

    async def test_headers_unread(self) -> None:
        """A call whose arguments belong in headers works without the list having been read, after a restart as well."""
        client = await self.connected()
        for _ in range(2):
            self.assertEqual(await client.call("echo", text="x"), "x")
            await self.backend.restart()

    async def test_progress(self) -> None:
        """Progress arrives while the call is under way."""
        client = await self.connected()
        self.backend.shut_gate("result")
        counting = client.start_call("count", to=3, gate="result")

        async def all_reported() -> bool:
            return len(await client.seen("notifications/progress")) == 3

        await until(all_reported, "all reports have arrived")
        self.backend.open_gate("result")
        self.assertEqual((await counting).get(), {"text": "counted to 3", "progress": [1, 2, 3]})

    async def test_restarts(self) -> None:
        """A crash between two calls is not noticed; subscriptions go on, and changed tools are told."""
        client = await self.connected()
        before = await client.do("list")
        await client.do("subscribe", uri="note://a")
        for count, signal in enumerate(("KILL", "TERM", "KILL")):
            self.backend.offer(*("brand_new", "newer", "newest")[: count + 1])
            await self.backend.restart(signal)
            self.assertEqual(await client.call("pid"), str(self.backend.pid))
            await until(
                partial(self.told_of_tools, client, count + 1), "the client is told that the tools have changed"
            )
        self.assertEqual(await client.do("list"), [*before, "brand_new", "newer", "newest"])
        told = len(await client.seen("notifications/resources/updated"))
        await self.backend.touch("note://a")

        async def told_again() -> bool:
            return len(await client.seen("notifications/resources/updated")) == told + 1

        await until(told_again, "the client is told of the change")

    async def told_of_tools(self, client: Any, times: int) -> bool:
        """Whether the client has been told so often of other tools; that comes on another stream than answers."""
        return len(await client.seen("notifications/tools/list_changed")) == times

    async def test_mutation(self) -> None:
        """A call that the server took to its grave is answered with the truth, and not made again."""
        client = await self.connected()
        self.backend.shut_gate("append")
        appending = client.start_call("append", line="once", gate="append")
        await until(self.backend.ledger, "the mutation has happened")
        await self.backend.stop("KILL")
        data = await self.assertError(appending, -31002)
        self.assertIs(data["retrySafe"], False)
        held = client.start_call("append", line="held")
        self.backend.open_gate("append")
        await self.backend.start()
        self.assertEqual((await held).get()["text"], "appended held")
        self.assertEqual(self.backend.ledger(), ["once", "held"])

    async def test_question(self) -> None:
        """A question of the dead process is cancelled; its call is not made again, and the next one works."""
        client = await self.connected()
        await client.do("hold")
        asking = client.start_call("ask", kind="sampling")
        question = await client.wait_for("sampling/createMessage")
        await self.backend.stop("KILL")
        cancelled = await client.wait_for("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], question["id"])
        await self.backend.start()
        await client.do("release")
        await self.assertError(asking, -31002)
        self.assertEqual(await client.call("ask", kind="sampling"), "blue")

    async def test_cancelled(self) -> None:
        """A cancelled call is cancelled at the server, and no other is."""
        client = await self.connected()
        self.backend.shut_gate("append")
        self.backend.shut_gate("count")
        client.start_call("append", line="unwanted", gate="append")
        counting = client.start_call("count", to=1, gate="count")
        await until(self.backend.ledger, "the call is under way")
        await client.do("cancel", tool="append")
        await until(lambda: "cancelled unwanted" in self.backend.ledger(), "the server has cancelled it")
        self.backend.open_gate("count")
        self.assertEqual((await counting).get()["text"], "counted to 1")
