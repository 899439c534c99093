"""Streams of a Streamable HTTP backend: which message comes where, and what happens when a stream ends or breaks."""

from __future__ import annotations

from typing import Any

from mcp_proxy.backend import listener, remainder, streamable
from tests.integration.service_case import BOB
from tests.integration.streamable_case import ALICE, StreamableCase, result_of, silent
from tests.integration.test_crowd import Flood
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import Asked, BackendConnection, Stream, response
from tests.support.scripted_streamable import Reply, chunk, event
from tests.support.streamable_client import Sent, StreamableClient

PROGRESS = messages.notification("notifications/progress", {"progressToken": "t", "progress": 1})
WITH_TOKEN: Json = {"name": "echo", "arguments": {}, "_meta": {"progressToken": "t"}}
SAMPLING = "sampling/createMessage"


class StreamCase(StreamableCase):
    def replies(self) -> list[Json]:
        """The answers that the backend got to its own requests."""
        return [got.message for got in self.backend.got if not got.method]

    async def pending(self, client: Any, identity: Any = "slow") -> Reply:
        """A call that waits, as the backend has it."""
        self.backend.answers["tools/call"] = lambda stream, asked: (
            None if asked["id"] == identity else messages.result(asked["id"], {"echo": asked["params"]["arguments"]})
        )
        await client.begin(messages.request("tools/call", identity, WITH_TOKEN))
        await self.until(lambda: any(each.message.get("id") == identity for each in self.backend.replies.values()))
        return self.backend.reply_to("tools/call")

    def last_event_ids(self) -> list[str]:
        """What the GETs of the proxy's asked to resume after."""
        return [asked.headers.get("last-event-id", "") for asked in self.backend.gets()]

    async def sampled(self, client: Any, count: int = 1) -> Json:
        """The backend's newest request, as the client sees it."""
        await self.until(lambda: len(client.asked(SAMPLING)) == count, lambda: client.messages)
        found: Json = client.asked(SAMPLING)[-1]
        return found


