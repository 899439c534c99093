"""Revision 2026-07-28 over ``POST /mcp``: each request for itself, held and answered by the same rules as all."""

from __future__ import annotations

from typing import Any

from mcp_proxy.session import modern as outlets
from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import ALICE, BOB, HouseCase
from tests.support import messages, modern
from tests.support.http1 import Answer, HeaderList, count_comments
from tests.support.memory import Connection, FakeLink, House
from tests.support.messages import Json, encoded

POSTED: HeaderList = (modern.JSON_KIND, modern.BOTH_KINDS)
DISCOVERED: Json = {"supportedVersions": ["2026-07-28"], "capabilities": {}, "ttlMs": 0, "cacheScope": "private"}
TOOLS_CHANGED = "notifications/tools/list_changed"
UPDATED = "notifications/resources/updated"
HOLD = Policy().hold_timeout


def silent(asked: Json) -> None:
    """Answer nothing for now."""


class ModernCase(HouseCase):
    """A house whose backend discovers and listens."""

    def setUp(self) -> None:
        """The house, ready."""
        super().setUp()
        self.ready()

    def ready(self) -> None:
        """Teach the backend the methods of the revision."""
        answers = self.backend.answers
        answers["server/discover"] = lambda asked: messages.result(asked["id"], {**DISCOVERED})
        answers["subscriptions/listen"] = lambda asked: modern.acknowledged(
            asked["id"], **asked["params"]["notifications"]
        )

    def rebuild(self, **options: Any) -> House:
        """A house with these options, ready."""
        super().rebuild(**options)
        self.ready()
        return self.house

    @property
    def backend(self) -> Any:
        """The backend."""
        return self.house.backend

    @property
    def link(self) -> FakeLink:
        """The newest link."""
        link: FakeLink = self.backend.link
        return link

    def ask(self, message: Json, *headers: tuple[bytes, bytes]) -> Connection:
        """Post a request with the headers that belong to it."""
        return self.house.ask("POST", "/mcp", (*POSTED, *modern.headers_of(message), *headers), encoded(message))

    def answer_to(self, message: Json, *headers: tuple[bytes, bytes]) -> Answer:
        """The same with its whole answer."""
        answer = self.ask(message, *headers).answer
        self.assertTrue(answer.complete, answer)
        return answer

    def sent(self, method: str) -> list[Json]:
        """All messages of this method that the backend has got."""
        return [each for link in self.backend.made for each in link.sent if each["method"] == method]

    def assert_error(self, answer: Answer, status: int, code: int, identity: Any) -> Json:
        """The answer is complete and this JSON-RPC error to this request; return the error."""
        self.assertTrue(answer.complete)
        self.assertEqual((answer.status, answer.header(b"content-type")), (status, b"application/json"), answer.body)
        value = answer.json()
        self.assertEqual((value["id"], type(value["id"])), (identity, type(identity)))
        error: Json = value["error"]
        self.assertEqual((error["code"], error["data"]["source"]), (code, "proxy"))
        return error

    def assert_quiet(self) -> None:
        """No session, no link and no timer is left of what was asked."""
        self.assertEqual(list(self.house.registry), [])
        self.assertEqual([link.closed for link in self.backend.made], [True] * len(self.backend.made))
        self.assertEqual((self.backend.waiting, self.backend.live), ([], []))

    def tearDown(self) -> None:
        """Nothing is left, not even a session that lasts as long as its request."""
        super().tearDown()
        self.assert_quiet()


