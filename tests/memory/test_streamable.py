"""The Streamable HTTP front: POST, GET and DELETE on ``/mcp``, without a network."""

from __future__ import annotations

from typing import Any

from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.replies import StreamableOutlet
from mcp_proxy.wire import jsonrpc
from tests.memory.house_case import ALICE, BOB, HouseCase
from tests.support import messages
from tests.support.http1 import Answer, count_comments
from tests.support.memory import JSON_HEAD, Connection, FakeLink
from tests.support.messages import Json, encoded

LISTEN = ((b"accept", b"text/event-stream"),)
CHALLENGE = HTTPAnswer(401, ((b"WWW-Authenticate", b'Bearer scope="x"'), (b"content-type", b"text/plain")), b"who?")


def silent(asked: Json) -> None:
    """Answer nothing for now."""


class StreamableCase(HouseCase):
    """A house with clients that have a session."""

    def begin(self, *headers: tuple[bytes, bytes], version: str = "2025-06-18") -> tuple[bytes, bytes]:
        """Begin a session; return the header that tells it."""
        self.house.backend.answers["initialize"] = lambda asked: messages.result(
            asked["id"], {**messages.initialize_result(), "protocolVersion": version}
        )
        answer = self.post(messages.initialize("hello"), *headers).answer
        self.assertEqual(answer.status, 200, answer.body)
        session = (b"mcp-session-id", answer.header(b"mcp-session-id"))
        self.post(messages.notification("notifications/initialized"), session, *headers)
        return session

    def post(self, message: Any, *headers: tuple[bytes, bytes], path: str = "/mcp") -> Connection:
        """Post a message, or bytes."""
        body = message if isinstance(message, bytes) else encoded(message)
        return self.house.ask("POST", path, (*JSON_HEAD, *headers), body)

    def listen(self, *headers: tuple[bytes, bytes], path: str = "/mcp") -> Connection:
        """Open the GET stream."""
        return self.house.ask("GET", path, (*LISTEN, *headers))

    @property
    def link(self) -> FakeLink:
        """The newest link."""
        return self.house.backend.made[-1]

    def tell_about(self, message: Json, number: int = -1) -> None:
        """The backend sends a message on the stream of one of its requests."""
        about = self.link.outgoing[number].exchange
        self.link.owner.link_received(self.link, jsonrpc.parse(encoded(message)), about)  # type: ignore[arg-type]

    def restart(self) -> None:
        """The backend is lost, and comes back at once."""
        self.link.lose()

    def assert_answer(self, answer: Answer, identity: Any) -> Json:
        """The answer is one JSON response to this request; return it."""
        self.assertTrue(answer.complete)
        self.assertEqual((answer.status, answer.header(b"content-type")), (200, b"application/json"), answer.body)
        value: Json = answer.json()
        self.assertEqual((value["id"], type(value["id"])), (identity, type(identity)))
        return value


