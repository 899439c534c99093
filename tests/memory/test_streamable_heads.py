"""Streamable HTTP: what a request of HTTP must be to be looked at, and what sessions are to the outside."""

from __future__ import annotations

from base64 import urlsafe_b64encode

from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from tests.memory.house_case import ALICE, BOB
from tests.memory.streamable_case import CorrelatedCase, Header, note, shown
from tests.memory.test_streamable import LISTEN, silent
from tests.support import messages
from tests.support.memory import JSON_HEAD
from tests.support.messages import encoded

JSON, STREAM = (b"accept", b"application/json"), (b"accept", b"text/event-stream")


class Posts(CorrelatedCase):
    def test_accept(self) -> None:
        """A client that cannot read one of the two kinds of answer is refused; one that says nothing is served."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = lambda asked: messages.result(asked["id"], {})
        both = b"application/json;q=0.9, text/event-stream"
        for accept, status in ((both, 200), (b"Application/JSON,Text/Event-Stream", 200), (b"text/html", 406)):
            self.assertEqual(self.post(messages.call(1), session, (b"accept", accept)).answer.status, status, accept)
        self.assertEqual(self.post(messages.call(1), session, JSON, STREAM).answer.status, 200)
        self.assert_json_error(self.post(messages.call(1), session, JSON).answer, 406, -32600)
        self.assert_json_error(self.post(messages.call(1), session, STREAM).answer, 406, -32600)
        self.assertEqual(len(self.sent("tools/call")), 3)

    def test_kind_of_body(self) -> None:
        """The body is JSON and says so, with or without a charset; the backend gets nothing else."""
        session = self.begin()
        for kind, status in (
            (b"application/json", 202),
            (b"Application/JSON; charset=utf-8", 202),
            (b"text/plain", 415),
            (b"application/x-www-form-urlencoded", 415),
        ):
            head = ((b"content-type", kind), session)
            answer = self.house.ask("POST", "/mcp", head, encoded(note("x"))).answer
            self.assertEqual(answer.status, status, kind)
        self.assert_json_error(self.house.ask("POST", "/mcp", (session,), b"{}").answer, 415, -32600)
        self.assertEqual(len(self.sent("notifications/x")), 2)

    def test_revision_beyond(self) -> None:
        """A header that names an unknown revision is refused on POST and GET, whatever else is right."""
        session = self.begin()
        for version in (b"2030-01-01", b"latest"):
            header = (b"mcp-protocol-version", version)
            self.assert_json_error(self.post(messages.call(1), session, header).answer, 400, -32600)
            self.assert_json_error(self.listen(session, header).answer, 400, -32600)
        self.assertEqual(self.sent("tools/call"), [])

    def test_missing_before_unknown_method(self) -> None:
        """Without a session even a ping, a notification or an answer is 400."""
        for message in (messages.request("ping"), note("initialized"), messages.result(1, {})):
            self.assert_json_error(self.post(message).answer, 400, -32600)
        self.assertEqual(self.house.backend.made, [])


class Gets(CorrelatedCase):
    def test_accept(self) -> None:
        """A client that cannot read a stream gets 406 and no stream."""
        session = self.begin()
        self.assert_json_error(self.house.ask("GET", "/mcp", (JSON, session)).answer, 406, -32600)
        for accept in (b"*/*", b"text/*", b"application/json, text/event-stream"):
            stream = self.house.ask("GET", "/mcp", ((b"accept", accept), session))
            self.assertEqual(stream.answer.header(b"content-type"), b"text/event-stream", accept)

    def test_other_methods(self) -> None:
        """What is neither POST, GET nor DELETE is 405, and the answer says what is allowed."""
        answer = self.house.ask("PUT", "/mcp", JSON_HEAD, b"{}").answer
        self.assert_json_error(answer, 405, -32600)
        for method in (b"GET", b"POST", b"DELETE"):
            self.assertIn(method, answer.header(b"allow"))

    def test_head_of_a_stream(self) -> None:
        """A stream must not be kept by anybody on the way, and its head is there before its first event."""
        session = self.begin()
        stream = self.listen(session)
        self.assertTrue(stream.started)
        self.assertIn(b"no-cache", stream.answer.header(b"cache-control"))
        self.assertEqual(stream.answer.header(b"x-accel-buffering"), b"no")
        self.assertEqual(stream.answer.header(b"mcp-session-id"), b"")

    def test_retry(self) -> None:
        """Only a client of 2025-11-25 is told when to come back; no event without data is shown to any."""
        for version in ("2025-03-26", "2025-06-18", "2025-11-25"):
            stream = self.listen(self.begin(version=version))
            self.assertEqual(b"retry: 1000" in stream.raw, version == "2025-11-25", version)
            self.assertEqual(stream.events, [])

    def test_also_at_the_other_url(self) -> None:
        """With a session header the URL of HTTP+SSE opens a stream of that session; a wrong id is 404, not a stream."""
        session = self.begin(ALICE)
        self.link.tell(note("x"))
        self.assertEqual(shown(self.listen(session, ALICE, path="/mcp/sse")), ["x"])
        for headers in ((session, BOB), ((b"mcp-session-id", b"made-up"), ALICE)):
            self.assertEqual(self.listen(*headers, path="/mcp/sse").answer.status, 404)
        self.assertEqual(len(self.house.registry), 1)

    def test_resumed_at_the_other_url(self) -> None:
        """Last-Event-ID means there what it means on /mcp: the rest of the reply that the event belongs to."""
        session = self.begin(version="2025-11-25")
        call = self.post(messages.call(1), session, path="/mcp/sse")
        self.link.stream()
        call.hang_up()
        self.link.tell(messages.result(1, {}))
        self.assertEqual(shown(self.listen(session, self.last_of(call), path="/mcp/sse")), [1])


class Owners(CorrelatedCase):
    def test_same_404(self) -> None:
        """Who asks with a foreign credential gets, but for the date, the very bytes that a made-up id gets."""
        session = self.begin(ALICE)
        made_up = (b"mcp-session-id", b"x" * len(session[1]))
        for method in ("POST", "GET", "DELETE"):
            body = encoded(messages.call(1)) if method == "POST" else None
            head = (*(JSON_HEAD if method == "POST" else LISTEN), BOB)
            foreign, unknown = (self.house.ask(method, "/mcp", (*head, own), body).answer for own in (session, made_up))
            self.assertEqual((foreign.status, foreign.body), (404, unknown.body), method)
            names = [name for name, _ in foreign.headers]
            self.assertEqual(names, [name for name, _ in unknown.headers])
        self.assertEqual(self.sent("tools/call"), [])
        self.assertEqual(self.post(note("x"), session, ALICE).answer.status, 202)

    def test_credential_of_one_connection(self) -> None:
        """A client that wants its credential kept from the backend owns its session all the same."""
        kept = (b"connection", b"authorization")
        session = self.begin(ALICE, kept)
        self.assertEqual(self.listen(session).answer.status, 404)
        self.assertEqual(self.post(note("x"), session).answer.status, 404)
        self.assertEqual(self.post(note("x"), session, ALICE, kept).answer.status, 202)

    def test_foreign_events(self) -> None:
        """With another's credential no kept event is shown, be it of the general stream or of a reply."""
        session = self.begin(ALICE, version="2025-11-25")
        call, stream = self.post(messages.call(1), session, ALICE), self.listen(session, ALICE)
        self.link.tell(note("x"))
        self.link.tell(note("y"), about=1)
        for seen in (call, stream):
            answer = self.listen(session, BOB, self.last_of(seen)).answer
            self.assert_json_error(answer, 404, -32600)
            own = self.begin(BOB)
            self.assertEqual(self.listen(own, BOB, self.last_of(seen)).events, [])
            self.assertFalse(seen.answer.complete)

    def test_of_the_other_transport(self) -> None:
        """Neither transport's id opens, resumes or deletes a session of the other's."""
        stream = self.house.initialized(ALICE)
        other = (b"mcp-session-id", stream.path.rpartition("/")[2].encode())
        self.assertEqual(self.listen(other, ALICE).answer.status, 404)
        self.assertEqual(self.listen(other, ALICE, path="/mcp/sse").answer.status, 404)
        self.assertEqual(self.house.ask("DELETE", "/mcp", (other, ALICE)).answer.status, 404)
        own = self.begin(ALICE)
        listening = self.listen(own, ALICE)
        last = (b"last-event-id", own[1] + b".0")
        self.assertNotEqual(self.house.stream(ALICE, last).path.rpartition("/")[2].encode(), own[1])
        self.assertFalse(listening.answer.complete)