class Forwarded(ModernCase):
    def test_headers(self) -> None:
        """A request reaches the backend as it came, with its own headers and those of unknown parameters."""
        message = modern.call(5, {"region": "us", "n": 1}, name="größe")
        more = (
            (b"authorization", b"Bearer t"),
            (b"mcp-param-region", b"us"),
            (b"mcp-param-other", b"=?base64?w6k=?="),
            (b"traceparent", b"00-1-1-00"),
        )
        answer = self.answer_to(message, *more)
        self.assertEqual((answer.status, answer.json()["id"]), (200, 5))
        (outgoing,) = self.link.outgoing
        self.assertEqual(outgoing.raw, encoded(message))
        self.assertTrue(self.link.stateless)
        for header in (*modern.headers_of(message), *more):
            self.assertEqual([each for each in outgoing.headers if each[0] == header[0]], [header])

    def test_json(self) -> None:
        """An answer that is one message is one message here, as the backend wrote it."""
        answer = self.answer_to(modern.call("x", {"a": 1}))
        self.assertEqual((answer.status, answer.header(b"content-type")), (200, b"application/json"))
        result = answer.json()["result"]
        self.assertEqual((answer.json()["id"], result["echo"]["arguments"]), ("x", {"a": 1}))
        self.assertEqual(answer.header(b"mcp-session-id"), b"")

    def test_stream(self) -> None:
        """An answer that is a stream is a stream here, at once and without event ids."""
        self.backend.answers["tools/call"] = silent
        client = self.ask(modern.call(1, progressToken="p"))
        self.assertFalse(client.started)
        self.link.stream()
        self.assertEqual(client.answer.header(b"content-type"), b"text/event-stream")
        self.assertEqual(client.answer.header(b"x-accel-buffering"), b"no")
        progress = messages.notification("notifications/progress", {"progressToken": "p", "progress": 1})
        self.link.tell(progress)
        self.assertEqual(client.messages, [progress])
        self.link.tell(messages.result(1, {"content": []}))
        self.assertEqual(client.messages, [progress, messages.result(1, {"content": []})])
        self.assertEqual([event.id for event in client.events], ["", ""])
        self.assertNotIn(b"retry:", client.answer.body)
        self.assertTrue(client.answer.complete)
        self.assert_quiet()

    def test_message_first(self) -> None:
        """A notification makes a stream of the answer, whatever was said before."""
        self.backend.answers["tools/call"] = silent
        client = self.ask(modern.call(1))
        self.link.tell(messages.notification("notifications/x"))
        self.link.tell(messages.error(1, -32602))
        self.assertEqual([each.get("method") for each in client.messages], ["notifications/x", None])
        self.assertTrue(client.answer.complete)

    def test_side_by_side(self) -> None:
        """Requests with one id, as text and as number, of one client and of another, are answered each for itself."""
        self.backend.answers["tools/call"] = silent
        asked = [(identity, who) for identity in (1, "1", 1) for who in (ALICE, BOB)]
        clients = [self.ask(modern.call(identity, {"n": n}), who) for n, (identity, who) in enumerate(asked)]
        for n, link in reversed([*enumerate(self.backend.made)]):
            link.tell(messages.result(asked[n][0], {"n": n}))
        self.assertEqual(
            [client.answer.json() for client in clients],
            [messages.result(identity, {"n": n}) for n, (identity, _) in enumerate(asked)],
        )

    def test_nothing_of_ours(self) -> None:
        """The client gets what the backend says and nothing else: no log message, no progress that it did not ask."""
        self.backend.go_down()
        client = self.ask(modern.call(1))
        self.house.clock.advance(20)
        self.backend.come_back()
        self.assertEqual([each.get("id") for each in client.messages], [1])

    def test_no_ping(self) -> None:
        """A method that this revision does not have is for the backend to refuse, ``ping`` included."""
        answer = self.answer_to(modern.request("ping"))
        self.assertEqual(answer.json(), messages.result(1, {}))
        self.assertEqual(len(self.sent("ping")), 1)
        self.backend.go_down()
        self.assertFalse(self.ask(modern.request("ping", 2)).started)

    def test_state(self) -> None:
        """``requestState`` and ``inputResponses`` cross to the letter, both ways."""
        state = "eyJ4IjoxfQ== \\u00e9 ' \" /"
        asks = {"resultType": "input_required", "inputRequests": {"k": {}}, "requestState": state}
        self.backend.answers["tools/call"] = lambda asked: messages.result(asked["id"], asks)
        self.assertEqual(self.answer_to(modern.call(1)).json()["result"], asks)
        again = modern.request("tools/call", 2, {"name": "echo", "inputResponses": {"k": {}}, "requestState": state})
        self.answer_to(again)
        self.assertEqual(self.link.outgoing[0].raw, encoded(again))

    def test_slow_client(self) -> None:
        """A client that does not read pauses its own request's link, and no other."""
        clients = [self.ask(modern.listen(n, toolsListChanged=True)) for n in (1, 2)]
        clients[0].stop_reading()
        self.assertEqual([link.paused for link in self.backend.made], [True, False])
        clients[0].read_again()
        self.assertEqual([link.paused for link in self.backend.made], [False, False])
        clients[0].stop_reading()
        self.house.clock.advance(31)
        self.assertTrue(clients[0].closed)
        self.assertEqual([link.closed for link in self.backend.made], [True, False])


