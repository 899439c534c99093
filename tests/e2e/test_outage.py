"""The backend is away for long: before its first start, or for good."""

from __future__ import annotations

from twisted.internet import reactor

from tests.e2e.actors import Client
from tests.e2e.cases import for_pairs
from tests.e2e.kinds import INSTALLED_PROXY, PAIRS
from tests.e2e.processes import until


@for_pairs(PAIRS)
class LateStart:
    """The backend is not there yet."""

    backend_is_up = False
    proxy_program = INSTALLED_PROXY

    async def test_initialize_is_held(self) -> None:
        """A client that connects before the backend runs is connected as soon as it does."""
        relay = self.relay()
        client = self.client()
        connecting = client.start_connect(relay.entrance)
        await until(lambda: b'"initialize"' in relay.sent, "the proxy has got initialize")
        await self.backend.start()
        self.assertIn("tools", (await connecting).get())
        self.assertEqual(await client.call("pid"), str(self.backend.pid))
        self.assertEqual(len(self.backend.received("initialize")), 1)


@for_pairs(PAIRS)
class Outage:
    """The backend does not come back in time."""

    #: A budget of 1 second.
    settings = {"MAX_RECONNECT_ATTEMPTS": "5"}

    async def test_gone_for_good(self) -> None:
        """Requests are answered within the budget; if the backend comes back, the session works again."""
        client = await self.connected()
        await self.backend.stop("KILL")
        started = reactor.seconds()
        data = await self.assertError(client.start_call("append", line="never"), -31001)
        self.assertLess(reactor.seconds() - started, 5)
        self.assertEqual((data["delivered"], data["retrySafe"]), ("no", True))
        self.assertEqual(data["method"], "tools/call")

        # Nobody waits a second time for what has proved to be in vain.
        await self.assertError(client.start("list"), -31001)
        self.assertEqual((await self.proxy.health())["status"], "degraded")

        await self.backend.start()
        pid = await until(lambda: self.pid_of(client), "the client reaches the new process")
        self.assertEqual(pid, str(self.backend.pid))
        self.assertEqual(len(self.backend.received("initialize", self.backend.pid)), 1)
        self.assertEqual(self.backend.ledger(), [])

    async def pid_of(self, client: Client) -> str | None:
        """Who answers this client, None as long as the answer is that nobody is there."""
        reply = await client.start_call("pid")
        if reply.error is not None and reply.error.code == -31001:
            return None
        return reply.get()["text"]