def token(subject: str, count: int) -> Header:
    """A token that claims to be a subject's."""
    claims = urlsafe_b64encode(encoded({"iss": "i", "sub": subject, "n": count})).rstrip(b"=")
    return b"authorization", b"Bearer e30." + claims + b".x"


class Renewed(CorrelatedCase):
    """A client that comes with a new token for its stream, before any message has come with it."""

    def setUp(self) -> None:
        """A client with its first token."""
        super().setUp()
        self.session = self.begin(token("ann", 1))

    def test_taken(self) -> None:
        """The backend takes it, so the client has its stream, and the session is the new token's."""
        self.link.tell(note("x"))
        stream = self.listen(self.session, token("ann", 2))
        self.assertEqual(shown(stream), ["x"])
        self.assertEqual([each["method"] for each in self.link.sent][-1], "ping")
        self.assertEqual(self.post(note("y"), self.session, token("ann", 2)).answer.status, 202)

    def test_refused(self) -> None:
        """The backend does not, and the client is told its words; the session is the old token's, as ever."""
        said = HTTPAnswer(401, ((b"www-authenticate", b"Bearer"), (b"content-type", b"text/plain")), b"who?")
        self.house.backend.refusals["ping"] = Refusal(401, "401", said)
        answer = self.listen(self.session, token("ann", 2)).answer
        self.assertEqual((answer.status, answer.body, answer.header(b"www-authenticate")), (401, b"who?", b"Bearer"))
        self.assertTrue(self.listen(self.session, token("ann", 1)).started)
        self.assertEqual(self.post(note("y"), self.session, token("ann", 1)).answer.status, 202)

    def test_nobody_to_ask(self) -> None:
        """While the backend is away nobody knows: 503, and nothing of the session is shown."""
        self.house.backend.go_down()
        answer = self.listen(self.session, token("ann", 2)).answer
        self.assert_json_error(answer, 503, -31001)
        self.assertTrue(answer.header(b"retry-after"))

    def test_client_leaves(self) -> None:
        """A client that does not wait for the verdict is no listener."""
        self.house.backend.answers["ping"] = silent
        stream = self.listen(self.session, token("ann", 2))
        stream.hang_up()
        self.link.tell(messages.result(self.link.sent[-1]["id"], {}))
        self.assertFalse(self.outlet_of(self.session).attached)

    def test_another_subject(self) -> None:
        """A token for another subject is not even tried."""
        self.assertEqual(self.listen(self.session, token("eve", 1)).answer.status, 404)
        self.assertEqual(self.sent("ping"), [])


