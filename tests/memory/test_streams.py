"""GET /mcp/sse: the stream, who gets which session, and when."""

from __future__ import annotations

from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import ALICE, BOB, HouseCase
from tests.support import messages
from tests.support.http1 import count_comments
from tests.support.memory import Connection

CHALLENGE = HTTPAnswer(
    401,
    ((b"WWW-Authenticate", b'Bearer resource_metadata="https://as.example/x"'), (b"Content-Type", b"text/plain")),
    b"who are you?",
)


class StreamCase(HouseCase):
    def last_id(self, stream: Connection, index: int = -1) -> tuple[bytes, bytes]:
        """The header with which a client comes back after that event."""
        return b"last-event-id", stream.events[index].id.encode()

    def notify(self, *names: str) -> None:
        """The backend sends notifications on its newest link."""
        for name in names:
            self.house.backend.link.tell(messages.notification(f"notifications/{name}"))

    def names(self, stream: Connection) -> list[str]:
        """The notifications that a stream got."""
        return [
            each["method"].removeprefix("notifications/")
            for each in stream.messages
            if each.get("method", "").startswith("notifications/")
        ]


class Head(StreamCase):
    def test_head(self) -> None:
        """A stream is told to nobody to be kept or changed on the way."""
        answer = self.house.stream().answer
        self.assertEqual((answer.status, answer.complete), (200, False))
        self.assertEqual(answer.header(b"content-type"), b"text/event-stream")
        self.assertIn(b"no-cache", answer.header(b"cache-control"))
        self.assertEqual(answer.header(b"x-accel-buffering"), b"no")

    def test_endpoint(self) -> None:
        """The first event is the one endpoint event; its path is ours and holds 128 random bits at least."""
        stream = self.house.initialized()
        self.notify("x")
        types = [event.type for event in stream.events]
        self.assertEqual(types, ["endpoint", "message", "message"])
        self.assertRegex(stream.path, r"^/mcp/messages/[A-Za-z0-9_-]{22,}$")

    def test_ids(self) -> None:
        """Every event has an id, unlike all others, that names the session."""
        stream = self.house.initialized()
        self.notify("a", "b")
        token = stream.path.rpartition("/")[2]
        identities = [event.id for event in stream.events]
        self.assertEqual(identities, [f"{token}.{number}" for number in range(4)])

    def test_two_clients(self) -> None:
        """Two streams are two sessions, even of one credential."""
        one, two = self.house.initialized(ALICE), self.house.initialized(ALICE)
        self.assertNotEqual(one.path, two.path)
        self.notify("x")
        self.assertEqual((self.names(one), self.names(two)), ([], ["x"]))

    def test_accept(self) -> None:
        """A client that cannot read a stream is told so; every way of saying that it can is understood."""
        for accept in (b"application/json", b"text/html", b"image/png, application/json"):
            self.assert_json_error(self.house.ask("GET", "/mcp/sse", ((b"accept", accept),)).answer, 406, -32600)
        self.assertEqual(len(self.house.registry), 0)
        for accept in (
            b"text/event-stream",
            b"*/*",
            b"text/*",
            b"application/json, text/event-stream",
            b"TEXT/EVENT-STREAM;q=1",
        ):
            self.assertEqual(self.house.ask("GET", "/mcp/sse", ((b"accept", accept),)).answer.status, 200, accept)
        self.assertEqual(self.house.ask("GET", "/mcp/sse").answer.status, 200)

    def test_keep_alive(self) -> None:
        """A silent stream gets a comment now and then, which is no event."""
        stream, other = self.house.stream(), self.house.stream()
        for _ in range(3):
            self.house.front.keep_alive()
        self.assertEqual((count_comments(stream.answer.body), count_comments(other.answer.body)), (3, 3))
        self.assertEqual(len(stream.events), 1)

    def test_too_many(self) -> None:
        """At the limit a newcomer is told to come later; those who are there stay."""
        house = self.rebuild(max_sessions=2)
        first = house.stream()
        house.stream()
        answer = house.stream().answer
        self.assert_json_error(answer, 503, -31004)
        self.assertTrue(answer.header(b"retry-after"))
        first.hang_up()
        house.clock.advance(60)
        self.assertEqual(house.stream().answer.status, 200)

    def test_room(self) -> None:
        """A session that nobody is connected to makes room for a newcomer."""
        house = self.rebuild(max_sessions=1)
        first = house.initialized()
        first.hang_up()
        self.assertEqual(house.stream().answer.status, 200)
        self.assertEqual(len(house.registry), 1)

    def test_disconnect_before_initialize(self) -> None:
        """A client that goes before it has said anything leaves nothing behind."""
        stream = self.house.stream()
        stream.hang_up()
        self.house.clock.advance(10)
        self.assertEqual(len(self.house.registry), 0)
        self.assertTrue(self.house.backend.link.closed)


