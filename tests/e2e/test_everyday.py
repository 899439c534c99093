"""What clients do all day while nothing restarts; the proxy is not to be noticed."""

from __future__ import annotations

from tests.e2e.actors import ClientError
from tests.e2e.cases import for_pairs
from tests.e2e.kinds import PAIRS
from tests.e2e.processes import until

FIXED_TOOLS = ["echo", "pid", "append", "count", "ask"]


@for_pairs(PAIRS)
class Everyday:
    """While the backend stays up."""

    async def test_requests(self) -> None:
        """Calls, lists, reads and pings are answered by the backend."""
        client = await self.connected()
        self.assertEqual(await client.do("list"), FIXED_TOOLS)
        self.assertEqual(await client.call("echo", text="hällo"), "hällo")
        self.assertEqual(await client.do("read", uri="note://open"), f"note://open of {self.backend.pid}")
        await client.do("ping")
        (handshake,) = self.backend.received("initialize")
        (ready,) = self.backend.received("notifications/initialized")

    async def test_progress(self) -> None:
        """Progress reports arrive, all of them and in order, before the result."""
        client = await self.connected()
        self.backend.shut_gate("result")
        counting = client.start_call("count", to=20, gate="result")

        async def all_reported() -> bool:
            return len(await client.seen("notifications/progress")) == 20

        # In a burst, the TypeScript SDK handles the result first, and then does not know the reports' token.
        await until(all_reported, "all reports have arrived")
        self.backend.open_gate("result")
        result = (await counting).get()
        self.assertEqual(result, {"text": "counted to 20", "progress": list(range(1, 21))})

    async def test_requests_of_the_server(self) -> None:
        """Sampling and elicitation reach the client, its answers reach the server."""
        client = await self.connected()
        self.assertEqual(await client.call("ask", kind="sampling"), "blue")
        self.assertEqual(await client.call("ask", kind="elicitation"), "accept: blue")

    async def test_subscription(self) -> None:
        """A subscribed client, and no other, is told that a resource has changed."""
        client, other = await self.connected("client"), await self.connected("other")
        await client.do("subscribe", uri="note://a")
        self.assertEqual(await self.backend.touch("note://a"), 1)
        told = await client.wait_for("notifications/resources/updated")
        self.assertEqual(told["params"]["uri"], "note://a")
        await other.do("ping")
        self.assertEqual(await other.seen("notifications/resources/updated"), [])

    async def test_error_of_the_server(self) -> None:
        """An error that the server answers with is passed on as it is."""
        client = await self.connected()
        with self.assertRaises(ClientError) as caught:
            await client.do("read", uri="note://missing")
        # The TypeScript SDK 2.x shows every version of this error as the newest one's.
        is_renamed = self.client_kinds[0].name.startswith("TypeScript2")
        self.assertEqual(caught.exception.code, -32602 if is_renamed else -32002)
        self.assertEqual(caught.exception.data, {"uri": "note://missing"})