class Ends(CorrelatedCase):
    def test_delete_ends_all(self) -> None:
        """DELETE ends every stream of the session: a call in flight is told the truth, and so is its stream."""
        session = self.begin()
        calls = [self.post(messages.call(number), session) for number in (1, 2)]
        stream = self.listen(session)
        self.link.stream(1)
        self.assertEqual(self.house.ask("DELETE", "/mcp", (session,)).answer.status, 200)
        self.assertTrue(stream.answer.complete)
        self.assertEqual(calls[0].message(1)["error"]["code"], -31002)
        self.assertEqual(self.assert_answer(calls[1].answer, 2)["error"]["code"], -31002)

    def test_delete_while_down_answers_what_is_held(self) -> None:
        """A held request is answered by DELETE, as not delivered, and the backend never sees it."""
        session = self.begin()
        self.house.backend.go_down()
        call = self.post(messages.call(1), session)
        self.assertEqual(self.house.ask("DELETE", "/mcp", (session,)).answer.status, 200)
        self.assertEqual(self.assert_answer(call.answer, 1)["error"]["data"]["delivered"], "no")
        self.house.backend.come_back()
        self.assertEqual(self.sent("tools/call"), [])
        self.assertEqual(self.post(messages.call(2), session).answer.status, 404)

    def test_no_way_back(self) -> None:
        """After DELETE neither the event ids nor an initialize with the old id bring the session back."""
        session = self.begin(version="2025-11-25")
        call = self.post(messages.call(1), session)
        self.link.stream()
        last = self.last_of(call)
        self.house.ask("DELETE", "/mcp", (session,))
        self.assertEqual(self.listen(session, last).answer.status, 404)
        again = self.post(messages.initialize("again"), session, last).answer
        self.assertNotEqual(again.header(b"mcp-session-id"), session[1])
        self.assertEqual(self.post(note("x"), session).answer.status, 404)

    def test_client_leaves_during_initialize(self) -> None:
        """A client that leaves before its initialize is answered leaves no session behind."""
        self.house.backend.go_down()
        self.post(messages.initialize("hello")).hang_up()
        self.assertEqual(len(self.house.registry), 0)
        self.house.backend.come_back()
        self.assertEqual(self.sent("initialize"), [])

    def test_failed_initialize(self) -> None:
        """An initialize that the backend answers with an error leaves no session behind."""
        self.house.backend.answers["initialize"] = lambda asked: messages.error(asked["id"], -32602, "no such version")
        answer = self.assert_answer(self.post(messages.initialize("hello")).answer, "hello")
        self.assertEqual(answer["error"], {"code": -32602, "message": "no such version"})
        self.assertEqual(len(self.house.registry), 0)

    def test_statuses_of_initialize(self) -> None:
        """Whatever status the backend refuses initialize with is shown with its body, and no session is left."""
        for status in (400, 401, 403, 429):
            said = HTTPAnswer(status, ((b"retry-after", b"7"), (b"content-type", b"text/plain")), b"because")
            self.house.backend.refusals["initialize"] = Refusal(status, str(status), said)
            answer = self.post(messages.initialize("hello")).answer
            self.assertEqual((answer.status, answer.body, answer.header(b"retry-after")), (status, b"because", b"7"))
            self.assertEqual(answer.header(b"mcp-session-id"), b"")
            self.assertEqual(len(self.house.registry), 0)
