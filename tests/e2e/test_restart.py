"""The backend restarts between two requests: its clients do not notice."""

from __future__ import annotations

from tests.e2e.cases import for_pairs
from tests.e2e.kinds import PAIRS
from tests.e2e.processes import until


@for_pairs(PAIRS)
class Restart:
    """Between two requests."""

    async def test_signals(self) -> None:
        """A client carries on after a crash (SIGKILL) and after a planned restart (SIGTERM)."""
        client = await self.connected()
        for signal in ("KILL", "TERM", "KILL"):
            self.assertEqual(await client.call("pid"), str(self.backend.pid))
            await self.backend.restart(signal)
            self.assertEqual(await client.call("pid"), str(self.backend.pid))
            self.assertEqual(len(self.backend.received("initialize", self.backend.pid)), 1)

    async def test_everything_after_a_restart(self) -> None:
        """Progress, reads and requests of the server work with the second process as with the first."""
        client = await self.connected()
        await self.backend.restart()
        counted = await client.do("call", tool="count", arguments={"to": 1})
        self.assertEqual(counted["text"], "counted to 1")
        self.assertEqual(await client.do("read", uri="note://open"), f"note://open of {self.backend.pid}")
        self.assertEqual(await client.call("ask", kind="sampling"), "blue")
        self.assertEqual(await client.call("ask", kind="elicitation"), "accept: blue")

    async def test_replay(self) -> None:
        """The new process is taught the session, in order and once, before the client's next request."""
        client = await self.connected()
        await client.do("set_level", level="warning")
        await client.do("subscribe", uri="note://a")
        await client.do("subscribe", uri="note://b")
        (first,) = self.backend.received("initialize")
        await self.backend.restart()
        await client.call("echo", text="next")

        (again,) = self.backend.received("initialize", self.backend.pid)
        self.assertEqual(again["params"], first["params"])
        methods = [message["method"] for message in self.backend.received(pid=self.backend.pid)]
        self.assertEqual(methods[:2], ["initialize", "notifications/initialized"])
        taught = methods[2 : methods.index("tools/call")]
        self.assertEqual(taught, ["logging/setLevel", "resources/subscribe", "resources/subscribe"])
        (level,) = self.backend.received("logging/setLevel", self.backend.pid)
        self.assertEqual(level["params"]["level"], "warning")

    async def test_subscription(self) -> None:
        """A subscription made before the restart is told of changes after it."""
        client = await self.connected()
        await client.do("subscribe", uri="note://a")
        await self.backend.restart()
        # It passes only after the session is restored; whatever there is to tell comes before its answer.
        await client.call("echo", text="next")
        before = len(await client.seen("notifications/resources/updated"))
        self.assertEqual(await self.backend.touch("note://a"), 1)

        async def told() -> bool:
            return len(await client.seen("notifications/resources/updated")) > before

        await until(told, "the client is told of the change")

    async def test_changed_tools(self) -> None:
        """A client that has read the list of tools is told that it has changed, and reads the new one."""
        client = await self.connected()
        before = await client.do("list")
        self.backend.offer("brand_new")
        await self.backend.restart()
        await client.wait_for("notifications/tools/list_changed")
        self.assertEqual(await client.do("list"), [*before, "brand_new"])

    async def test_unchanged_tools(self) -> None:
        """A client whose list of tools is still true is told nothing."""
        client = await self.connected()
        await client.do("list")
        await self.backend.restart()
        # It passes only after the session is restored; whatever there is to tell comes before its answer.
        await client.call("echo", text="next")
        await client.do("ping")
        self.assertEqual(await client.do("seen"), [])