class Adoption(StreamCase):
    def test_missed_events(self) -> None:
        """A client that comes back gets what it has missed, once and in order, and no second handshake."""
        stream = self.house.initialized(ALICE)
        self.notify("a")
        header = self.last_id(stream)
        stream.hang_up()
        self.notify("b", "c")
        again = self.house.stream(ALICE, header)
        self.notify("d")
        self.assertEqual(self.names(again), ["b", "c", "d"])
        self.assertEqual([event.type for event in again.events].count("endpoint"), 1)
        self.assertEqual(again.path, stream.path)
        self.house.post(again.path, messages.call(5), ALICE)
        self.assertIn("result", again.message(5))
        self.assertEqual(len(self.house.backend.made), 1)

    def test_twice(self) -> None:
        """Coming back again with the newest id repeats nothing."""
        stream = self.house.initialized(ALICE)
        self.notify("a", "b")
        again = self.house.stream(ALICE, self.last_id(stream, -2))
        third = self.house.stream(ALICE, self.last_id(again))
        self.assertEqual((self.names(again), self.names(third)), (["b"], []))

    def test_endpoint_id(self) -> None:
        """A client that has only seen the endpoint event comes back to its session and gets everything."""
        stream = self.house.initialized(ALICE)
        self.notify("a")
        again = self.house.stream(ALICE, self.last_id(stream, 0))
        self.assertEqual(again.message("hello")["id"], "hello")
        self.assertEqual(self.names(again), ["a"])

    def test_endpoint_id_of_adoption(self) -> None:
        """If only the endpoint event of the second stream arrived, the third one misses nothing."""
        stream = self.house.initialized(ALICE)
        self.notify("a", "b")
        header = self.last_id(stream, -2)
        stream.hang_up()
        second = self.house.stream(ALICE, header)
        third = self.house.stream(ALICE, self.last_id(second, 0))
        self.assertEqual(self.names(third), ["b"])

    def test_superseded(self) -> None:
        """The stream that the client had before is ended, and what comes goes to the new one only."""
        stream = self.house.initialized(ALICE)
        again = self.house.stream(ALICE, self.last_id(stream))
        self.assertTrue(stream.answer.complete)
        self.notify("x")
        self.assertEqual((self.names(stream), self.names(again)), ([], ["x"]))
        self.assertTrue(self.house.session_of(again).attached)

    def test_late_goodbye(self) -> None:
        """That the old connection closes later does not detach the new stream."""
        stream = self.house.initialized(ALICE)
        again = self.house.stream(ALICE, self.last_id(stream))
        stream.hang_up()
        self.house.clock.advance(100)
        self.notify("x")
        self.assertEqual(self.names(again), ["x"])

    def test_answer_after_return(self) -> None:
        """A request that was in flight when the client left is answered when it is back."""
        self.house.backend.answers["tools/call"] = lambda asked: None
        stream = self.house.initialized(ALICE)
        self.house.post(stream.path, messages.call(9), ALICE)
        stream.hang_up()
        self.house.backend.link.tell(messages.result(9, {"done": True}))
        again = self.house.stream(ALICE, self.last_id(stream))
        self.assertEqual(again.message(9)["result"], {"done": True})

    def test_another_credential(self) -> None:
        """Somebody else's id opens a new session, as if it did not exist, and nothing leaks or changes."""
        stream = self.house.initialized(ALICE)
        self.notify("secret")
        for headers in ((BOB,), (), ((b"authorization", b"Bearer b"),)):
            other = self.house.stream(*headers, self.last_id(stream, 0))
            self.assertNotEqual(other.path, stream.path)
            self.assertEqual(len(other.events), 1)
        self.assertFalse(stream.answer.complete)
        self.house.session_of(stream).link.tell(messages.notification("notifications/later"))  # type: ignore[union-attr]
        self.assertEqual(self.names(stream), ["secret", "later"])

    def test_strange_ids(self) -> None:
        """A Last-Event-ID that is none of ours is as good as none."""
        token = self.house.initialized(ALICE).path.rpartition("/")[2].encode()
        for value in (
            b"",
            b".",
            b"x",
            b"5",
            token,
            token + b".",
            token + b".x",
            token + b".-1",
            token + b".9" * 9,
            b"\xff\xfe",
            token + b"." + b"9" * 30,
            token + b".\xb2",
        ):
            stream = self.house.stream(ALICE, (b"last-event-id", value))
            self.assertEqual(stream.answer.status, 200, value)
            self.assertNotIn(token.decode(), stream.path, value)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_future_id(self) -> None:
        """An id from the future misses nothing that is still to come."""
        stream = self.house.initialized(ALICE)
        token = stream.path.rpartition("/")[2].encode()
        again = self.house.stream(ALICE, (b"last-event-id", token + b".999"))
        self.notify("x")
        third = self.house.stream(ALICE, self.last_id(again, 0))
        self.assertEqual((self.names(again), self.names(third)), (["x"], ["x"]))

    def test_dormant(self) -> None:
        """A session whose link was given up gets a new one, with the handshake replayed, when its client is back."""
        house = self.rebuild(policy=Policy(linger=5.0))
        stream = house.initialized(ALICE)
        stream.hang_up()
        house.clock.advance(5.1)
        self.assertTrue(house.backend.made[0].closed)
        again = house.stream(ALICE, self.last_id(stream))
        house.post(again.path, messages.call(3), ALICE)
        self.assertIn("result", again.message(3))
        methods = [each.get("method") for each in house.backend.made[1].sent]
        self.assertEqual(methods, ["initialize", "notifications/initialized", "tools/call"])

    def test_expired(self) -> None:
        """A session that nobody wanted for too long is gone; its client gets a new one."""
        house = self.rebuild(idle_timeout=100.0)
        stream = house.initialized(ALICE)
        header = self.last_id(stream)
        stream.hang_up()
        house.clock.advance(101)
        house.registry.expire(house.clock.seconds())
        self.assertEqual(len(house.registry), 0)
        self.assert_json_error(house.post(stream.path, messages.call(1), ALICE), 404, -32600)
        self.assertNotEqual(house.stream(ALICE, header).path, stream.path)

    def test_while_down(self) -> None:
        """Coming back while the backend is down costs nothing."""
        stream = self.house.initialized(ALICE)
        self.house.backend.go_down()
        again = self.house.stream(ALICE, self.last_id(stream))
        self.house.post(again.path, messages.call(4), ALICE)
        self.house.backend.come_back()
        self.assertIn("result", again.message(4))


