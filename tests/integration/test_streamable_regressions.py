"""What once went wrong over Streamable HTTP: order, lost sessions, errors without an id, tokens, pressure."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

from tests.integration import test_streamable_auto as auto
from tests.integration import test_streamable_fate as fate
from tests.integration import test_streamable_streams as streams
from tests.integration.service_case import reactor
from tests.integration.streamable_case import ALICE, StreamableCase, result_of, silent
from tests.integration.test_crowd import Flood
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import Asked, BackendConnection, Stream, response
from tests.support.scripted_streamable import STALE, Reply, chunk, event, refusal


class Order(StreamableCase):
    async def test_held_notifications(self) -> None:
        """What is held is delivered in the order in which it came."""
        self.start()
        client = await self.joined()
        await self.dead()
        for number in range(12):
            await client.begin(messages.notification("notifications/x", {"n": number}))
        await client.begin(messages.call("last"))
        await self.backend.revive()
        await client.answer_to("last")
        await self.until(lambda: len(self.backend.deliveries("notifications/x")) == 12)
        numbers = [got.message["params"]["n"] for got in self.backend.deliveries("notifications/x")]
        self.assertEqual(numbers, [*range(12)])
        self.assertEqual(self.backend.methods()[-1], "tools/call")

    async def test_cancellation(self) -> None:
        """A cancellation does not overtake the call that it is about, however slow the call's connection is."""
        self.start()
        client = await self.joined()
        self.backend.answers["tools/call"] = silent
        for number in range(30):
            await client.begin(messages.call(number))
            await client.begin(messages.notification("notifications/cancelled", {"requestId": number}))
        await self.until(lambda: len(self.backend.deliveries("notifications/cancelled")) == 30)
        for number in range(30):
            order = [
                got.method
                for got in self.backend.got
                if number in (got.message.get("id"), got.message.get("params", {}).get("requestId"))
                and got.method in ("tools/call", "notifications/cancelled")
            ]
            self.assertEqual(order, ["tools/call", "notifications/cancelled"])


class FiveStale(StreamableCase):
    async def test_five_stale(self) -> None:
        """Five calls that are answered 404 at the same time cause one handshake, and each is delivered once."""
        self.backend.offers_stream = False
        self.start()
        client = await self.joined()
        self.backend.forget()
        waiting: list[BackendConnection] = []

        def on_stale(connection: BackendConnection, asked: Asked) -> None:
            waiting.append(connection)
            if len(waiting) == 5:
                for each in waiting:
                    each.write(STALE["python"])

        self.backend.on_stale = on_stale
        for number in range(5):
            await client.begin(messages.call(number, {"n": number}))
        for number in range(5):
            self.assertEqual(result_of(await client.answer_to(number)), {"echo": {"n": number}})
        self.assertEqual(self.backend.posts("initialize"), 2)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 5)


class Examined(StreamableCase):
    async def test_call_refused_after_ping(self) -> None:
        """A call that is refused a moment after the ping that tells of the loss was not delivered, so it goes again."""
        self.start()
        client = await self.joined()

        def on_stale(connection: BackendConnection, asked: Asked) -> None:
            delay = 0.05 if b"tools/call" in asked.body else 0.0
            reactor.callLater(delay, connection.write, STALE["python"])

        self.backend.on_stale = on_stale
        self.backend.forget()
        await client.begin(messages.call("x", {"n": 1}))
        await self.until(lambda: self.backend.posts("tools/call") == 1)
        self.backend.get_stream.hang_up()
        self.assertEqual(result_of(await client.answer_to("x")), {"echo": {"n": 1}})
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)


class FiveStaleSSE(FiveStale):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class WithoutId(StreamableCase):
    refuse: Any = fate.Statuses.refuse

    async def test_error_without_id(self) -> None:
        """A JSON-RPC error under 200 that names no request is the answer to the one that was posted."""
        self.start()
        client = await self.joined()
        self.refuse(refusal(200, -32099, "because"), "tools/call")
        error = (await client.ask(messages.call("x")))["error"]
        self.assertEqual((error["code"], error["message"]), (-32099, "because"))
        await self.assert_works(client)