class Sessions(StreamableCase):
    def test_initialize(self) -> None:
        """The answer to initialize tells the session's id, which is long and ours; no other answer does."""
        session = self.begin(ALICE)
        self.assertGreaterEqual(len(session[1]), 40)
        for message in (messages.call(1), messages.notification("notifications/x")):
            self.assertEqual(self.post(message, session, ALICE).answer.header(b"mcp-session-id"), b"")

    def test_unknown_and_missing(self) -> None:
        """An unknown id is 404, none at all 400, and so for GET and DELETE."""
        made_up = (b"mcp-session-id", b"x" * 43)
        for method in ("POST", "GET", "DELETE"):
            body = encoded(messages.call(1)) if method == "POST" else None
            head = JSON_HEAD if method == "POST" else LISTEN
            self.assert_json_error(self.house.ask(method, "/mcp", (*head, made_up), body).answer, 404, -32600)
            self.assert_json_error(self.house.ask(method, "/mcp", head, body).answer, 400, -32600)

    def test_old_id_on_initialize(self) -> None:
        """An initialize begins a new session, whatever id comes with it."""
        session = self.begin()
        again = self.post(messages.initialize("hello"), session).answer
        self.assertNotIn(again.header(b"mcp-session-id"), (b"", session[1]))
        self.assertEqual(len(self.house.registry), 2)

    def test_foreign(self) -> None:
        """Another credential learns no more than that there is no such session."""
        session = self.begin(ALICE)
        for headers in ((session, BOB), (session,)):
            self.assertEqual(self.post(messages.call(1), *headers).answer.status, 404)
            self.assertEqual(self.listen(*headers).answer.status, 404)

    def test_of_the_other_transport(self) -> None:
        """A session of one transport cannot be used by the other."""
        stream = self.house.initialized()
        token = stream.path.rpartition("/")[2].encode()
        self.assertEqual(self.post(messages.call(1), (b"mcp-session-id", token)).answer.status, 404)
        session = self.begin()
        self.assertEqual(self.house.post("/mcp/messages/" + session[1].decode(), messages.call(1)).status, 404)

    def test_delete(self) -> None:
        """DELETE ends the session here and at the backend; afterwards its id is unknown."""
        session = self.begin()
        link = self.link
        self.assertEqual(self.house.ask("DELETE", "/mcp", (session,)).answer.status, 200)
        self.assertTrue(link.closed)
        self.assertEqual(self.house.ask("DELETE", "/mcp", (session,)).answer.status, 404)
        self.assertEqual(len(self.house.registry), 0)

    def test_keeps_nothing(self) -> None:
        """An ended session keeps nothing of what its client was sent."""
        session = self.begin(version="2025-11-25")
        self.house.backend.answers["tools/call"] = silent
        self.post(messages.call(1), session)
        self.tell_about(messages.notification("notifications/x", {"text": "x" * 1000}))
        self.link.tell(messages.notification("notifications/x", {"text": "x" * 1000}))
        self.link.tell(messages.result(1, {}))
        outlet: Any = next(iter(self.house.registry)).outlet
        self.assertGreater(outlet._kept + outlet._general.size, 2000)
        self.house.ask("DELETE", "/mcp", (session,))
        self.assertEqual((outlet._kept, len(outlet._finished), outlet._general.size), (0, 0, 0))

    def test_delete_while_down(self) -> None:
        """While the backend is away DELETE is answered at once, and nothing comes back with the backend."""
        session = self.begin()
        self.house.backend.go_down()
        self.assertEqual(self.house.ask("DELETE", "/mcp", (session,)).answer.status, 200)
        made = len(self.house.backend.made)
        self.house.backend.come_back()
        self.assertEqual(len(self.house.backend.made), made)

    def test_versions(self) -> None:
        """Every revision with a handshake is taken in the version header, or none; anything else is refused."""
        session = self.begin()
        for version in (b"2024-11-05", b"2025-03-26", b"2025-06-18", b"2025-11-25"):
            self.assertEqual(
                self.post(messages.call(1), session, (b"mcp-protocol-version", version)).answer.status, 200
            )
        self.assertEqual(self.post(messages.call(1), session).answer.status, 200)
        wrong = self.post(messages.call(1), session, (b"mcp-protocol-version", b"1999-01-01")).answer
        self.assert_json_error(wrong, 400, -32600)

    def test_accept(self) -> None:
        """A client has to read both kinds of answer, and is told so."""
        for accept, status in ((b"application/json", 406), (b"text/event-stream", 406), (b"*/*", 200)):
            self.assertEqual(self.post(messages.initialize("a"), (b"accept", accept)).answer.status, status, accept)

    def test_bad_bodies(self) -> None:
        """What is no message of JSON-RPC is refused with the code for it."""
        session = self.begin()
        for body, code in ((b"{", -32700), (b'{"a":1}', -32600), (b"[]", -32600), (b"", -32600), (b"[1]", -32600)):
            self.assert_json_error(self.post(body, session).answer, 400, code)

    def test_also_at_the_other_url(self) -> None:
        """The URL of the HTTP+SSE stream takes the same: Cursor posts there first."""
        began = self.post(messages.initialize("hello"), path="/mcp/sse").answer
        session = (b"mcp-session-id", began.header(b"mcp-session-id"))
        self.assert_answer(self.post(messages.call(1), session, path="/mcp/sse").answer, 1)
        stream = self.listen(session, path="/mcp/sse")
        self.link.tell(messages.notification("notifications/x"))
        self.assertEqual([each["method"] for each in stream.messages], ["notifications/x"])
        self.assertEqual(self.house.ask("DELETE", "/mcp/sse", (session,)).answer.status, 200)