class Placed(StreamCase):
    """Each message of the backend's arrives in the right place, once."""

    async def test_streamed_everything(self) -> None:
        """A backend that answers everything with streams, in any framing, is understood; initialize included."""
        self.start()

        def on_message(connection: BackendConnection, stream: Stream, message: Json) -> None:
            if "id" in message and "method" in message:
                assert isinstance(stream, Reply)
                stream.begin(prime=True)
            self.backend.accept(connection, stream, message)

        self.backend.on_message = on_message
        client = await self.joined()
        await client.call()
        await self.restart()
        await self.assert_works(client)
        self.assertEqual(self.backend.posts("tools/call"), 2)

    async def test_batches(self) -> None:
        """Arrays from the backend are taken apart: in an event, and as a JSON answer."""
        self.start()
        client = await self.joined()
        reply = await self.pending(client, "event")
        reply.begin()
        reply.send([PROGRESS, messages.result("event", {"n": 1})])
        reply.end()
        self.assertEqual(result_of(await client.answer_to("event")), {"n": 1})
        self.assertEqual(len(client.notifications("notifications/progress")), 1)
        reply = await self.pending(client, "json")
        reply.answer([PROGRESS, messages.result("json", {"n": 2})])
        self.assertEqual(result_of(await client.answer_to("json")), {"n": 2})
        self.assertEqual(len(client.notifications("notifications/progress")), 2)

    async def test_nonsense(self) -> None:
        """What is no message harms neither the stream nor the answer."""
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin()
        for stream in (reply, self.backend.get_stream):
            for data in (b"{", b"hello", b"[]", b"null", b"{}", b'{"jsonrpc":"2.0"}', b"[" * 3000, b"\xff"):
                stream.send_data(data)
            stream.send_raw(chunk(b": comment\r\n\r\nfoo: bar\r\n\r\nevent: other\r\ndata: {}\r\n\r\n"))
        reply.answer(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual(self.backend.posts("initialize"), 1)

    async def test_duplicate_answer(self) -> None:
        """Of two answers to one request the first is passed on."""
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin()
        reply.send(messages.result("slow", {"first": True}))
        reply.answer(messages.result("slow", {"first": False}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"first": True})
        await self.assert_works(client)


class PlacedSSE(Placed):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Resumed(StreamCase):
    """A stream with event ids breaks while the session lives: the rest is asked for."""

    async def dropped(self, how: Any) -> None:
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin(prime=True)
        reply.send(PROGRESS)
        await self.until(lambda: client.notifications("notifications/progress"))
        last = f"{reply.name}_2"
        reply.connection.drop(how)
        await self.until(lambda: last in self.last_event_ids(), "the rest is asked for")
        reply.send(PROGRESS)
        reply.answer(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        self.assertEqual(len(client.notifications("notifications/progress")), 2)
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("initialize")), (1, 1))
        await self.assert_works(client)

    async def test_dropped(self) -> None:
        """After a reset the rest comes by a GET with Last-Event-ID."""
        await self.dropped("rst")

    async def test_dropped_fin(self) -> None:
        """The same after a close without the end of the stream."""
        await self.dropped("fin")

    async def test_answered_meanwhile(self) -> None:
        """An answer that was given while nobody was connected comes with the rest."""
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin(prime=True, retry=20)
        reply.hang_up()
        reply.connection.drop("fin")
        reply.log.append(chunk(event(encoded(messages.result("slow", {"done": True})), f"{reply.name}_2")))
        reply.over = True
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        self.assertEqual(self.backend.posts("tools/call"), 1)

    async def test_polling(self) -> None:
        """A backend that ends the stream after its first event, again and again, is asked again, as it says when."""
        self.patch(remainder, "FIRST_RETRY", 60.0)  # only `retry` can make this quick
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin(prime=True, retry=10)
        reply.hang_up()
        for count in range(2, 4):
            await self.until(lambda count=count: len(self.backend.gets()) == count, self.last_event_ids)
            reply.hang_up()
        await self.until(lambda: len(self.backend.gets()) == 4)
        reply.answer(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        self.assertEqual(set(self.last_event_ids()[1:]), {f"{reply.name}_1"})
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("ping")), (1, 0))

    async def test_no_end(self) -> None:
        """A stream that its backend leaves open after the answer is closed; it costs no place, and no more."""
        self.patch(streamable, "EPILOGUE", 0.05)
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin()
        reply.send(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        await self.until(lambda: reply.connection.closed, "the stream is closed")
        await self.assert_works(client)
        self.assertEqual((self.backend.posts("initialize"), self.backend.posts("ping")), (1, 0))

    async def test_two_streams(self) -> None:
        """Two broken streams are resumed each by its own event."""
        self.start()
        client = await self.joined()
        one = await self.pending(client, "one")
        self.backend.answers["tools/call"] = silent
        await client.begin(messages.call("two"))
        await self.until(lambda: len(self.backend.deliveries("tools/call")) == 2)
        two = self.backend.reply_to("tools/call")
        for reply in (one, two):
            reply.begin(prime=True, retry=10)
        for reply in (one, two):
            reply.hang_up()
        await self.until(lambda: {f"{one.name}_1", f"{two.name}_1"} <= set(self.last_event_ids()))
        two.answer(messages.result("two", {"n": 2}))
        one.answer(messages.result("one", {"n": 1}))
        self.assertEqual(result_of(await client.answer_to("one")), {"n": 1})
        self.assertEqual(result_of(await client.answer_to("two")), {"n": 2})
        self.assertEqual(self.backend.posts("tools/call"), 2)

    async def test_not_resumable(self) -> None:
        """A backend that gives ids but offers no GET: the call is told the truth, the list is asked for again."""
        self.backend.offers_stream = False
        self.patch(self.backend, "offers_resume", lambda last: False)
        self.start()
        client = await self.joined()

        def act(reply: Reply) -> None:
            reply.begin(prime=True, retry=10)
            reply.hang_up()

        self.act("tools/call", act)
        self.assert_unknown(await client.ask(messages.call("call")), "yes")
        self.act("tools/list", act)
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("initialize")), (1, 1))

    async def test_dies_while_away(self) -> None:
        """A backend that is restarted while a rest is waited for has lost it: the call is told so, once."""
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin(prime=True, retry=10)
        reply.hang_up()
        await self.until(lambda: len(self.backend.gets()) == 2)
        await self.restart()
        self.assert_unknown(await client.answer_to("slow"), "yes")
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
        await self.assert_works(client)