class WithoutIdSSE(WithoutId):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Tokens(StreamableCase):
    """A client that has renewed its token."""

    TOKENS = tuple(
        b"Bearer e30." + urlsafe_b64encode(encoded({"iss": "i", "sub": "s", "n": number})).rstrip(b"=") + b".x"
        for number in range(2)
    )

    async def renewed(self) -> Any:
        """A client that has begun with the old token and has used the new one."""
        client = await self.speaking((b"authorization", self.TOKENS[0]))
        client.headers = ((b"authorization", self.TOKENS[1]),)
        await client.call()
        return client

    def refuse_old(self) -> None:
        """The old token is worth nothing any more."""

        def serve(connection: BackendConnection, asked: Asked) -> None:
            if asked.headers.get("authorization") == self.TOKENS[0].decode() and asked.path == "/mcp":
                connection.write(response(401))
            else:
                type(self.backend).serve(self.backend, connection, asked)

        self.patch(self.backend, "serve", serve)

    async def test_replay(self) -> None:
        """A session is restored with the newest token."""
        self.start()
        client = await self.renewed()
        await self.dead()
        await self.backend.revive()
        await client.call()
        tokens = {asked.headers["authorization"] for asked in self.backend.requests(2)}
        self.assertEqual(tokens, {self.TOKENS[1].decode()})

    async def test_stream(self) -> None:
        """A GET stream that ended is opened again with the newest token."""
        self.start()
        client = await self.renewed()
        self.refuse_old()
        self.backend.get_stream.hang_up()
        await self.until(lambda: self.backend.streams, "the stream is opened again")
        self.assertEqual(self.backend.gets()[-1].headers["authorization"], self.TOKENS[1].decode())
        await self.assert_works(client)

    async def test_delete(self) -> None:
        """A session is ended with the newest token."""
        self.start()
        client = await self.renewed()
        self.refuse_old()
        await client.delete()
        await self.until(lambda: not self.backend.sessions, "the session is ended")

    async def test_rest(self) -> None:
        """The rest of an answer is asked for with the newest token."""
        self.start()
        client = await self.speaking((b"authorization", self.TOKENS[0]))
        self.backend.answers["tools/call"] = lambda stream, asked: (
            _begin_polling(stream) if asked["id"] == "slow" else messages.result(asked["id"], {})
        )
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        reply = self.backend.reply_to("tools/call")
        client.headers = ((b"authorization", self.TOKENS[1]),)
        await client.call()
        self.refuse_old()
        reply.answer(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})


def _begin_polling(stream: Stream) -> Json | None:
    """Begin a stream and hang up, so that the rest must be asked for."""
    assert isinstance(stream, Reply)
    stream.begin(prime=True, retry=10)
    stream.hang_up()
    return None


class TooLarge(StreamableCase):
    pending = streams.StreamCase.pending
    too_large: Any = streams.TooLarge.too_large

    async def test_event_with_ids(self) -> None:
        """An event over the bound is not asked for again and again."""
        await self.too_large(lambda reply: reply.begin(prime=True, retry=1))
        before = len(self.backend.gets())
        (client,) = self.clients
        for _ in range(20):
            await self.assert_works(client)
        self.assertEqual(len(self.backend.gets()), before)


class Pressure(StreamableCase):
    pending = streams.StreamCase.pending
    stuck: Any = streams.Pressure.stuck

    async def test_restart_meanwhile(self) -> None:
        """A client that does not read its GET stream is restored all the same, and its calls are answered."""
        self.start(stall_timeout=10.0, connect_timeout=0.5)
        client = await self.speaking()
        sent = await client.listen()
        sent.wire.pause()
        flood = Flood(self.backend.get_stream, 256 * 1024 * 1024)
        flood.data = chunk(event(encoded(messages.notification("notifications/n", {"x": "y" * 65_536}))))
        await self.stuck(flood)
        client.sent.remove(sent)  # what it has read is too much to be parsed again and again

        answer = self.backend.answers["initialize"]

        def slowly(stream: Stream, asked: Json) -> None:
            assert isinstance(stream, Reply)
            stream.begin()
            reactor.callLater(0.05, stream.answer, answer(stream, asked))

        self.backend.answers["initialize"] = slowly
        await self.backend.restart()
        self.assertIn("result", await client.call())


class Neither(StreamableCase):
    transport = "auto"
    kind = "sse"

    def newcomer(self) -> Any:
        return self.client(ALICE)

    async def test_neither(self) -> None:
        """A backend that speaks neither is called that."""
        self.backend.path = "/elsewhere"
        self.start(max_reconnect_attempts=2, hold_timeout=1.0)
        client = self.newcomer()
        await client.open()
        error = (await client.initialize())["error"]
        self.assertEqual(error["code"], -31001)
        self.assertIn("neither Streamable HTTP (HTTP 404) nor HTTP+SSE", error["message"])
        self.backend.path = "/mcp"
        await self.assert_works(await self.joined())


class Changed(StreamableCase):
    transport = "auto"

    async def test_to_405(self) -> None:
        """A backend that comes back as an HTTP+SSE one and answers 405 at the old endpoint keeps its clients."""
        self.backend.offers_stream = False  # so that nothing tells of the restart
        self.start()
        client = await self.joined()
        old = auto.OldBackend(reactor)
        old.refusal = response(405, b"Method Not Allowed")
        await self.become(old)
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})


class ChangedSSE(Changed):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"