class Answers(StreamableCase):
    def test_json(self) -> None:
        """A request that is just answered gets one JSON response, under its own id."""
        session = self.begin()
        for identity in (1, "1", 2**60):
            self.assert_answer(self.post(messages.call(identity), session).answer, identity)

    def test_stream(self) -> None:
        """What the backend says before the answer makes the reply a stream, which ends with the answer."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.assertFalse(call.started)
        self.tell_about(messages.notification("notifications/progress", {"progressToken": 1, "progress": 1}))
        self.assertEqual(call.answer.header(b"content-type"), b"text/event-stream")
        self.assertFalse(call.answer.complete)
        self.link.tell(messages.result(1, {"content": []}))
        self.assertTrue(call.answer.complete)
        self.assertEqual([each.get("method", "answer") for each in call.messages], ["notifications/progress", "answer"])

    def test_forwarded_at_once(self) -> None:
        """An event of the backend's is written to the client in the same turn, before any time passes."""
        session = self.begin()
        stream = self.listen(session)
        self.link.tell(messages.notification("notifications/x"))
        self.assertEqual(len(stream.messages), 1)

    def test_priming(self) -> None:
        """A client of 2025-11-25 gets an event with an id and no data, and when to come back; others fail on that."""
        for version, is_primed in (("2025-06-18", False), ("2025-11-25", True)):
            session = self.begin(version=version)
            self.house.backend.answers["tools/call"] = silent
            call = self.post(messages.call(1), session)
            self.link.stream()
            empty = [event for event in call.events if not event.data and event.id]
            self.assertEqual((len(empty), b"retry: " in call.raw), (int(is_primed), is_primed), version)
            self.link.tell(messages.result(1, {}))

    def test_two_replies(self) -> None:
        """Each reply gets what belongs to its own request."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        calls = {number: self.post(messages.call(number), session) for number in (1, 2)}
        self.tell_about(messages.notification("notifications/one"), -2)
        self.tell_about(messages.notification("notifications/two"), -1)
        self.link.tell(messages.result(2, {}))
        self.link.tell(messages.result(1, {}))
        for number, connection in calls.items():
            self.assertEqual(connection.messages[0]["method"], f"notifications/{'two' if number == 2 else 'one'}")
            connection.message(number)

    def test_question(self) -> None:
        """The backend's question comes on the call's stream; the client's answer is 202, and has the backend's id."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.tell_about(messages.request("sampling/createMessage", 0))
        (question,) = call.messages
        self.assertEqual(self.post(messages.result(question["id"], {"x": 1}), session).answer.status, 202)
        self.assertEqual(self.link.sent[-1], messages.result(0, {"x": 1}))

    def test_batch(self) -> None:
        """In 2025-03-26 an array goes to the backend as single messages, and its answers come back as an array."""
        session = self.begin(version="2025-03-26")
        batch = [messages.call(1), messages.notification("notifications/x"), messages.call("2")]
        answer = self.post(batch, session).answer
        self.assertEqual([each["id"] for each in answer.json()], [1, "2"])
        self.assertEqual(self.post([messages.notification("notifications/x")], session).answer.status, 202)

    def test_batch_as_stream(self) -> None:
        """When one of them streams, the answers come one by one on the stream, which ends with the last."""
        session = self.begin(version="2025-03-26")
        self.house.backend.answers["tools/call"] = silent
        batch = self.post([messages.call(1), messages.call(2)], session)
        self.link.tell(messages.result(1, {}))
        self.assertFalse(batch.started)
        self.tell_about(messages.notification("notifications/x"))
        self.link.tell(messages.result(2, {}))
        self.assertTrue(batch.answer.complete)
        self.assertEqual([each.get("id") for each in batch.messages], [1, None, 2])

    def test_batch_refused(self) -> None:
        """Other revisions have no arrays, and initialize is never in one; nothing of them is delivered."""
        session = self.begin()
        self.assert_json_error(self.post([messages.call(1)], session).answer, 400, -32600)
        self.assert_json_error(self.post([messages.initialize(1), messages.call(2)]).answer, 400, -32600)
        self.assertNotIn("tools/call", [each["method"] for each in self.link.sent])

    def test_errors_of_the_backend(self) -> None:
        """A cursor or a task of an earlier backend is the new one's to judge: its error is passed on as it is."""
        session = self.begin()
        self.restart()
        for method, params in (("tools/list", {"cursor": "old"}), ("tasks/get", {"taskId": "old"})):
            self.house.backend.answers[method] = lambda asked: messages.error(asked["id"], -32602, "what?")
            answer = self.assert_answer(self.post(messages.request(method, 1, params), session).answer, 1)
            self.assertEqual(answer["error"], {"code": -32602, "message": "what?"})

    def test_refusal_is_shown(self) -> None:
        """A status of the backend's reaches the client with its body, once; the next request is delivered."""
        session = self.begin()
        self.house.backend.refusals["tools/call"] = Refusal(401, "401", CHALLENGE)
        answer = self.post(messages.call(1), session).answer
        self.assertEqual((answer.status, answer.body), (401, CHALLENGE.body))
        self.assertEqual(answer.header(b"www-authenticate"), b'Bearer scope="x"')
        self.assert_answer(self.post(messages.call(2), session).answer, 2)

    def test_refused_initialize(self) -> None:
        """So does one to initialize, and no session is left."""
        self.house.backend.refusals["initialize"] = Refusal(401, "401", CHALLENGE)
        self.assertEqual(self.post(messages.initialize("hello")).answer.status, 401)
        self.assertEqual(len(self.house.registry), 0)

    def test_cancelled_in_flight(self) -> None:
        """A request that is cancelled needs no reply any more; the backend hears of it."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.post(messages.notification("notifications/cancelled", {"requestId": 1}), session)
        self.assertTrue(call.answer.complete)
        self.assertEqual(call.messages, [])
        self.assertEqual(self.link.sent[-1]["method"], "notifications/cancelled")

    def test_cancelled_twice(self) -> None:
        """A client that cancels the same request twice has cancelled no other of its batch."""
        session = self.begin(version="2025-03-26")
        self.house.backend.answers["tools/call"] = silent
        batch = self.post([messages.call(1), messages.call(2)], session)
        for _ in range(2):
            self.post(messages.notification("notifications/cancelled", {"requestId": 1}), session)
        self.assertEqual(batch.raw, b"")
        self.link.tell(messages.result(2, {}))
        self.assertEqual([each["id"] for each in batch.answer.json()], [2])
        self.assertEqual([each["method"] for each in self.link.sent].count("notifications/cancelled"), 1)

    def test_leaving_is_not_cancelling(self) -> None:
        """A client that hangs up has not cancelled: its call goes on."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        self.post(messages.call(1), session).hang_up()
        self.assertEqual([each["method"] for each in self.link.sent][-1], "tools/call")
        self.assertFalse(self.link.closed)

    def test_one_slow_reply(self) -> None:
        """A client that does not read one reply pauses what feeds that one, and gets the rest when it reads again."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.link.stream()
        call.stop_reading()
        self.assertTrue(self.link.paused)
        call.read_again()
        self.assertFalse(self.link.paused)


class Listening(StreamableCase):
    def test_nobody_listens(self) -> None:
        """What comes while there is no stream for it comes on the next one, once."""
        session = self.begin()
        self.link.tell(messages.notification("notifications/first"))
        self.listen(session).hang_up()
        self.link.tell(messages.notification("notifications/early"))
        stream = self.listen(session)
        self.link.tell(messages.notification("notifications/late"))
        self.assertEqual([each["method"] for each in stream.messages], ["notifications/early", "notifications/late"])
        stream.hang_up()
        self.assertEqual(self.listen(session).messages, [])

    def test_replaced(self) -> None:
        """A second stream replaces the first; each message comes on one of them."""
        session = self.begin()
        first, second = self.listen(session), self.listen(session)
        self.assertTrue(first.answer.complete)
        self.link.tell(messages.notification("notifications/x"))
        self.assertEqual((len(first.messages), len(second.messages)), (0, 1))

    def test_stays_open(self) -> None:
        """The stream outlives the backend, with comments."""
        session = self.begin()
        stream = self.listen(session)
        self.house.backend.go_down()
        self.house.streamable.keep_alive()
        self.assertFalse(stream.answer.complete)
        self.assertEqual(count_comments(stream.answer.body), 1)

    def test_head(self) -> None:
        """HEAD opens nothing."""
        session = self.begin()
        self.assertEqual(self.house.ask("HEAD", "/mcp", (*LISTEN, session)).answer.status, 200)
        self.link.tell(messages.notification("notifications/x"))
        self.assertEqual(len(self.listen(session).messages), 1)

    def test_resumed(self) -> None:
        """Events that were missed come once and in order, also after the backend was restarted in between."""
        session = self.begin()
        stream = self.listen(session)
        self.link.tell(messages.notification("notifications/1"))
        last = (b"last-event-id", stream.events[-1].id.encode())
        stream.hang_up()
        self.link.tell(messages.notification("notifications/2"))
        self.restart()
        self.link.tell(messages.notification("notifications/3"))
        again = self.listen(session, last)
        self.assertEqual([each["method"] for each in again.messages], ["notifications/2", "notifications/3"])

    def test_reply_resumed(self) -> None:
        """A reply that broke is resumed with its last event, and brings nothing of another's."""
        session = self.begin(version="2025-11-25")
        self.house.backend.answers["tools/call"] = silent
        calls = [self.post(messages.call(number), session) for number in (1, 2)]
        self.tell_about(messages.notification("notifications/one"), -2)
        self.tell_about(messages.notification("notifications/two"), -1)
        primed = (b"last-event-id", calls[0].events[0].id.encode())
        calls[0].hang_up()
        self.link.tell(messages.result(1, {}))
        again = self.listen(session, primed)
        self.assertTrue(again.answer.complete)
        self.assertEqual([each.get("method", each.get("id")) for each in again.messages], ["notifications/one", 1])
        self.assertEqual(len([event for event in calls[1].events if event.data]), 1)

    def test_resumed_before_the_answer(self) -> None:
        """A reply that is resumed before its answer gets the answer on the new stream."""
        session = self.begin(version="2025-11-25")
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.link.stream()
        primed = (b"last-event-id", call.events[0].id.encode())
        call.hang_up()
        again = self.listen(session, primed)
        self.assertFalse(again.answer.complete)
        self.link.tell(messages.result(1, {}))
        again.message(1)
        self.assertTrue(again.answer.complete)

    def test_polling(self) -> None:
        """A backend that wants no stream while it works lets its client poll; so do we, and at its pace."""
        session = self.begin(version="2025-11-25")
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.link.stream()
        self.link.let_poll(1, 0.5)
        self.assertTrue(call.answer.complete)
        self.assertIn(b"retry: 500\n", call.raw)
        primed = (b"last-event-id", call.events[0].id.encode())
        again = self.listen(session, primed)
        self.link.let_poll(1, 0.25)
        self.assertTrue(again.answer.complete)
        self.assertIn(b"retry: 250\n", again.raw)
        self.link.tell(messages.result(1, {}))
        third = self.listen(session, primed)
        third.message(1)
        self.assertTrue(third.answer.complete)

    def test_polling_is_not_for_all(self) -> None:
        """A client that was not told how to come back keeps its stream, and has its answer on it."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.link.stream()
        self.link.let_poll(1, 0.5)
        self.assertNotIn(b"retry", call.raw)
        self.link.tell(messages.result(1, {}))
        call.message(1)
        self.assertTrue(call.answer.complete)

    def test_nothing_left(self) -> None:
        """A reply that is complete, and was seen to its end, is 405: some clients ask again after an error."""
        session = self.begin(version="2025-11-25")
        self.house.backend.answers["tools/call"] = silent
        call = self.post(messages.call(1), session)
        self.link.stream()
        self.link.tell(messages.error(1, -32000))
        last = (b"last-event-id", call.events[-1].id.encode())
        self.assertEqual(self.listen(session, last).answer.status, 405)

    def test_unknown_event(self) -> None:
        """An event id that is none of this session's opens an ordinary stream."""
        session = self.begin()
        for event in (b"x", b"a.b.c", b"0.0.0", b"deadbeef.1.1"):
            stream = self.listen(session, (b"last-event-id", event))
            self.link.tell(messages.notification("notifications/x"))
            self.assertEqual(len(stream.messages), 1, event)