class Refused(ModernCase):
    def refuse(self, message: Json, headers: HeaderList, status: int, code: int) -> Json:
        """It is refused so, under its own id, and the backend has heard nothing."""
        answer = self.house.ask("POST", "/mcp", (*POSTED, *headers), encoded(message)).answer
        error = self.assert_error(answer, status, code, message.get("id"))
        self.assertEqual(self.backend.made, [])
        return error

    def test_envelope(self) -> None:
        """What is incomplete, contradicts itself or is of another revision never reaches the backend."""
        call = modern.call("c")
        headers = modern.headers_of(call)
        self.refuse(messages.call("c"), headers, 400, -32602)
        self.refuse(call, headers[1:], 400, -32020)
        self.refuse(call, (*headers, headers[1]), 400, -32020)
        self.refuse(call, (*headers[:2], (b"mcp-name", b"=?base64?ZWNobw?=")), 400, -32020)
        self.refuse(call, (*headers[:2], (b"mcp-name", b"other")), 400, -32020)
        unknown = modern.call("c")
        unknown["params"]["_meta"][modern.META_VERSION] = "2099-01-01"
        error = self.refuse(unknown, modern.headers_of(unknown), 400, -32022)
        self.assertEqual((error["data"]["supported"], error["data"]["requested"]), (["2026-07-28"], "2099-01-01"))

    def test_still_served(self) -> None:
        """An encoded name, blanks around it and a client that does not say who it is are all well."""
        call = modern.call(1)
        headers = modern.headers_of(call)[:2]
        for name in (b"=?base64?ZWNobw==?=", b"  echo\t"):
            answer = self.house.ask("POST", "/mcp", (*POSTED, *headers, (b"mcp-name", name)), encoded(call)).answer
            self.assertEqual((answer.status, answer.json()["id"]), (200, 1), name)

    def test_answer(self) -> None:
        """An answer of the client's is refused: there are no questions."""
        for body in (messages.result(1, {}), messages.error(1, -32000)):
            answer = self.house.ask("POST", "/mcp", (*POSTED, modern.VERSION_HEADER), encoded(body)).answer
            self.assert_json_error(answer, 400, -32600)
        self.assertEqual(self.backend.made, [])

    def test_notification(self) -> None:
        """A notification is taken and dropped: none is defined here, and leaving is how one cancels."""
        for method in ("notifications/cancelled", "notifications/initialized", "notifications/x"):
            message = modern.notification(method, {"requestId": 1})
            answer = self.answer_to(message)
            self.assertEqual((answer.status, answer.body), (202, b""))
        self.assertEqual(self.backend.made, [])

    def test_cancellation_by_message(self) -> None:
        """A cancelling message of this revision cancels nothing."""
        self.backend.answers["tools/call"] = silent
        client = self.ask(modern.call(1))
        self.answer_to(modern.notification("notifications/cancelled", {"requestId": 1}))
        self.assertFalse(self.link.closed)
        self.link.tell(messages.result(1, {}))
        self.assertEqual(client.answer.json(), messages.result(1, {}))

    def test_other_methods(self) -> None:
        """There is nothing but POST for a client without a session."""
        for method in ("GET", "DELETE"):
            answer = self.house.ask(method, "/mcp", ((b"accept", b"text/event-stream"), modern.VERSION_HEADER)).answer
            self.assert_json_error(answer, 405, -32600)
            self.assertEqual(answer.header(b"allow"), b"POST")

    def test_session_header(self) -> None:
        """A session header means nothing to a request of this revision, and goes nowhere."""
        legacy = self.house.initialized(ALICE)
        token = legacy.path.rpartition("/")[2].encode()
        for value in (b"unknown", token):
            answer = self.answer_to(modern.call(1), (b"mcp-session-id", value), BOB)
            self.assertEqual((answer.status, answer.json()["id"]), (200, 1))
            self.assertEqual(answer.header(b"mcp-session-id"), b"")
            (outgoing,) = self.link.outgoing
            self.assertNotIn(b"mcp-session-id", [name.lower() for name, _ in outgoing.headers])
        self.assertEqual(len(self.house.registry), 1)

    def test_guarded(self) -> None:
        """Origin, kind of body and kind of answer are judged as for everybody."""
        message = modern.call(1)
        own = modern.headers_of(message)
        for headers, status in (
            ((*POSTED, (b"origin", b"https://evil.example")), 403),
            (((b"content-type", b"text/plain"), modern.BOTH_KINDS), 415),
            ((modern.JSON_KIND, (b"accept", b"application/json")), 406),
        ):
            answer = self.house.ask("POST", "/mcp", (*headers, *own), encoded(message)).answer
            self.assertEqual(answer.status, status)
        self.assertEqual(self.backend.made, [])


class Held(ModernCase):
    def test_held(self) -> None:
        """What comes while the backend is away is delivered once, when it is back; nobody is made to begin anew."""
        self.backend.go_down()
        clients = [self.ask(modern.call(identity)) for identity in (1, "1")]
        self.house.clock.advance(4)
        self.assertEqual((self.sent("tools/call"), [client.started for client in clients]), ([], [False, False]))
        self.backend.come_back()
        for client, identity in zip(clients, (1, "1"), strict=True):
            self.assertEqual((client.answer.status, client.answer.json()["id"]), (200, identity))
        self.assertEqual(sorted(each["id"] for each in self.sent("tools/call") if each["id"] == 1), [1])
        self.assertEqual(len(self.sent("tools/call")), 2)
        self.assertEqual(self.sent("initialize"), [])

    def test_sign_of_life(self) -> None:
        """Who waits long sees a stream that lives, and progress if it gave a token."""
        self.backend.go_down()
        quiet, curious = self.ask(modern.call(1)), self.ask(modern.call(2, progressToken="p"))
        self.house.clock.advance(6)
        self.house.modern.keep_alive()
        self.assertEqual([count_comments(client.answer.body) for client in (quiet, curious)], [1, 1])
        self.assertEqual([len(client.messages) for client in (quiet, curious)], [0, 1])
        self.assertEqual(curious.messages[0]["params"]["progressToken"], "p")
        self.backend.come_back()
        self.assertEqual((quiet.message(1)["id"], curious.message(2)["id"]), (1, 2))

    def test_deadline(self) -> None:
        """After HOLD_TIMEOUT the truth is told in JSON-RPC under HTTP status 200, with the id as it was."""
        self.rebuild(policy=Policy(hold_timeout=3.0))
        self.backend.go_down()
        clients = [self.ask(modern.call(identity)) for identity in (7, "7")]
        self.house.clock.advance(2.9)
        self.assertFalse(any(client.started for client in clients))
        self.house.clock.advance(0.2)
        for client, identity in zip(clients, (7, "7"), strict=True):
            error = self.assert_error(client.answer, 200, -31001, identity)
            self.assertEqual((error["data"]["delivered"], error["data"]["retrySafe"]), ("no", True))
        self.backend.come_back()
        self.assertEqual(self.sent("tools/call"), [])

    def test_deadline_on_stream(self) -> None:
        """Where the answer has become a stream by then, the same comes on the stream."""
        self.backend.go_down()
        client = self.ask(modern.call(7))
        self.house.clock.pump([6, HOLD])
        self.assertEqual(client.answer.header(b"content-type"), b"text/event-stream")
        self.assertEqual(client.message(7)["error"]["code"], -31001)
        self.assertTrue(client.answer.complete)

    def test_spent(self) -> None:
        """When the budget of the outage is spent, whoever waits is answered."""
        self.backend.go_down()
        client = self.ask(modern.call(1))
        self.backend.spent = True
        for seeker in list(self.backend.waiting):
            seeker.backend_gave_up()
        self.assert_error(client.answer, 200, -31001, 1)

    def test_refused_connection(self) -> None:
        """A request that found nobody listening is held like any other."""
        self.backend.reaches = False
        self.backend.refusals["tools/call"] = Refusal(0, "connection refused")
        client = self.ask(modern.call(1, {"n": 1}))
        self.assertEqual((client.answer.status, client.answer.json()["id"]), (200, 1))
        self.assertEqual([link.closed for link in self.backend.made], [True, True])


