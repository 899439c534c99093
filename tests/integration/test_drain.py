"""The program is told to stop: what is in flight is answered, nothing new is taken, and clients may come back later."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import deferLater

import mcp_proxy.service
from mcp_proxy.service import LAST_STEP
from tests.integration.service_case import reactor
from tests.integration.streamable_case import ALICE, StreamableCase, result_of, silent
from tests.integration.test_modern import ModernCase
from tests.support import messages, modern

#: More bytes than the sockets on the way take.
LARGE = 24 * 1024 * 1024


class Drain(StreamableCase):
    """The same for both kinds of legacy clients, and where it matters for those without sessions."""

    async def in_flight(self, **settings: Any) -> Any:
        """A client with a call that the backend has, and the program that is about to stop."""
        self.start(**{"drain_timeout": 30.0, **settings})
        client = await self.joined(ALICE)
        self.backend.answers["tools/call"] = silent
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        return client

    def stop(self) -> Deferred[None]:
        """Tell the program to stop."""
        service, self.service = self.internals(), None
        self._stopping = service
        stopped: Deferred[None] = service.stopService()
        return stopped

    def internals(self) -> Any:
        """The program, also after its end."""
        return self.service or self._stopping

    def answer(self) -> None:
        """The backend answers the call."""
        self.backend.reply_to("tools/call").answer(messages.result("slow", {"done": True}))

    async def test_answered(self) -> None:
        """A call in flight is answered, and only then is the program gone, and the backend's session with it."""
        client = await self.in_flight()
        stopped = self.stop()
        await self.refused(client)
        self.assertFalse(stopped.called)
        self.answer()
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        await stopped
        self.assertEqual(self.backend.sessions, {})

    async def refused(self, client: Any) -> None:
        """Nobody is taken any more."""
        with self.assertRaises(ConnectionRefusedError):
            await self.client().connect()

    async def test_too_slow(self) -> None:
        """When the time is up, the client is told that the outcome is not known."""
        client = await self.in_flight(drain_timeout=0.1)
        await self.stop()
        error = (await client.answer_to("slow"))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31002, "maybe"))
        self.assertIn("The proxy was told to stop before the answer came", error["message"])
        self.assertNotIn("lost", error["message"])  # the backend was not

    async def taking(self, **settings: Any) -> tuple[Any, Deferred[None]]:
        """A client with a large answer that it does not read yet, and the program that stops."""
        client = await self.in_flight(max_event_bytes=2 * LARGE, **settings)
        wire = client.stream if self.kind == "sse" else client.sent[-1].wire
        wire.pause()
        stopped = self.stop()
        self.backend.reply_to("tools/call").answer(messages.result("slow", {"x": "y" * LARGE}))
        registry = self.internals()._registry
        await self.until(lambda: not list(registry), "the answer has been passed on")
        return wire, stopped

    async def test_large(self) -> None:
        """A client that takes its time to read a large answer gets all of it."""
        wire, stopped = await self.taking()
        await self.rest()
        self.assertFalse(stopped.called)
        wire.transport.resumeProducing()
        await stopped
        await self.until(lambda: wire.closed, "all has been sent")
        self.assertGreater(len(wire.data), LARGE)
        self.assertTrue(wire.answer.complete)

    async def rest(self) -> None:
        """So long that the program looks several times."""
        for _ in range(10):
            await deferLater(reactor, LAST_STEP)

    async def test_never_taken(self) -> None:
        """One that does not read at all is waited for, but not for ever."""
        self.patch(mcp_proxy.service, "LAST_WORDS", 0.2)
        wire, stopped = await self.taking(drain_timeout=1.0)
        await stopped
        wire.abort()

    async def test_never_taken_hurry(self) -> None:
        """And not for long if there is no time."""
        self.patch(mcp_proxy.service, "LAST_WORDS", 30.0)
        wire, stopped = await self.taking()
        self.internals().hurry()
        await stopped
        wire.abort()

    async def test_hurry(self) -> None:
        """Whoever cannot wait need not."""
        client = await self.in_flight()
        service = self.internals()
        stopped = self.stop()
        service.hurry()
        await stopped
        self.assertEqual((await client.answer_to("slow"))["error"]["code"], -31002)

    async def test_held(self) -> None:
        """What waits for a backend that is away will not be delivered, and its client is told so at once."""
        self.start(drain_timeout=30.0)
        client = await self.joined(ALICE)
        await self.dead()
        await client.begin(messages.call("held"))
        registry = self.internals()._registry
        await self.until(lambda: any(session._courier.held for session in registry))
        await self.stop()
        error = (await client.answer_to("held"))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31001, "no"))

    async def test_read_too_slow(self) -> None:
        """A request that could be repeated will not be, and its client is told the same."""
        self.start(drain_timeout=0.1)
        client = await self.joined(ALICE)
        self.backend.answers["tools/list"] = silent
        await client.begin(messages.request("tools/list", "read"))
        await self.until(lambda: self.backend.deliveries("tools/list"))
        await self.stop()
        error = (await client.answer_to("read"))["error"]
        self.assertEqual(
            (error["code"], error["data"]["delivered"], error["data"]["retrySafe"]), (-31002, "maybe", True)
        )
        self.assertIn("The proxy was told to stop", error["message"])

    async def test_idle(self) -> None:
        """A client that waits for nothing is told when to come back, as far as it knows how, and let go at once."""
        self.start(drain_timeout=30.0)
        client = await self.joined(ALICE)
        if self.kind == "streamable":
            await client.listen()
            await self.until(lambda: client.listening.answer is not None)
        await self.stop()
        wire = client.stream if self.kind == "sse" else client.listening.wire
        await self.until(lambda: wire.answer.complete)
        self.assertIn(b"retry: ", bytes(wire.data).rpartition(b"\n\n\r\n")[0][-60 if self.kind != "sse" else 0 :])