class Outages(StreamableCase):
    def test_restart(self) -> None:
        """A session lives on under the same id; the new backend is taught it."""
        session = self.begin()
        self.restart()
        self.assert_answer(self.post(messages.call(1), session).answer, 1)
        self.assertEqual([each["method"] for each in self.link.sent][:2], ["initialize", "notifications/initialized"])

    def test_held(self) -> None:
        """A held request shows nothing for 5 seconds, then a stream with comments; its answer comes once."""
        session = self.begin()
        self.house.backend.go_down()
        call = self.post(messages.call("a"), session)
        self.house.clock.advance(4.9)
        self.assertFalse(call.started)
        self.house.clock.advance(0.2)
        self.assertEqual(call.answer.header(b"content-type"), b"text/event-stream")
        self.house.streamable.keep_alive()
        self.assertEqual(count_comments(call.answer.body), 1)
        self.house.backend.come_back()
        call.message("a")
        self.assertTrue(call.answer.complete)

    def test_progress_while_held(self) -> None:
        """With a progress token, it hears that it is not forgotten."""
        session = self.begin()
        self.house.backend.go_down()
        meta = {"name": "t", "_meta": {"progressToken": "p"}}
        call = self.post(messages.request("tools/call", 1, meta), session)
        self.house.clock.advance(5.1)
        (progress,) = call.messages
        self.assertEqual((progress["method"], progress["params"]["progressToken"]), ("notifications/progress", "p"))
        self.house.backend.come_back()
        call.message(1)

    def test_deadline(self) -> None:
        """A request whose time is up gets -31001 under its own id, with HTTP status 200."""
        self.rebuild(policy=Policy(hold_timeout=3.0))
        session = self.begin()
        self.house.backend.go_down()
        for identity in (7, "7"):
            call = self.post(messages.call(identity), session)
            self.house.clock.advance(3.1)
            error = self.assert_answer(call.answer, identity)["error"]
            self.assertEqual((error["code"], error["data"]["delivered"]), (-31001, "no"))

    def test_full(self) -> None:
        """What there is no room for gets -31004 at once."""
        self.rebuild(policy=Policy(max_held=1))
        session = self.begin()
        self.house.backend.go_down()
        self.post(messages.call(1), session)
        self.assertEqual(self.assert_answer(self.post(messages.call(2), session).answer, 2)["error"]["code"], -31004)

    def test_cancelled(self) -> None:
        """A held request that is cancelled ends, and the backend never sees it."""
        session = self.begin()
        self.house.backend.go_down()
        call = self.post(messages.call(1), session)
        self.post(messages.notification("notifications/cancelled", {"requestId": 1}), session)
        self.assertTrue(call.answer.complete)
        self.house.backend.come_back()
        self.assertNotIn("tools/call", [each["method"] for each in self.link.sent])

    def test_ping(self) -> None:
        """A ping is answered by the proxy while the backend is away."""
        session = self.begin()
        self.house.backend.go_down()
        self.assertEqual(self.assert_answer(self.post(messages.request("ping", 1), session).answer, 1)["result"], {})

    def test_lost_in_flight(self) -> None:
        """A call that was sent gets -31002 on its own reply, be it a stream already or not; none ends without."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        calls = [self.post(messages.call(number), session) for number in (1, 2)]
        self.tell_about(messages.notification("notifications/x"), -2)
        self.house.backend.go_down()
        self.assertEqual(calls[0].message(1)["error"]["code"], -31002)
        self.assertTrue(calls[0].answer.complete)
        self.assertEqual(self.assert_answer(calls[1].answer, 2)["error"]["code"], -31002)

    def test_used_up(self) -> None:
        """A request that carries a client's answers was used up by its delivery: it is not sent again."""
        session = self.begin()
        self.house.backend.answers["prompts/get"] = silent
        call = self.post(messages.request("prompts/get", 1, {"name": "p", "inputResponses": {}}), session)
        self.restart()
        self.assertEqual(self.assert_answer(call.answer, 1)["error"]["code"], -31002)
        self.assertNotIn("prompts/get", [each["method"] for each in self.link.sent])

    def test_initialize_outlives_the_budget(self) -> None:
        """An initialize waits with its head; when the budget is spent it is 503, and no session is left."""
        self.house.backend.go_down()
        began = self.post(messages.initialize("hello"))
        self.house.clock.advance(10)
        self.assertFalse(began.started)
        self.house.backend.spent = True
        for seeker in list(self.house.backend.waiting):
            seeker.backend_gave_up()
        answer = began.answer
        self.assertEqual((answer.status, answer.json()["error"]["code"]), (503, -31001))
        self.assertTrue(answer.header(b"retry-after").isdigit())
        self.assertIn("Backend unavailable", answer.json()["error"]["message"])
        self.assertEqual(len(self.house.registry), 0)

    def test_initialize_held(self) -> None:
        """If the backend comes in time it is answered, with the session's id in the head."""
        self.house.backend.go_down()
        began = self.post(messages.initialize("hello"))
        self.house.clock.advance(10)
        self.house.backend.come_back()
        self.assertTrue(self.assert_answer(began.answer, "hello"))
        self.assertTrue(began.answer.header(b"mcp-session-id"))

    def test_challenge_at_reconnect(self) -> None:
        """A 401 to the proxy's own handshake is shown to the client's next request, as it came."""
        session = self.begin()
        self.house.backend.challenge = CHALLENGE
        self.restart()
        answer = self.post(messages.call(1), session).answer
        self.assertEqual((answer.status, answer.body), (401, CHALLENGE.body))