class InFlight(ModernCase):
    def lost(self, message: Json, *, accepted: bool = True) -> Connection:
        """The client of a request that is in flight when the backend is lost, and the backend that is back."""
        answered = self.backend.answers.get(message["method"])
        self.backend.accepts = accepted
        self.backend.answers[message["method"]] = silent
        client = self.ask(message)
        self.backend.go_down()
        if answered is not None:
            self.backend.answers[message["method"]] = answered
        self.backend.come_back()
        return client

    def test_call(self) -> None:
        """A tool call is not repeated: whether it was carried out nobody knows, and the client is told so."""
        for accepted, delivered in ((True, "yes"), (False, "maybe")):
            client = self.lost(modern.call("c"), accepted=accepted)
            error = self.assert_error(client.answer, 200, -31002, "c")
            self.assertEqual((error["data"]["delivered"], error["data"]["retrySafe"]), (delivered, False))
        self.assertEqual(len(self.sent("tools/call")), 2)

    def test_call_on_stream(self) -> None:
        """The same arrives on a stream that had begun."""
        self.backend.answers["tools/call"] = silent
        client = self.ask(modern.call(1))
        self.link.stream()
        self.backend.go_down()
        self.assertEqual(client.message(1)["error"]["code"], -31002)
        self.assertTrue(client.answer.complete)

    def test_list(self) -> None:
        """What changes nothing is asked again, and answered once."""
        client = self.lost(modern.request("tools/list", "l"))
        self.assertEqual((client.answer.status, client.answer.json()["id"]), (200, "l"))
        self.assertEqual([each["id"] for each in self.sent("tools/list")], ["l", "l"])

    def test_list_breaks_backend(self) -> None:
        """It is asked three times more at most."""
        self.backend.answers["tools/list"] = silent
        client = self.ask(modern.request("tools/list", "l"))
        for _ in range(6):
            self.house.clock.advance(10)
            self.backend.go_down()
            self.backend.come_back()
        self.assert_error(client.answer, 200, -31002, "l")
        self.assertEqual(len(self.sent("tools/list")), 4)

    def test_single_use(self) -> None:
        """Answers to questions and the state that goes with them are used up by their first delivery."""
        for name in ("inputResponses", "requestState"):
            for method in ("prompts/get", "tools/call"):
                client = self.lost(modern.request(method, name, {"name": "p", name: {}}))
                self.assert_error(client.answer, 200, -31002, name)
        self.assertEqual((len(self.sent("prompts/get")), len(self.sent("tools/call"))), (2, 2))

    def test_single_use_held(self) -> None:
        """Never sent, they are sent later like anything else."""
        self.backend.go_down()
        client = self.ask(modern.request("tools/call", 1, {"name": "echo", "inputResponses": {}, "requestState": "s"}))
        self.backend.come_back()
        self.assertEqual(client.answer.json()["id"], 1)
        self.assertEqual(len(self.sent("tools/call")), 1)


class Leaving(ModernCase):
    def test_in_flight(self) -> None:
        """A client that leaves cancels: the backend's side is closed, and nothing is sent any more."""
        for method in ("tools/call", "tools/list", "subscriptions/listen"):
            self.backend.answers[method] = silent
            client = self.ask(modern.request(method, 1, {"name": "echo", "notifications": {}}))
            link = self.link
            self.assertFalse(link.closed)
            client.hang_up()
            self.assertTrue(link.closed)
            self.assertEqual(len(link.sent), 1)
        self.assert_quiet()

    def test_on_stream(self) -> None:
        """The same where the answer has become a stream."""
        self.backend.answers["tools/call"] = silent
        client = self.ask(modern.call(1))
        self.link.stream()
        client.hang_up()
        self.assert_quiet()

    def test_held(self) -> None:
        """What is held for a client that leaves is never sent."""
        self.backend.go_down()
        clients = [self.ask(modern.call(1)), self.ask(modern.listen(2)), self.ask(modern.request("tools/list", 3))]
        self.house.clock.advance(6)
        for client in clients:
            client.hang_up()
        self.backend.come_back()
        self.assertEqual(self.backend.made, [])
        self.assert_quiet()

    def test_awaiting_another_try(self) -> None:
        """Nor is what was in flight, safe as it may be, when the client leaves during the outage."""
        self.backend.answers["tools/list"] = silent
        client = self.ask(modern.request("tools/list"))
        self.backend.go_down()
        client.hang_up()
        self.backend.come_back()
        self.house.clock.advance(60)
        self.assertEqual(len(self.sent("tools/list")), 1)

    def test_answered(self) -> None:
        """A request that is answered leaves nothing behind, though its connection stays."""
        client = self.ask(modern.call(1))
        self.assertFalse(client.closed)
        self.assert_quiet()
        client.hang_up()
        self.assert_quiet()


