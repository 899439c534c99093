"""What once went wrong in revision 2026-07-28."""

from __future__ import annotations

from tests.integration.test_modern import ModernCase
from tests.support import messages, modern
from tests.support.messages import Json
from tests.support.scripted import Stream
from tests.support.scripted_modern import DISCOVERED
from tests.support.scripted_streamable import Reply


class Regressions(ModernCase):
    async def test_hold_timeout(self) -> None:
        """A held request waits for HOLD_TIMEOUT and no longer, however often the backend is tried."""
        self.backend.die()
        self.start(hold_timeout=0.3, max_reconnect_attempts=0)
        client = self.visitor()
        error = (await client.ask(modern.call("late"), timeout=3))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31001, "no"))

    async def test_discover_given_up(self) -> None:
        """With the budget spent and nothing known, it is 503 with Retry-After."""
        self.backend.die()
        self.start(max_reconnect_attempts=2)
        client = self.visitor()
        answer = await client.complete(await client.request(modern.request("server/discover", 1)))
        self.assertEqual((answer.status, answer.json()["error"]["code"]), (503, -31001))
        self.assertTrue(answer.header(b"retry-after"))

    async def test_health_in_outage(self) -> None:
        """An outage that only requests without session have seen is one on the status page, and stays one."""
        self.start(reconnect_delay=0.3)
        client = self.visitor()
        await client.call()
        self.backend.die()
        await client.request(modern.call("held"))
        view = self.internals()._backend
        await self.until(lambda: view.outages)
        await self.until(lambda: view.is_down, lambda: (view.outages, view.outage, view.is_down), timeout=2)

    async def test_spent(self) -> None:
        """When the budget is spent, whoever comes later is answered at once."""
        self.backend.die()
        self.start(max_reconnect_attempts=3, reconnect_delay=0.5, hold_timeout=60)
        client = self.visitor()
        self.assertEqual((await client.ask(modern.call("first")))["error"]["code"], -31001)
        self.assertEqual((await client.ask(modern.call("second"), timeout=0.4))["error"]["code"], -31001)

    async def test_discover_in_outage(self) -> None:
        """What the backend is shows while it is away."""
        self.start()
        client = self.visitor()
        await client.ask(modern.request("server/discover", 1))
        listening = await client.subscribe("l", toolsListChanged=True)
        self.backend.die()
        await self.until(lambda: self.internals()._backend.outage)
        sent = await client.request(modern.request("server/discover", 2))
        answer = await client.complete(sent)
        self.assertEqual(answer.header(b"content-type"), b"application/json")
        self.assertEqual(answer.json(), messages.result(2, DISCOVERED))
        listening.wire.abort()

    async def test_event_ids(self) -> None:
        """A backend that gives event ids against the rules is not asked for the rest of a stream: there is no GET."""
        self.start()
        client = self.visitor()

        def cut(stream: Stream) -> None:
            assert isinstance(stream, Reply)
            stream.begin(prime=True)
            stream.send(messages.notification("notifications/x"))
            stream.hang_up()

        self.act("tools/call", cut)
        answer: Json = await client.ask(modern.call("c"))
        self.assertEqual(answer["error"]["code"], -31002)
        self.assertEqual(self.backend.gets(), [])