class Borrowed(StreamCase):
    def test_borrowed(self) -> None:
        """A client that comes back without Last-Event-ID and without initialize starts from its last handshake."""
        self.house.initialized(ALICE).hang_up()
        stream = self.house.stream(ALICE)
        self.house.post(stream.path, messages.call(2), ALICE)
        self.assertIn("result", stream.message(2))
        first, *rest = self.house.backend.link.sent
        self.assertEqual(first["params"]["clientInfo"], messages.CLIENT_INFO)
        self.assertEqual([each["method"] for each in rest], ["notifications/initialized", "tools/call"])
        self.assertEqual(len(stream.messages), 1)

    def test_never_another_s(self) -> None:
        """Another credential's handshake is not lent; the client is told what to do and nothing is delivered."""
        self.house.initialized(ALICE)
        for headers in ((BOB,), ()):
            stream = self.house.stream(*headers)
            self.assertEqual(self.house.post(stream.path, messages.call(2), *headers).status, 202)
            error = stream.message(2)["error"]
            self.assertEqual(error["code"], -31003)
            self.assertIn("initialize", error["message"])
            self.assertEqual((error["data"]["delivered"], error["data"]["source"]), ("no", "proxy"))
            self.assertEqual(self.house.backend.link.sent, [])

    def test_initialize_afterwards(self) -> None:
        """After that error the client can initialize on the same stream."""
        stream = self.house.stream(BOB)
        self.house.post(stream.path, messages.call(2), BOB)
        self.house.post(stream.path, messages.initialize(3), BOB)
        self.house.post(stream.path, messages.call(4), BOB)
        self.assertIn("result", stream.message(3))
        self.assertIn("result", stream.message(4))

    def test_ping_first(self) -> None:
        """A ping needs no handshake."""
        stream = self.house.stream(BOB)
        self.house.post(stream.path, messages.request("ping", 1), BOB)
        self.assertEqual(stream.message(1)["result"], {})

    def test_while_down(self) -> None:
        """The handshake is borrowed while the backend is down, too."""
        self.house.initialized(ALICE)
        self.house.backend.go_down()
        stream = self.house.stream(ALICE)
        self.house.post(stream.path, messages.call(2), ALICE)
        self.house.backend.come_back()
        self.assertIn("result", stream.message(2))

    def test_call_behind_initialize(self) -> None:
        """A request that follows initialize before its answer is not taken for one of a client that came back."""
        self.house.backend.answers["initialize"] = lambda asked: None
        stream = self.house.stream(BOB)
        self.house.post(stream.path, messages.initialize(0), BOB)
        self.house.post(stream.path, messages.call(1), BOB)
        self.house.backend.link.tell(messages.result(0, messages.initialize_result()))
        self.assertIn("result", stream.message(0))
        self.assertIn("result", stream.message(1))