class ResumedSSE(Resumed):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Listening(StreamCase):
    """The GET stream."""

    async def test_reopened(self) -> None:
        """A GET stream that ends is opened again after the last event, and nothing is lost or told twice."""
        self.backend.primes_stream = True
        self.start()
        client = await self.joined()
        if isinstance(client, StreamableClient):
            await client.listen()
        for number in range(3):
            stream = self.backend.get_stream
            stream.send(messages.notification("notifications/n", {"n": 2 * number}))
            await self.until(lambda number=number: len(client.notifications("notifications/n")) == 2 * number + 1)
            last = f"{stream.name}_{len(stream.log)}"
            if number % 2:
                stream.connection.drop("rst")
                self.backend.streams.pop(stream.name, None)
            else:
                stream.hang_up()
            stream.log.append(
                chunk(
                    event(
                        encoded(messages.notification("notifications/n", {"n": 2 * number + 1})),
                        f"{stream.name}_{len(stream.log) + 1}",
                    )
                )
            )
            await self.until(lambda last=last: self.last_event_ids()[-1] == last, self.last_event_ids)
            await self.until(lambda: self.backend.streams)
        await self.until(lambda: len(client.notifications("notifications/n")) == 6)
        self.assertEqual([each["params"]["n"] for each in client.notifications("notifications/n")], [*range(6)])
        self.assertEqual(self.backend.posts("initialize"), 1)

    async def test_reopened_without_ids(self) -> None:
        """The same for a stream without event ids."""
        self.start()
        client = await self.joined()
        self.backend.get_stream.hang_up()
        await self.until(lambda: self.backend.streams)
        self.assertEqual(self.last_event_ids(), ["", ""])
        await self.assert_works(client)
        self.assertEqual(self.backend.posts("initialize"), 1)

    async def test_retry(self) -> None:
        """A GET stream is opened again when the backend has said."""
        self.patch(listener, "FIRST_RETRY", 60.0)
        self.start()
        client = await self.joined()
        stream = self.backend.get_stream
        stream.has_ids = True
        stream.send_data(b"", 10)
        stream.hang_up()
        await self.until(lambda: self.backend.streams)
        self.assertEqual(self.last_event_ids(), ["", f"{stream.name}_1"])
        await self.assert_works(client)

    async def test_405(self) -> None:
        """A backend that offers no GET stream is asked for one once in each generation."""
        self.backend.offers_stream = False
        self.start()
        client = await self.joined()
        for generation in (1, 2):
            for _ in range(3):
                await self.assert_works(client)
            self.assertEqual(self.backend.line(generation).count("GET"), 1)
            await self.restart()
        self.assertEqual(self.backend.posts("ping") + len(self.backend.deliveries("tools/call")), 6)

    async def test_409(self) -> None:
        """A stream that is refused because the old one is still there is asked for again."""
        self.backend.on_get = lambda connection, asked: connection.write(response(409))
        self.start()
        client = await self.joined()
        self.backend.on_get = self.backend.open_stream
        await self.until(lambda: self.backend.streams)
        await self.assert_works(client)

    async def test_redirect(self) -> None:
        """A redirected GET is not followed; the session does without a stream."""
        where = ("Location", f"http://127.0.0.1:{self.backend.port}/elsewhere")
        self.backend.on_get = lambda connection, asked: connection.write(response(302, b"", where))
        self.start()
        client = await self.joined()
        await self.assert_works(client)
        self.assertEqual([asked.path for asked in self.backend.asked if "elsewhere" in asked.path], [])

    async def test_silent_get(self) -> None:
        """A backend that does not answer the GET gets its messages all the same."""
        self.patch(streamable, "STREAM_WAIT", 0.05)
        self.backend.on_get = lambda connection, asked: None
        self.start()
        client = await self.joined()
        await self.assert_works(client)