class Bounds(StreamableCase):
    def test_too_many_sessions(self) -> None:
        """At the limit the session that was idle for longest makes room; if none is idle, 503."""
        self.rebuild(max_sessions=1)
        session = self.begin()
        stream = self.listen(session)
        self.assert_json_error(self.post(messages.initialize("b")).answer, 503, -31004)
        stream.hang_up()
        self.assertEqual(self.post(messages.initialize("b")).answer.status, 200)

    def test_idle(self) -> None:
        """A session lives while it is used or listened to, and ends when it is neither for long enough."""
        self.rebuild(idle_timeout=100)
        session = self.begin()
        for _ in range(3):
            self.house.clock.advance(90)
            self.house.registry.expire(self.house.clock.seconds())
            self.assertEqual(self.post(messages.call(1), session).answer.status, 200)
        stream = self.listen(session)
        self.house.clock.advance(1000)
        self.house.registry.expire(self.house.clock.seconds())
        self.assertFalse(stream.answer.complete)
        stream.hang_up()
        self.house.clock.advance(101)
        self.house.registry.expire(self.house.clock.seconds())
        self.assertEqual(self.post(messages.call(1), session).answer.status, 404)

    def test_finished_replies(self) -> None:
        """Of finished replies only so many, and so many bytes, are kept for a client that comes back."""
        session = self.begin()
        (own,) = self.house.registry
        outlet = own.outlet
        assert isinstance(outlet, StreamableOutlet)
        self.house.backend.answers["tools/call"] = silent
        for number in range(100):
            self.post(messages.call(number), session)
            self.link.stream()
            self.link.tell(messages.result(number, {"x": "y" * 60_000}))
            kept = outlet._finished.values()
            self.assertLessEqual(len(kept), 32)
            self.assertLessEqual(sum(reply.size for reply in kept), 1024 * 1024)
        self.assertEqual(outlet._open, {})