class SaidByBackend(ModernCase):
    def said(self, message: Json, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> Answer:
        """What the client sees of this refusal; it is asked once."""
        answer = HTTPAnswer(status, ((b"Content-Type", b"application/json"), *headers), body)
        self.backend.refusals[message["method"]] = Refusal(status, f"the backend answered {status}", answer)
        seen = self.answer_to(message)
        self.assertEqual((seen.status, seen.body), (status, body))
        return seen

    def test_statuses(self) -> None:
        """Statuses and bodies belong to the revision, so they pass unchanged, and no session is taken for lost."""
        for status, code in ((400, -32602), (400, -32020), (400, -32021), (400, -32022), (404, -32601), (410, -32000)):
            body = b'{"jsonrpc":"2.0","id":1,"error":{"code":%d,"message":"m","data":{"n": 1.0}}}' % code
            discover = () if code == -32601 else (modern.request("server/discover"),)  # what is always there
            for message in (modern.call(1), modern.request("tools/list"), *discover):
                before = len(self.sent(message["method"]))
                answer = self.said(message, status, body)
                self.assertEqual(answer.header(b"content-type"), b"application/json")
                self.assertEqual(len(self.sent(message["method"])), before + 1)
        self.assert_quiet()

    def test_others(self) -> None:
        """So does whatever else it says, if only it means the request."""
        for status in (403, 409, 413, 422, 429, 500):
            self.said(modern.call(1), status, b"no, %d" % status)

    def test_challenge(self) -> None:
        """401 arrives with its header and its body, once; the next request is asked for itself."""
        challenge = b'Bearer resource_metadata="https://as.example/x", scope="a b"'
        answer = self.said(modern.call(1), 401, b"who?", (b"WWW-Authenticate", challenge))
        self.assertEqual(answer.header(b"www-authenticate"), challenge)
        self.assertEqual(self.answer_to(modern.call(2)).status, 200)
        self.assertEqual(len(self.sent("tools/call")), 2)

    def test_challenged_link(self) -> None:
        """A challenge to the link itself is shown as well."""
        self.backend.challenge = HTTPAnswer(401, ((b"WWW-Authenticate", b"Bearer"),), b"who?")
        answer = self.answer_to(modern.call(1))
        self.assertEqual((answer.status, answer.body, answer.header(b"www-authenticate")), (401, b"who?", b"Bearer"))

    def test_gateway(self) -> None:
        """A gateway's 503 says nothing: a list is asked again after a while, a call is answered with the truth."""
        for message in (modern.call(1), modern.request("tools/list", 2)):
            self.backend.refusals[message["method"]] = Refusal(503, "503", HTTPAnswer(503, (), b""))
        self.assert_error(self.answer_to(modern.call(1)), 200, -31002, 1)
        client = self.ask(modern.request("tools/list", 2))
        self.assertFalse(client.started)
        self.house.clock.advance(1)
        self.assertEqual((client.answer.status, client.answer.json()["id"]), (200, 2))

    def test_refused_on_stream(self) -> None:
        """On a stream that has begun the backend's error arrives as a message."""
        self.backend.go_down()
        client = self.ask(modern.call("x"))
        self.house.clock.advance(6)
        body = encoded(messages.error(None, -32021, "needs roots"))
        self.backend.refusals["tools/call"] = Refusal(400, "400", HTTPAnswer(400, (), body))
        self.backend.come_back()
        self.assertEqual(client.message("x")["error"], {"code": -32021, "message": "needs roots"})
        self.assertTrue(client.answer.complete)


class Discover(ModernCase):
    def discover(self, identity: Any = 1, *headers: tuple[bytes, bytes]) -> Connection:
        """Ask what the server is."""
        return self.ask(modern.request("server/discover", identity), *headers)

    def test_asked(self) -> None:
        """While the backend is there, it is asked each time."""
        for identity in (1, 2):
            self.assertEqual(self.discover(identity).answer.json(), messages.result(identity, DISCOVERED))
        self.assertEqual(len(self.sent("server/discover")), 2)

    def test_unknown(self) -> None:
        """With nothing known the request is held, and then it is 503 with Retry-After: no verdict on the revision."""
        self.backend.go_down()
        client = self.discover("d")
        self.house.clock.advance(HOLD - 1)
        self.house.modern.keep_alive()
        self.assertFalse(client.started)
        self.house.clock.advance(2)
        self.assert_error(client.answer, 503, -31001, "d")
        self.assertTrue(client.answer.header(b"retry-after"))
        self.assertEqual(client.answer.header(b"content-type"), b"application/json")

    def test_unknown_then_back(self) -> None:
        """Held long, it is answered with a status and one message all the same."""
        self.backend.go_down()
        client = self.discover("d")
        self.house.clock.advance(HOLD - 1)
        self.backend.come_back()
        self.assertEqual((client.answer.status, client.answer.json()), (200, messages.result("d", DISCOVERED)))

    def test_of_another(self) -> None:
        """What one principal was told is never shown to another, nor to nobody in particular."""
        self.backend.answers["server/discover"] = lambda asked: messages.result(asked["id"], {"of": "alice"})
        self.discover(1, ALICE)
        self.backend.go_down()
        others = [self.discover(2, BOB), self.discover(3), self.discover(4, (b"authorization", b"Bearer alice"))]
        self.house.clock.advance(HOLD + 1)
        for client in others:
            self.assertEqual(client.answer.status, 503)
            self.assertNotIn(b"alice", client.answer.body)

    def test_kept_of_a_discover_on_its_way(self) -> None:
        """One that waits is answered from what became known to its principal meanwhile, when its time is up."""
        self.rebuild(policy=Policy(hold_timeout=3.0))
        self.discover(1, ALICE)
        self.backend.opens = False
        client = self.discover("late", ALICE)
        self.house.clock.advance(4)
        self.assertEqual((client.answer.status, client.answer.json()), (200, messages.result("late", DISCOVERED)))

    def test_many_principals(self) -> None:
        """What is kept has a bound: whoever was longest ago is forgotten."""
        self.rebuild(policy=Policy(hold_timeout=3.0))
        self.patch(outlets, "MAX_DISCOVERED", 2)
        for name in (b"a", b"b", b"a", b"c"):
            self.discover(1, (b"x-api-key", name))
        self.backend.opens = False
        clients = [self.discover(2, (b"x-api-key", name)) for name in (b"a", b"b", b"c")]
        self.house.clock.advance(4)
        self.assertEqual([client.answer.status for client in clients], [200, 503, 200])

    def test_stream(self) -> None:
        """The backend may answer it with a stream; the client gets one message, for it needs the status."""
        self.backend.answers["server/discover"] = silent
        client = self.discover(1)
        self.link.stream()
        self.assertFalse(client.started)
        self.link.tell(messages.result(1, DISCOVERED))
        self.assertEqual(client.answer.json(), messages.result(1, DISCOVERED))

    def test_shutdown(self) -> None:
        """A proxy that stops says 503 to whoever waits for it."""
        self.backend.go_down()
        client = self.discover(1)
        for session in self.house.registry:
            session.close()
        self.assert_error(client.answer, 503, -31001, 1)


class Listen(ModernCase):
    def told(self, client: Connection) -> list[str]:
        """The methods of what a client got."""
        return [each.get("method", "answer") for each in client.messages]

    def test_open(self) -> None:
        """A subscription is a stream that begins with the acknowledgement and passes on what comes."""
        client = self.ask(modern.listen("s", toolsListChanged=True))
        changed = modern.told(TOOLS_CHANGED, "s")
        self.link.tell(changed)
        self.assertEqual(client.messages, [modern.acknowledged("s", toolsListChanged=True), changed])
        self.assertFalse(client.answer.complete)

    def test_over_a_restart(self) -> None:
        """It survives: no second acknowledgement, and then the news that everything may have changed."""
        filter_: Json = {"toolsListChanged": True, "resourceSubscriptions": ["file:///a", "file:///b"]}
        client = self.ask(modern.listen(1, **filter_))
        for _ in range(5):
            before = len(client.messages)
            self.house.clock.advance(10)
            self.backend.go_down()
            self.assertFalse(client.answer.complete)
            self.backend.come_back()
            expected = [
                modern.told(TOOLS_CHANGED, 1),
                *(modern.told(UPDATED, 1, uri=uri) for uri in filter_["resourceSubscriptions"]),
            ]
            self.assertEqual(client.messages[before:], expected)
        self.assertEqual(self.told(client).count(modern.ACKNOWLEDGED), 1)
        self.assertEqual(len(self.sent("subscriptions/listen")), 6)
        self.link.tell(modern.told(TOOLS_CHANGED, 1))
        self.assertEqual(client.messages[-1], modern.told(TOOLS_CHANGED, 1))

    def test_identities(self) -> None:
        """Two subscriptions, 1 and "1", keep value and type of their ids, before and after a restart."""
        clients = {identity: self.ask(modern.listen(identity, toolsListChanged=True)) for identity in (1, "1")}
        for link, identity in zip(self.backend.made, clients, strict=True):
            link.tell(modern.told(TOOLS_CHANGED, identity))
        self.backend.go_down()
        self.backend.come_back()
        for identity, client in clients.items():
            seen = [each["params"]["_meta"][modern.META_SUBSCRIPTION] for each in client.messages]
            self.assertEqual(seen, [identity] * 3)
            self.assertEqual({type(each) for each in seen}, {type(identity)})

    def test_less(self) -> None:
        """A backend that honours less than was promised ends it, with a complete result and its id."""
        for identity in (1, "1"):
            client = self.ask(modern.listen(identity, toolsListChanged=True, promptsListChanged=True))
            self.backend.go_down()
            self.backend.answers["subscriptions/listen"] = lambda asked: modern.acknowledged(
                asked["id"], promptsListChanged=True
            )
            self.backend.come_back()
            result = {"resultType": "complete", "_meta": {modern.META_SUBSCRIPTION: identity}}
            self.assertEqual(client.messages[1:], [messages.result(identity, result)])
            self.assertTrue(client.answer.complete)
            self.assert_quiet()
            self.ready()

    def test_tasks(self) -> None:
        """One for tasks is made again; what became of them meanwhile is for a backend to tell that knows them still."""
        client = self.ask(modern.listen("t", taskIds=["a", "b"]))
        self.backend.go_down()
        self.backend.come_back()
        self.assertEqual(client.messages, [modern.acknowledged("t", taskIds=["a", "b"])])
        again = self.sent("subscriptions/listen")[-1]
        self.assertEqual(again["params"]["notifications"], {"taskIds": ["a", "b"]})
        done = modern.told("notifications/tasks", "t", taskId="a", status="completed")
        self.link.tell(done)
        self.assertEqual(client.messages[1:], [done])

    def test_tasks_over(self) -> None:
        """Once all tasks are over, the end that the backend makes is the client's as well, however long it lasted."""
        for more in ({}, {"toolsListChanged": True}):
            client = self.ask(modern.listen(1, taskIds=["a", "b"], **more))
            statuses = (("a", "completed"), ("b", "input_required"), ("b", "failed"))
            for task, status in statuses:
                self.house.clock.advance(30)
                self.link.tell(modern.told("notifications/tasks", 1, taskId=task, status=status))
            self.link.tell(messages.result(1, {"resultType": "complete"}))
            self.assertEqual(self.told(client).count("notifications/tasks"), len(statuses))
            self.assertEqual(client.answer.complete, not more, "tools may change still")

    def test_tasks_go_on(self) -> None:
        """While one of them is not over, the end is that of a backend which stops."""
        client = self.ask(modern.listen(1, taskIds=["a", "b"]))
        self.house.clock.advance(30)
        self.link.tell(modern.told("notifications/tasks", 1, taskId="a", status="cancelled"))
        self.link.tell(modern.told("notifications/tasks", 1, taskId="b", status="working"))
        self.link.tell(messages.result(1, {"resultType": "complete"}))
        self.assertFalse(client.answer.complete)

    def test_tasks_lost(self) -> None:
        """A backend that has lost one of the tasks ends it, with nothing said of the others."""
        for known in (["a"], ["b"], []):
            client = self.ask(modern.listen(1, taskIds=["a", "b"]))
            self.backend.go_down()
            self.backend.answers["subscriptions/listen"] = lambda asked, known=known: modern.acknowledged(
                asked["id"], taskIds=known
            )
            self.backend.come_back()
            result = {"resultType": "complete", "_meta": {modern.META_SUBSCRIPTION: 1}}
            self.assertEqual(client.messages[1:], [messages.result(1, result)])
            self.assertTrue(client.answer.complete)
            self.assert_quiet()
            self.ready()

    def test_ended_by_backend(self) -> None:
        """A backend that ends it properly, and at once, has the last word."""
        client = self.ask(modern.listen(1, toolsListChanged=True))
        self.link.tell(messages.result(1, {"resultType": "complete"}))
        self.assertEqual(client.messages[-1], messages.result(1, {"resultType": "complete"}))
        self.assertTrue(client.answer.complete)
        self.assert_quiet()

    def test_ended_by_a_stopping_backend(self) -> None:
        """One that has lasted is ended because the backend stops: the client need not know, as after any restart."""
        client = self.ask(modern.listen(1, toolsListChanged=True))
        for _ in range(2):
            self.house.clock.advance(30)
            self.link.tell(messages.result(1, {"resultType": "complete"}))
            self.backend.go_down()
            self.house.clock.advance(HOLD)
            self.assertEqual(self.told(client).count("answer"), 0)
            self.backend.come_back()
            self.house.clock.advance(10)
        self.assertEqual(client.messages[1:], [modern.told(TOOLS_CHANGED, 1)] * 2)
        self.assertEqual(len(self.sent("subscriptions/listen")), 3)

    def test_ended_by_a_tired_backend(self) -> None:
        """A backend that goes on without it is asked again after a while."""
        client = self.ask(modern.listen(1, toolsListChanged=True))
        self.house.clock.advance(30)
        self.link.tell(messages.result(1, {"resultType": "complete"}))
        self.assertEqual(len(self.sent("subscriptions/listen")), 1)
        for _ in range(100):
            if len(self.sent("subscriptions/listen")) == 1:
                self.house.clock.advance(0.1)
        self.assertEqual(client.messages[1:], [modern.told(TOOLS_CHANGED, 1)])
        self.link.tell(messages.result(1, {"resultType": "complete"}))
        self.assertTrue(client.answer.complete)

    def test_refused_by_next(self) -> None:
        """A next backend that does not know the method ends it with its own error."""
        client = self.ask(modern.listen(1, toolsListChanged=True))
        self.backend.go_down()
        body = encoded(messages.error(1, -32601, "no such method"))
        self.backend.refusals["subscriptions/listen"] = Refusal(404, "404", HTTPAnswer(404, (), body))
        self.backend.come_back()
        self.assertEqual(client.message(1)["error"]["code"], -32601)
        self.assertTrue(client.answer.complete)

    def test_no_deadline(self) -> None:
        """An open one waits as long as the outage lasts, budget or not, and is kept alive by comments."""
        client = self.ask(modern.listen(1, toolsListChanged=True))
        self.backend.go_down()
        for seeker in list(self.backend.waiting):
            seeker.backend_gave_up()
        self.backend.spent = True
        for _ in range(100):
            self.house.clock.advance(HOLD)
            self.house.modern.keep_alive()
        self.assertEqual((len(client.messages), count_comments(client.answer.body)), (1, 100))
        self.assertFalse(client.answer.complete)
        self.backend.come_back()
        self.assertEqual(client.messages[1:], [modern.told(TOOLS_CHANGED, 1)])

    def test_not_yet_open(self) -> None:
        """One that was never acknowledged is a request like any other: held, and answered when its time is up."""
        self.backend.go_down()
        client = self.ask(modern.listen(1, toolsListChanged=True))
        self.house.clock.pump([6, HOLD])
        self.assertEqual(client.message(1)["error"]["code"], -31001)
        self.assertTrue(client.answer.complete)

    def test_first_acknowledged_late(self) -> None:
        """One that was lost before it was acknowledged is acknowledged by the next backend."""
        self.backend.answers["subscriptions/listen"] = silent
        client = self.ask(modern.listen(1, toolsListChanged=True))
        self.backend.go_down()
        self.ready()
        self.backend.come_back()
        self.assertEqual(client.messages, [modern.acknowledged(1, toolsListChanged=True)])

    def test_comments(self) -> None:
        """A silent stream shows that it lives; one that does not read gets none."""
        quick, slow = (self.ask(modern.listen(n, toolsListChanged=True)) for n in (1, 2))
        slow.stop_reading()
        for _ in range(3):
            self.house.modern.keep_alive()
        self.assertEqual([count_comments(each.answer.body) for each in (quick, slow)], [3, 0])
        quick.hang_up()
        self.house.modern.keep_alive()

    def test_slow_over_a_restart(self) -> None:
        """The next link is paused as well for a client that does not read."""
        client = self.ask(modern.listen(1, toolsListChanged=True))
        client.stop_reading()
        self.backend.go_down()
        self.backend.come_back()
        self.assertEqual([link.paused for link in self.backend.made], [True, True])
        client.read_again()
        self.assertFalse(self.link.paused)

    def test_client_leaves(self) -> None:
        """Closing the stream ends it at the backend, or there is nothing to be asked again."""
        client, other = (self.ask(modern.listen(n, toolsListChanged=True)) for n in (1, 2))
        first, second = self.backend.made
        client.hang_up()
        self.assertEqual((first.closed, second.closed), (True, False))
        self.backend.go_down()
        other.hang_up()
        self.backend.come_back()
        self.assertEqual(len(self.sent("subscriptions/listen")), 2)


class Passing(ModernCase):
    def test_bound(self) -> None:
        """There is a bound to how many requests are under way, and whoever is answered makes room."""
        self.rebuild(max_sessions=2)
        self.backend.answers["tools/call"] = silent
        clients = [self.ask(modern.call(n)) for n in (1, 2)]
        answer = self.ask(modern.call(3)).answer
        self.assert_json_error(answer, 503, -31004)
        self.assertTrue(answer.header(b"retry-after"))
        self.assertFalse(any(client.started for client in clients))
        self.link.tell(messages.result(2, {}))
        self.assertFalse(self.ask(modern.call(4)).started)
        clients[0].hang_up()
        self.assertFalse(self.ask(modern.call(5)).started)
        self.assert_json_error(self.ask(modern.call(6)).answer, 503, -31004)

    def test_not_among_sessions(self) -> None:
        """They take no session's place, nor do sessions take theirs, and nobody can find them by an empty id."""
        self.rebuild(max_sessions=1)
        self.backend.answers["tools/call"] = silent
        self.ask(modern.call(1))
        self.assertEqual((len(self.house.registry), len(list(self.house.registry))), (0, 1))
        stream = self.house.initialized()
        self.assertEqual((stream.answer.status, len(self.house.registry)), (200, 1))
        answer = self.house.post("/mcp", messages.request("tools/list"), (b"mcp-session-id", b""))
        self.assertEqual(answer.status, 400)
        self.house.registry.expire(self.house.clock.seconds() + 1e6)
        self.assertEqual(len(list(self.house.registry)), 2)

    def test_freed(self) -> None:
        """Answered, refused, timed out, left: nothing is kept of any of them."""
        self.ask(modern.call(1))
        self.backend.refusals["tools/call"] = Refusal(429, "429", HTTPAnswer(429, (), b"{}"))
        self.ask(modern.call(2))
        self.backend.answers["tools/call"] = silent
        self.ask(modern.call(3)).hang_up()
        self.backend.go_down()
        self.ask(modern.call(4))
        self.ask(modern.request("server/discover", 5))
        self.house.clock.advance(HOLD + 1)
        self.assert_quiet()

    def test_shutdown(self) -> None:
        """A proxy that stops answers whoever waits, and ends every stream."""
        self.backend.answers["tools/call"] = silent
        flying, listening = self.ask(modern.call(1)), self.ask(modern.listen(2, toolsListChanged=True))
        self.backend.opens = False
        held = self.ask(modern.call(3))
        for session in self.house.registry:
            session.close()
        self.assert_error(flying.answer, 200, -31002, 1)
        self.assert_error(held.answer, 200, -31001, 3)
        self.assertTrue(listening.answer.complete)
        self.assert_quiet()