class ListeningSSE(Listening):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Asking(StreamCase):
    """The backend asks the client."""

    async def test_on_post(self) -> None:
        """A request on a POST's stream is answered under the backend's own id, then the call goes on."""
        self.start()
        client = await self.joined()
        for count, identity in enumerate((0, "0", 2**60), 1):
            reply = await self.pending(client, f"call-of-{count}")
            reply.begin()
            reply.send(messages.request(SAMPLING, identity, {"n": count}))
            asked = await self.sampled(client, count)
            self.assertEqual(asked["params"], {"n": count})
            await client.begin(messages.result(asked["id"], {"n": count}))
            await self.until(lambda count=count: len(self.replies()) == count)
            self.assertEqual(self.replies()[-1], messages.result(identity, {"n": count}))
            reply.answer(messages.result(f"call-of-{count}", {}))
            await client.answer_to(f"call-of-{count}")

    async def test_on_get(self) -> None:
        """So is one on the GET stream."""
        self.start()
        client = await self.joined()
        if isinstance(client, StreamableClient):
            await client.listen()
        self.backend.get_stream.send(messages.request(SAMPLING, 7))
        asked = await self.sampled(client)
        await client.begin(messages.result(asked["id"], {"text": "x"}))
        await self.until(self.replies)
        self.assertEqual(self.replies(), [messages.result(7, {"text": "x"})])

    async def test_restart(self) -> None:
        """What a dead backend has asked is cancelled, id 0 of the next is another, and a late answer is dropped."""
        self.start()
        client = await self.joined()
        if isinstance(client, StreamableClient):
            await client.listen()
        self.backend.get_stream.send(messages.request(SAMPLING, 0, {"of": "old"}))
        old = await self.sampled(client)
        await self.restart()
        await client.call()
        (cancelled,) = client.notifications("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], old["id"])
        self.backend.get_stream.send(messages.request(SAMPLING, 0, {"of": "new"}))
        new = await self.sampled(client, 2)
        self.assertNotEqual(new["id"], old["id"])
        await client.begin(messages.result(old["id"], {"of": "old"}))
        await client.begin(messages.result(new["id"], {"of": "new"}))
        await self.until(self.replies)
        await client.call()
        self.assertEqual(self.replies(), [messages.result(0, {"of": "new"})])

    async def test_cancelled_by_backend(self) -> None:
        """A backend that cancels its request is understood by the client."""
        self.start()
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin()
        reply.send(messages.request(SAMPLING, 7))
        asked = await self.sampled(client)
        reply.send(messages.notification("notifications/cancelled", {"requestId": 7, "reason": "x"}))
        await self.until(lambda: client.notifications("notifications/cancelled"))
        (cancelled,) = client.notifications("notifications/cancelled")
        self.assertEqual(cancelled["params"], {"requestId": asked["id"], "reason": "x"})
        reply.answer(messages.result("slow", {}))
        await client.answer_to("slow")


class AskingSSE(Asking):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Replies(StreamCase):
    """What only a client can see that has a reply of its own for each POST."""

    async def test_streamed_answer(self) -> None:
        """Progress and an answer on a POST's stream arrive on the reply to that very POST."""
        self.start()
        client = await self.speaking()
        one, two = await self.pending(client, "one"), None
        self.backend.answers["tools/call"] = silent
        await client.begin(messages.request("tools/call", "two", WITH_TOKEN))
        await self.until(lambda: len(self.backend.deliveries("tools/call")) == 2)
        two = self.backend.reply_to("tools/call")
        for reply in (one, two):
            reply.begin()
            reply.send(messages.notification("notifications/progress", {"progressToken": "t", "of": reply.name[-1]}))
        two.answer(messages.result("two", {"n": 2}))
        one.answer(messages.result("one", {"n": 1}))
        for identity in ("one", "two"):
            await client.answer_to(identity)
            (sent,) = [each for each in client.sent if any(one.get("id") == identity for one in each.messages)]
            self.assertEqual([each.get("method") for each in sent.messages], ["notifications/progress", None])
            await self.until(lambda sent=sent: sent.answer.complete)

    async def test_client_batch(self) -> None:
        """An array of a client's of 2025-03-26 reaches the backend as single messages, with three answers."""
        self.start()
        client = await self.speaking(version="2025-03-26")
        batch = [messages.call("a"), messages.request("tools/list", "b"), messages.request("ping", "c")]
        answer = await client.post(encoded(batch))
        self.assertEqual(sorted(each["id"] for each in answer.json()), ["a", "b", "c"])
        self.assertNotIn("array", self.backend.line())

    async def test_notification_once(self) -> None:
        """A notification on the GET stream arrives once, also for a client that listens only later."""
        self.start()
        client = await self.speaking()
        self.backend.get_stream.send(messages.notification("notifications/early"))
        await client.listen()
        self.backend.get_stream.send(messages.notification("notifications/late"))
        await self.until(lambda: client.notifications("notifications/late"))
        heard = [each["method"] for each in client.messages[1:]]
        self.assertEqual(heard, ["notifications/early", "notifications/late"])

    async def test_client_stream_stays(self) -> None:
        """The client's own GET stream stays open over a restart, with comments, and goes on."""
        self.start(keepalive_interval=0.02)
        client = await self.speaking()
        sent = await client.listen()
        await self.dead()
        before = sent.wire.data.count(b":")
        await self.until(lambda: sent.wire.data.count(b":") >= before + 3)
        await self.backend.revive()
        await self.until(lambda: self.backend.streams)
        self.backend.get_stream.send(messages.notification("notifications/after"))
        await self.until(lambda: client.notifications("notifications/after"))
        self.assertIn("notifications/after", [each.get("method") for each in sent.messages])
        self.assertFalse(sent.wire.closed)

    async def test_first_of_all(self) -> None:
        """Nothing is sent after `initialized` before the GET stream is there."""
        held: list[tuple[BackendConnection, Asked]] = []

        def on_get(connection: BackendConnection, asked: Asked) -> None:
            self.backend.on_get = self.backend.open_stream
            held.append((connection, asked))

        self.backend.on_get = on_get
        self.patch(streamable, "STREAM_WAIT", 60.0)
        self.start(connect_timeout=5.0)
        client = self.speaker(ALICE)
        await client.initialize()
        await client.begin(messages.call("early"))
        await self.until(lambda: held)
        await self.assert_works(await self.speaking(BOB))
        self.assertEqual([got.headers["x-api-key"] for got in self.backend.deliveries("tools/call")], ["bob-key"])
        self.backend.open_stream(*held[0])
        self.assertIn("result", await client.answer_to("early"))

    async def test_ping(self) -> None:
        """A backend that pings a client without any stream is answered in its place."""
        self.start()
        await self.speaking()
        self.backend.get_stream.send(messages.request("ping", 5))
        await self.until(self.replies)
        self.assertEqual(self.replies(), [messages.result(5, {})])

    async def test_dies_with_call(self) -> None:
        """A question on a POST's stream is cancelled there before the call is told the truth."""
        self.start()
        client = await self.speaking()
        reply = await self.pending(client)
        reply.begin()
        reply.send(messages.request(SAMPLING, 0))
        asked = await self.sampled(client)
        await self.restart()
        self.assert_unknown(await client.answer_to("slow"), "yes")
        (sent,) = [each for each in client.sent if asked in each.messages]
        self.assertEqual(
            [each.get("method", each.get("id")) for each in sent.messages],
            [SAMPLING, "notifications/cancelled", "slow"],
        )
        await client.begin(messages.result(asked["id"], {}))
        await self.assert_works(client)
        self.assertEqual(self.replies(), [])


class TooLarge(StreamCase):
    """More than MAX_EVENT_BYTES."""

    async def too_large(self, begin: Any) -> None:
        self.start(max_event_bytes=4000)
        client = await self.joined()
        reply = await self.pending(client, "big")
        begin(reply)
        reply.answer(messages.result("big", {"x": "y" * 100_000}))
        self.assert_unknown(await client.answer_to("big"), "yes")
        await self.assert_works(client)
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("initialize")), (2, 1))

    async def test_body(self) -> None:
        """A JSON answer over the bound is told to who waits for it."""
        await self.too_large(lambda reply: None)

    async def test_event(self) -> None:
        """So is an event."""
        await self.too_large(lambda reply: reply.begin())

    async def test_notification(self) -> None:
        """A notification over the bound is dropped, and its stream goes on."""
        self.start(max_event_bytes=4000)
        client = await self.joined()
        reply = await self.pending(client)
        reply.begin()
        reply.send(messages.notification("notifications/big", {"x": "y" * 100_000}))
        reply.send(messages.notification("notifications/small"))
        reply.answer(messages.result("slow", {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        self.assertEqual(len(client.notifications("notifications/small")), 1)
        self.assertEqual(client.notifications("notifications/big"), [])


class Pressure(StreamCase):
    async def flooded(self, client: StreamableClient) -> tuple[Sent, Flood]:
        """A reply that the client does not read, and the backend that has noticed."""
        reply = await self.pending(client)
        sent = client.sent[-1]
        reply.begin()
        await self.until(lambda: sent.answer is not None)
        sent.wire.pause()
        flood = Flood(reply, 256 * 1024 * 1024)
        flood.data = chunk(event(encoded(messages.notification("notifications/n", {"x": "y" * 65_536}))))
        await self.stuck(flood)
        return sent, flood

    async def stuck(self, flood: Flood) -> None:
        """No buffer on the way takes more: nothing has moved at many looks in a row, and the proxy knows why."""
        (session,) = self.internals()._registry
        seen: list[int] = []

        def is_stuck() -> bool:
            if not (flood.paused and session.link._pausers):
                seen.clear()
            seen.append(flood.sent)
            return seen[-30:] == [flood.sent] * 30

        await self.until(is_stuck, timeout=10.0)

    async def test_one_reply(self) -> None:
        """A client that does not read one reply pauses that POST's connection, and nothing else."""
        self.start(stall_timeout=10.0)
        client = await self.speaking()
        await client.listen()
        _, flood = await self.flooded(client)
        self.assertLess(flood.sent, 64 * 1024 * 1024)
        for number in range(3):
            await self.assert_works(client)
            self.backend.get_stream.send(messages.notification("notifications/free", {"n": number}))
        await self.until(lambda: len(_free(client)) == 3)


def _free(client: StreamableClient) -> list[Json]:
    """What came on the GET stream."""
    return [] if client.listening is None else client.listening.messages