class Down(StreamCase):
    def test_connect(self) -> None:
        """With the backend down a client gets its stream at once; initialize is held and answered later."""
        self.house.backend.go_down()
        stream = self.house.stream(ALICE)
        self.assertEqual([event.type for event in stream.events], ["endpoint"])
        self.house.post(stream.path, messages.initialize(0), ALICE)
        self.assertEqual(stream.messages, [])
        self.house.backend.come_back()
        self.assertIn("result", stream.message(0))

    def test_silent_backend(self) -> None:
        """A backend that does not say a word delays the stream by two seconds at most."""
        self.house.backend.opens = False
        stream = self.house.stream(ALICE)
        self.assertFalse(stream.started)
        self.house.clock.advance(2.1)
        self.assertEqual([event.type for event in stream.events], ["endpoint"])

    def test_gone_while_waiting(self) -> None:
        """A client that goes while it waits for the head leaves nothing behind."""
        self.house.backend.opens = False
        stream = self.house.stream(ALICE)
        stream.hang_up()
        self.house.clock.advance(10)
        self.assertEqual(len(self.house.registry), 0)

    def test_ping(self) -> None:
        """A ping is answered by the proxy while the backend is down."""
        stream = self.house.initialized(ALICE)
        self.house.backend.go_down()
        self.house.post(stream.path, messages.request("ping", "p"), ALICE)
        self.assertEqual(stream.message("p")["result"], {})


class Challenged(StreamCase):
    def test_at_connect(self) -> None:
        """A backend that refuses the stream refuses it to the client, in its own words."""
        self.house.backend.challenge = CHALLENGE
        answer = self.house.stream(ALICE).answer
        self.assertEqual((answer.status, answer.body), (401, CHALLENGE.body))
        self.assertEqual(answer.header(b"www-authenticate"), CHALLENGE.headers[0][1])
        self.assertEqual(answer.header(b"content-type"), b"text/plain")
        self.assertEqual(len(self.house.registry), 0)

    def test_later(self) -> None:
        """A request that is refused gets an error on the stream; the next message the refusal itself, once."""
        stream = self.house.initialized(ALICE)
        self.house.backend.refusals["tools/call"] = Refusal(401, "the backend answered 401", CHALLENGE)
        self.house.post(stream.path, messages.call(1), ALICE)
        self.assertEqual(stream.message(1)["error"]["data"]["status"], 401)
        answer = self.house.post(stream.path, messages.call(2), ALICE)
        self.assertEqual((answer.status, answer.body), (401, CHALLENGE.body))
        self.assertEqual(answer.header(b"www-authenticate"), CHALLENGE.headers[0][1])
        self.assertEqual(self.house.post(stream.path, messages.call(2), ALICE).status, 202)
        self.assertIn("result", stream.message(2))

    def test_at_reconnect(self) -> None:
        """A backend that comes back and refuses the old credential: the client's next message is told."""
        stream = self.house.initialized(ALICE)
        self.house.backend.challenge = CHALLENGE
        self.house.backend.link.lose()
        self.assertEqual(self.house.session_of(stream).phase, Phase.PARKED)
        self.assertEqual(self.house.post(stream.path, messages.call(2), ALICE).status, 401)
        self.assertFalse(stream.answer.complete)
        self.house.backend.challenge = None
        self.assertEqual(self.house.post(stream.path, messages.call(3), ALICE).status, 202)
        self.assertIn("result", stream.message(3))