class DrainSSE(Drain):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"

    async def refused(self, client: Any) -> None:
        """The stream of a client that waits stays, but it cannot ask for more."""
        await super().refused(client)
        self.assertFalse(client.stream.answer.complete)


class Listens(ModernCase):
    """Clients of the revision without sessions."""

    async def test_graceful(self) -> None:
        """A listen ends at once with the result that says that all is well; a call in flight is still answered."""
        self.start(drain_timeout=30.0)
        client = self.visitor()
        listen = await client.subscribe("L", toolsListChanged=True)
        self.backend.answers["tools/call"] = silent
        call = await client.request(modern.call("slow"))
        await self.deliveries("tools/call", 1)
        service = self.service
        assert service is not None
        stopped = service.stopService()
        await self.until(lambda: listen.answer.complete)
        self.assertEqual([each.get("method", each.get("result")) for each in listen.messages], [
            modern.ACKNOWLEDGED, {"resultType": "complete", "_meta": {modern.META_SUBSCRIPTION: "L"}}
        ])  # fmt: skip
        self.assertFalse(stopped.called)
        self.backend.reply_to("tools/call").answer(messages.result("slow", {"done": True}))
        await stopped
        self.assertEqual(result_of((await client.complete(call)).json()), {"done": True})
        ends = self.internals()._status._metrics._tally.requests
        self.assertEqual(ends["subscriptions/listen", "own", "yes"], 1, ends)
        self.assertEqual(sum(ends.values()), 2, ends)
        self.service = None

    def registry(self) -> list[Any]:
        """The program has ended in the test."""
        return [] if self.service is None else super().registry()

    def internals(self) -> Any:
        """The program, also after its end."""
        self._kept = self.service or self._kept
        return self._kept


class OnOpenConnections(StreamableCase):
    """Clients that have connections already."""

    async def test_new_request(self) -> None:
        """A request of a session that is not over yet is served; a new session and a single request get 503."""
        self.start(drain_timeout=30.0)
        client = await self.speaking()
        wires = [await client.connect() for _ in range(3)]
        self.backend.answers["tools/call"] = silent
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        service, self.service = self.internals(), None
        stopped = service.stopService()
        own_session = f"mcp-session-id: {client.session.decode()}\r\n"
        head = f"POST /mcp HTTP/1.1\r\nhost: localhost\r\nx-api-key: alice-key\r\n{own_session}"
        kinds = "accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"

        def ask(wire: Any, message: Any, head: str, more: str = "") -> None:
            body = messages.encoded(message)
            wire.send(f"{head}{kinds}{more}content-length: {len(body)}\r\n\r\n".encode() + body)

        anonymous = "POST /mcp HTTP/1.1\r\nhost: localhost\r\n"
        ask(wires[0], messages.request("tools/list", 1), head)
        ask(wires[1], messages.initialize("hello"), anonymous)
        own = modern.request("tools/list", 1)
        ask(wires[2], own, anonymous, "mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/list\r\n")
        for wire in wires:
            await self.until(lambda wire=wire: wire.answer is not None and wire.answer.complete)
        late = wires[0].answer
        self.assertEqual((late.status, late.json()["id"]), (200, 1))
        for wire in wires[1:]:
            self.assertEqual((wire.answer.status, wire.answer.json()["error"]["code"]), (503, -31001))
            self.assertTrue(wire.answer.header(b"retry-after"))
        self.backend.reply_to("tools/call").answer(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        await stopped
