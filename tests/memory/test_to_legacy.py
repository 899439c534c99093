"""Clients of revision 2026-07-28 and a backend that knows only older ones: what each message becomes."""

from __future__ import annotations

from typing import Any

from mcp_proxy.session import group as groups
from mcp_proxy.session import pool as pools
from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.room import Room
from tests.memory.house_case import ALICE, BOB
from tests.memory.test_modern import ModernCase, silent
from tests.support import messages, modern
from tests.support.http1 import Answer
from tests.support.memory import Connection, FakeLink
from tests.support.messages import Json

INFO = {"name": "modern-client", "version": "9"}
LEGACY = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]
SERVER = {"name": "scripted", "version": "1"}
SERVER_META = {"io.modelcontextprotocol/serverInfo": SERVER}
TOOLS_CHANGED = "notifications/tools/list_changed"
UPDATED = "notifications/resources/updated"
ALL = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}


def said(**capabilities: Json) -> Json:
    """What a client says of itself."""
    return {modern.META_CAPABILITIES: capabilities, "io.modelcontextprotocol/clientInfo": INFO}


def able(method: str = "tools/call", identity: Any = 1, params: Json | None = None, **more: Any) -> Json:
    """A request of a client that answers all kinds of questions."""
    params = {"name": "echo", "arguments": {}} if params is None else params
    return modern.request(method, identity, params, **{**said(**ALL), **more})


def retry(asked: Json, identity: Any, state: str, **responses: Json) -> Json:
    """The same once more, with answers."""
    return {**asked, "id": identity, "params": {**asked["params"], "requestState": state, "inputResponses": responses}}


class BridgeCase(ModernCase):
    """A house whose backend knows only older revisions."""

    correlates = True

    def ready(self) -> None:
        """Nothing of the revision is known here."""
        self.backend.is_legacy = True
        self.backend.correlates = self.correlates

    @property
    def links(self) -> list[FakeLink]:
        """The links of sessions."""
        return [link for link in self.backend.made if not link.stateless]

    @property
    def link(self) -> FakeLink:
        """The newest link of a session."""
        return self.links[-1]

    def sent(self, method: str) -> list[Json]:
        """All messages of this method that the backend has got in sessions."""
        return [each for link in self.links for each in link.sent if each.get("method") == method]

    def result_of(self, message: Json, *headers: tuple[bytes, bytes]) -> Json:
        """The result of a request that is answered at once."""
        answer = self.answer_to(message, *headers)
        self.assertEqual((answer.status, answer.json()["id"]), (200, message["id"]), answer.body)
        result: Json = answer.json()["result"]
        return result

    def error_of(self, answer: Answer, status: int, code: int) -> Json:
        """The error in an answer."""
        self.assertEqual((answer.status, answer.json()["error"]["code"]), (status, code), answer.body)
        error: Json = answer.json()["error"]
        return error

    def call(self, message: Json | None = None, *headers: tuple[bytes, bytes]) -> tuple[Connection, Json]:
        """A call that the backend does not answer yet, and what it has got of it."""
        message = able() if message is None else message
        self.backend.answers[message["method"]] = silent
        client = self.ask(message, *headers)
        return client, self.sent(message["method"])[-1]

    def question(self, at: Json, method: str = "elicitation/create", identity: Any = 7, **params: Any) -> None:
        """The backend asks something on the stream of a call."""
        link = next(link for link in reversed(self.links) if at in link.sent)
        about = at["id"] if link.correlates else None
        link.tell(messages.request(method, identity, params), about)

    def asked(self, client: Connection) -> tuple[dict[str, Json], str]:
        """What a client is asked, and the state that goes with it."""
        self.house.clock.advance(groups.ASK_WAIT)
        self.assertTrue(client.answer.complete)
        value = client.messages[-1] if client.events else client.answer.json()
        result = value["result"]
        self.assertEqual(result["resultType"], "input_required")
        return result["inputRequests"], result["requestState"]

    def answers_to(self, identity: Any) -> list[Json]:
        """What the backend was answered to its own requests."""
        return [
            each for link in self.links for each in link.sent if "method" not in each and each.get("id") == identity
        ]

    def tearDown(self) -> None:
        """Nobody is left waiting."""
        super().tearDown()
        self.assertEqual((len(self.house.pool), self.house.pool.parked), (0, 0))


class Era(BridgeCase):
    def test_found_out(self) -> None:
        """The first request is asked as it came; refused unseen, it is asked in a session, and so are the next."""
        self.assertEqual(self.result_of(modern.call("a"))["resultType"], "complete")
        self.result_of(modern.call("b"))
        self.assertEqual([link.stateless for link in self.backend.made], [True, False])
        self.assertEqual(len(self.sent("tools/call")), 2)

    def test_verdicts(self) -> None:
        """Only what speaks of versions, sessions and paths is a verdict; the rest is for the client."""
        own, other = messages.error(1, -32602), messages.error("server-error", -32600)
        for status, body, is_legacy in (
            (400, messages.encoded(other), True),
            (404, b"Not Found", True),
            (405, b"", True),
            (400, messages.encoded(own), False),
            (400, messages.encoded(messages.error(None, -32020)), False),
            (400, messages.encoded(messages.error(1, -32000)), True),
            (401, b"", False),
            (403, b"", False),
            (500, b"", False),
            (429, b"", False),
        ):
            self.house.close()
            self.rebuild()
            self.backend.is_legacy = False
            self.backend.refusals["tools/call"] = Refusal(status, "no", HTTPAnswer(status, (), body))
            answer = self.answer_to(modern.call(1))
            self.assertEqual(self.house.modern.era.is_legacy, is_legacy, (status, body))
            self.assertEqual(answer.status, 200 if is_legacy else status)

    def test_discover_unknown(self) -> None:
        """A backend that answers anybody, but has no server/discover, is an older one."""
        self.backend.is_legacy = False
        self.result_of(modern.request("server/discover"))
        self.assertEqual([link.stateless for link in self.backend.made], [True, False])

    def test_forgotten(self) -> None:
        """What is held in an outage goes the way that the returning backend knows."""
        self.backend.go_down()
        client = self.ask(modern.call(1))
        self.house.clock.advance(6)
        self.backend.come_back()
        self.assertEqual(client.message(1)["result"]["resultType"], "complete")
        self.house.modern.era.forget()
        self.backend.is_legacy = False
        self.assertNotIn("resultType", self.result_of(modern.call(2)))


class Requests(BridgeCase):
    def test_handshake(self) -> None:
        """The session begins with what the client says of itself in each request."""
        self.result_of(modern.request("server/discover", **said(**ALL)))
        self.result_of(able())
        initialize, initialized = self.link.sent[:2]
        expected = {"protocolVersion": "2025-11-25", "capabilities": ALL, "clientInfo": INFO}
        self.assertEqual(initialize["params"], expected)
        self.assertEqual(initialized["method"], "notifications/initialized")
        names = [name.lower() for outgoing in self.link.outgoing for name, _ in (*outgoing.headers, *self.link.headers)]
        self.assertEqual([name for name in names if name.startswith(b"mcp-")], [])

    def test_envelope(self) -> None:
        """What only the revision has stays here; the rest crosses as it is."""
        more = {"traceparent": "00-1", "progressToken": "p", "io.modelcontextprotocol/logLevel": "error"}
        self.result_of(able(params={"name": "echo", "arguments": {"n": 1.0}, "task": {}}, **more), ALICE)
        (sent,) = self.sent("tools/call")
        self.assertEqual(sent["params"]["_meta"], {"traceparent": "00-1", "progressToken": sent["id"]})
        self.assertEqual((sent["params"]["arguments"], "task" in sent["params"]), ({"n": 1.0}, False))
        (outgoing,) = [each for each in self.link.outgoing if each.method == "tools/call"]
        names = [name.lower() for name, _ in outgoing.headers]
        self.assertIn(ALICE[0], names)
        self.assertEqual([name for name in names if name.startswith(b"mcp-")], [])

    def test_results(self) -> None:
        """Results say that they are complete, and how long they hold where that has to be said."""
        for method, params, is_cacheable in (
            ("tools/list", {}, True),
            ("resources/list", {}, True),
            ("resources/read", {"uri": "a:1"}, True),
            ("prompts/get", {"name": "p"}, False),
            ("completion/complete", {}, False),
        ):
            self.backend.answers[method] = lambda asked: messages.result(asked["id"], {"x": 1.0, "_meta": {"k": 1}})
            result = self.result_of(modern.request(method, "i", params))
            expected = {"x": 1.0, "resultType": "complete", "_meta": {"k": 1, **SERVER_META}}
            more = {"ttlMs": 0, "cacheScope": "private"} if is_cacheable else {}
            self.assertEqual(result, {**expected, **more}, method)

    def test_discover(self) -> None:
        """The handshake tells what there is to discover; what is not translated is not among it."""
        extensions = {"io.modelcontextprotocol/tasks": {}, "com.example/other": {}}
        capabilities = {"tools": {}, "tasks": {"list": {}}, "logging": {}, "extensions": extensions}
        answer = {**messages.initialize_result(capabilities), "instructions": "Do."}
        self.backend.answers["initialize"] = lambda asked: messages.result(asked["id"], answer)
        for _ in range(2):
            self.assertEqual(
                self.result_of(modern.request("server/discover")),
                {
                    "supportedVersions": ["2026-07-28", *LEGACY],
                    "capabilities": {"tools": {"listChanged": True}, "logging": {}},
                    "instructions": "Do.",
                    "resultType": "complete",
                    "ttlMs": 0,
                    "cacheScope": "private",
                    "_meta": SERVER_META,
                },
            )
        self.assertEqual(len(self.sent("initialize")), 1)
        self.backend.go_down()
        self.assertEqual(self.result_of(modern.request("server/discover"))["instructions"], "Do.")

    def test_errors(self) -> None:
        """Errors have the codes of the revision, and its HTTP statuses."""
        for code, status, shown in (
            (-32601, 404, -32601),
            (-32602, 400, -32602),
            (-32603, 200, -32603),
            (-32002, 400, -32602),
            (-32042, 400, -32021),
            (7, 200, 7),
        ):
            self.backend.answers["resources/read"] = lambda asked, code=code: messages.error(asked["id"], code)
            answer = self.answer_to(modern.request("resources/read", "r", {"uri": "a:1"}))
            error = self.error_of(answer, status, shown)
            self.assertEqual(answer.json()["id"], "r")
            if code == -32002:
                self.assertEqual(error["data"]["uri"], "a:1")

    def test_removed(self) -> None:
        """What the revision does not have is not there, though the backend has it."""
        self.result_of(modern.call())
        for method in ("initialize", "ping", "logging/setLevel", "resources/subscribe", "tasks/get", "tasks/list"):
            answer = self.answer_to(modern.request(method, 5, {"taskId": "t"}))
            self.error_of(answer, 404, -32601)
            self.assertEqual(answer.json()["id"], 5)
        self.assertEqual(len(self.sent("ping")), 0)

    def test_header_names(self) -> None:
        """A list of tools asks for no headers that repeat arguments: nobody would compare them."""
        schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}, "x-mcp-header": {}}}
        tools = [{"name": "t", "inputSchema": schema}]
        self.backend.answers["tools/list"] = lambda asked: messages.result(asked["id"], {"tools": tools})
        shown = self.result_of(modern.request("tools/list"))["tools"][0]["inputSchema"]
        self.assertEqual(shown["properties"], {"a": {"type": "string"}, "x-mcp-header": {}})

    def test_same_ids_and_tokens(self) -> None:
        """Two requests under one id, with one progress token, are told apart, and each hears of itself."""
        one, at_one = self.call(able(progressToken="p"))
        two, at_two = self.call(able(progressToken="p"))
        self.assertNotEqual(at_one["id"], at_two["id"])
        for at, number in ((at_two, 2), (at_one, 1)):
            token = at["params"]["_meta"]["progressToken"]
            self.link.tell(
                messages.notification("notifications/progress", {"progressToken": token, "progress": number})
            )
            self.link.tell(messages.result(at["id"], {"n": number}))
        for client, number in ((one, 1), (two, 2)):
            progress, answer = client.messages
            self.assertEqual(progress["params"], {"progressToken": "p", "progress": number})
            self.assertEqual((answer["id"], answer["result"]["n"]), (1, number))

    def test_no_token(self) -> None:
        """Who gave no token hears of no progress, and gets one message."""
        client, at = self.call()
        self.link.stream(at["id"])
        progress = {"progressToken": at["id"], "progress": 1}
        self.link.tell(messages.notification("notifications/progress", progress), at["id"])
        self.link.tell(messages.result(at["id"], {}))
        self.assertEqual(client.answer.header(b"content-type"), b"application/json")

    def test_long(self) -> None:
        """What takes long becomes a stream that lives."""
        client, at = self.call()
        self.house.modern.keep_alive()
        self.assertFalse(client.started)
        self.house.modern.keep_alive()
        self.assertEqual(client.answer.header(b"content-type"), b"text/event-stream")
        self.link.tell(messages.error(at["id"], -32601))
        self.assertEqual((client.answer.status, client.message(1)["error"]["code"]), (200, -32601))

    def test_leaving(self) -> None:
        """A client that leaves cancels at the backend, and what comes of the call still is dropped."""
        client, at = self.call()
        client.hang_up()
        (cancelled,) = self.sent("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], at["id"])
        self.question(at)
        self.assertEqual(self.answers_to(7)[0]["error"]["code"], -32601)
        self.link.tell(messages.result(at["id"], {}))
        self.assertEqual(len(self.house.pool), 1)

    def test_leaving_early(self) -> None:
        """A client that leaves before the handshake is over has sent nothing."""
        self.backend.answers["initialize"] = silent
        client = self.ask(modern.call())
        client.hang_up()
        initialize = self.link.sent[-1]
        self.link.tell(messages.result(initialize["id"], messages.initialize_result()))
        self.assertEqual(self.sent("tools/call"), [])

    def test_slow_client(self) -> None:
        """A client that does not read holds up its own call and no other."""
        (one, at_one), (two, _) = self.call(able(progressToken=1)), self.call(able(progressToken=2))
        for at in (at_one,):
            progress = {"progressToken": at["id"], "progress": 1}
            self.link.tell(messages.notification("notifications/progress", progress), at["id"])
        one.stop_reading()
        self.assertEqual(len(self.link.pausers), 1)
        one.hang_up()
        self.assertEqual(self.link.pausers, set())
        two.hang_up()


class Handshake(BridgeCase):
    def test_shown(self) -> None:
        """Operators see how many sessions the pool has, beside those that clients know of."""

        def shown() -> tuple[int, int]:
            proxy = self.house.ask("GET", "/health").answer.json()["proxy"]
            page = self.house.ask("GET", "/metrics").answer.body.decode()
            self.assertIn(f"\nmcp_proxy_pooled_sessions {float(proxy['pooled_sessions'])}\n", page)
            return proxy["sessions"], proxy["pooled_sessions"]

        self.assertEqual(shown(), (0, 0))
        self.result_of(modern.call())
        self.result_of(modern.call(), (b"authorization", b"Bearer other"))
        self.assertEqual(shown(), (0, 2))
        self.house.initialized()
        self.assertEqual(shown(), (1, 2))

    def test_shared(self) -> None:
        """Those who say the same of themselves share a session; others do not."""
        for message, headers in (
            (able(), (ALICE,)),
            (able("tools/list", 2), (ALICE,)),
            (modern.call(3), (ALICE,)),
            (able(), (BOB,)),
            (able(), ()),
        ):
            self.result_of(message, *headers)
        self.assertEqual(len(self.sent("initialize")), 4)
        self.assertEqual(len(self.house.registry), 0)
        self.assertEqual(len(self.house.pool), 4)

    def test_waits(self) -> None:
        """Requests wait for the handshake, in their order, and there is one."""
        self.backend.answers["initialize"] = silent
        clients = [self.ask(modern.call(n)) for n in range(3)]
        self.assertEqual([each["method"] for each in self.link.sent], ["initialize"])
        self.link.tell(messages.result(self.link.sent[0]["id"], messages.initialize_result()))
        self.assertEqual([client.answer.json()["id"] for client in clients], [0, 1, 2])
        self.assertEqual(len(self.sent("initialize")), 1)

    def test_too_long(self) -> None:
        """A handshake that is not answered in time answers whoever waits, and the next request begins another."""
        self.backend.answers["initialize"] = silent
        clients = [self.ask(modern.call(n)) for n in range(2)]
        discover = self.ask(modern.request("server/discover", 9))
        self.house.clock.advance(Policy().hold_timeout)
        for number, client in enumerate(clients):
            error = self.assert_error(client.answer, 200, -31001, number)
            self.assertEqual((error["data"]["delivered"], error["data"]["method"]), ("no", "tools/call"))
        self.assert_error(discover.answer, 503, -31001, 9)
        self.house.clock.advance(0)
        self.assertEqual(len(self.house.pool), 0)
        self.backend.answers["initialize"] = lambda asked: messages.result(asked["id"], messages.initialize_result())
        self.result_of(modern.call())

    def test_refused(self) -> None:
        """A handshake that is refused answers whoever waits with why."""
        self.backend.answers["initialize"] = lambda asked: messages.error(asked["id"], -32602, "too young")
        error = self.assert_error(self.answer_to(modern.call(5)), 200, -32603, 5)
        self.assertIn("too young", error["message"])
        self.house.clock.advance(0)
        self.assertEqual(len(self.house.pool), 0)

    def test_challenge(self) -> None:
        """A backend that wants another credential is heard by the client, as it said it."""
        challenge = HTTPAnswer(401, ((b"WWW-Authenticate", b"Bearer x"),), b"who?")
        self.backend.refusals["initialize"] = Refusal(401, "401", challenge)
        answer = self.answer_to(modern.call(5))
        self.assertEqual((answer.status, answer.body), (401, b"who?"))
        self.house.clock.advance(0)
        self.result_of(modern.call())
        self.backend.refusals["tools/call"] = Refusal(401, "401", challenge)
        self.assertEqual(self.answer_to(modern.call(6)).header(b"www-authenticate"), b"Bearer x")

    def test_not_remembered(self) -> None:
        """A client of an older revision that comes without a handshake is not served with this one."""
        self.result_of(modern.call(1), ALICE)
        stream = self.house.stream(ALICE)
        self.house.post(stream.path, messages.call(3), ALICE)
        self.assertEqual(stream.message(3)["error"]["code"], -31003)

    def test_full(self) -> None:
        """There are only so many sessions: one that nobody needs makes room, else there is none."""
        self.house.close()
        self.rebuild(max_sessions=2)
        for key in (b"a", b"b", b"c"):
            self.result_of(modern.call(), (b"x-api-key", key))
        self.assertEqual(len(self.house.pool), 2)
        for key in (b"d", b"e"):
            self.call(able(), (b"x-api-key", key))
        answer = self.answer_to(able(), (b"x-api-key", b"f"))
        self.error_of(answer, 503, -31004)

    def test_expired(self) -> None:
        """A session that nobody needs ends after a while; one in use does not."""
        self.result_of(modern.call(), ALICE)
        self.call(able(), BOB)
        self.house.clock.advance(1800)
        self.house.pool.expire(self.house.clock.seconds())
        self.assertEqual(len(self.house.pool), 1)
        self.assertEqual([link.closed for link in self.links], [True, False])

    def test_too_many_wait(self) -> None:
        """Only so many wait for the handshake."""
        self.house.close()
        self.rebuild(policy=Policy(max_held=2))
        self.backend.answers["initialize"] = silent
        for number in range(2):
            self.ask(modern.call(number))
        self.assert_error(self.answer_to(modern.call(9)), 200, -31004, 9)

    def test_too_much_waits(self) -> None:
        """What waits for a handshake counts among all that is held, and no longer than it waits."""
        self.house.close()
        room = Room(1500)
        self.rebuild(policy=Policy(room=room))
        self.backend.answers["initialize"] = silent
        leaving = self.ask(modern.call(1, {"text": "x" * 500}))
        self.ask(modern.call(2, {"text": "x" * 500}))
        self.assertGreater(room.used, 1000)
        self.assert_error(self.answer_to(modern.call(9, {"text": "x" * 500})), 200, -31004, 9)
        self.assertEqual(self.house.refusals, {"too_much_held_in_all": 1})
        leaving.hang_up()
        self.assertLess(room.used, 1000)


class Questions(BridgeCase):
    def test_elicitation(self) -> None:
        """A question answers the call's POST; the retry brings the answer to the very call that waits for it."""
        client, at = self.call()
        self.question(at, message="Name?", requestedSchema={"type": "object"}, mode="form")
        requests, state = self.asked(client)
        (name,) = requests
        self.assertEqual(
            requests[name],
            {
                "method": "elicitation/create",
                "params": {"message": "Name?", "requestedSchema": {"type": "object"}, "mode": "form"},
            },
        )
        response = {"action": "accept", "content": {"n": 1}}
        again = self.ask(retry(able(), 2, state, **{name: response}))
        self.assertEqual(self.answers_to(7), [messages.result(7, response)])
        self.assertFalse(again.started)
        self.link.tell(messages.result(at["id"], {"content": []}), at["id"])
        self.assertEqual(again.answer.json()["result"]["resultType"], "complete")
        self.assertEqual(again.answer.json()["id"], 2)
        self.assertEqual(len(self.sent("tools/call")), 1)

    def test_several(self) -> None:
        """Several questions, also such that come while the client is away; answers that are missing are asked for."""
        client, at = self.call()
        for identity in (8, 9):
            self.question(at, identity=identity)
        self.assertEqual(len(self.asked(client)[0]), 2)
        client.hang_up()
        client, at = self.call()
        self.question(at, "sampling/createMessage", 1, messages=[])
        requests, state = self.asked(client)
        self.question(at, "roots/list", 2)
        self.assertEqual([each["method"] for each in requests.values()], ["sampling/createMessage"])
        (first,) = requests
        second = self.ask(retry(able(), 2, state, **{first: {"role": "assistant"}}))
        requests, state = self.asked(second)
        self.assertEqual([each["method"] for each in requests.values()], ["roots/list"])
        third = self.ask(retry(able(), 3, state))
        requests, state = self.asked(third)
        (name,) = requests
        last = self.ask(retry(able(), 4, state, **{name: {"roots": []}}))
        self.assertEqual([len(self.answers_to(n)) for n in (1, 2)], [1, 1])
        self.link.tell(messages.result(at["id"], {}), at["id"])
        self.assertEqual(last.answer.json()["id"], 4)

    def test_decline(self) -> None:
        """That the user declines reaches the backend."""
        client, at = self.call()
        self.question(at)
        requests, state = self.asked(client)
        self.ask(retry(able(), 2, state, **{next(iter(requests)): {"action": "decline"}}))
        self.assertEqual(self.answers_to(7), [messages.result(7, {"action": "decline"})])

    def test_of_one_that_was_left(self) -> None:
        """A question that may be about a call that was left is not asked to whoever else calls at the moment."""
        client, _ = self.call(able(identity=1))
        client.hang_up()
        other, at = self.call(able(identity=2))
        self.link.tell(messages.request("elicitation/create", 7, {"message": "Whose?"}))
        self.house.clock.advance(groups.ASK_WAIT)
        self.assertEqual(self.answers_to(7)[0]["error"]["code"], -32601)
        self.assertFalse(other.started)
        self.link.tell(messages.result(at["id"], {"content": []}), at["id"])
        self.assertEqual(other.answer.json()["id"], 2)

    def test_of_the_only_one(self) -> None:
        """Where nobody else can be meant it is asked, also if it does not say what it is about."""
        client, _ = self.call(able(identity=1))
        self.link.tell(messages.request("elicitation/create", 7, {"message": "Whose?"}))
        self.asked(client)

    def test_on_stream(self) -> None:
        """Where the reply is a stream already, the question ends it."""
        client, at = self.call(able(progressToken="p"))
        progress = {"progressToken": at["id"], "progress": 1}
        self.link.tell(messages.notification("notifications/progress", progress), at["id"])
        self.question(at)
        self.asked(client)

    def test_bad_states(self) -> None:
        """A state that was changed, is another's, of another request, or was used delivers nothing."""
        client, at = self.call(able(), ALICE)
        self.question(at)
        requests, state = self.asked(client)
        (name,) = requests
        answers = {name: {"action": "accept"}}
        other = able(params={"name": "echo", "arguments": {"n": 2}})
        changed = state[:-2] + ("A" if state[-2] != "A" else "B") + state[-1]
        for message, headers in (
            (retry(able(), 2, state, **answers), (BOB,)),
            (retry(able(), 2, state, **answers), ()),
            (retry(other, 2, state, **answers), (ALICE,)),
            (retry(able(), 2, changed, **answers), (ALICE,)),
            (retry(able(), 2, "else", **answers), (ALICE,)),
            (retry(able(), 2, "mcp-proxy.1.", **answers), (ALICE,)),
        ):
            error = self.error_of(self.answer_to(message, *headers), 400, -32602)
            self.assertIn("nothing was delivered", error["message"])
        no_state = able(params={**able()["params"], "inputResponses": answers})
        self.error_of(self.answer_to(no_state, ALICE), 400, -32602)
        self.assertEqual(self.answers_to(7), [])
        good = self.ask(retry(able(), 2, state, **answers), ALICE)
        used = self.answer_to(retry(able(), 3, state, **answers), ALICE)
        self.assertIn("used before", self.error_of(used, 400, -32602)["message"])
        self.assertEqual(len(self.answers_to(7)), 1)
        self.assertEqual(len(self.sent("tools/call")), 1)
        good.hang_up()

    def test_expires(self) -> None:
        """A client that does not come back: the question is answered with an error, and the call is cancelled."""
        client, at = self.call()
        self.question(at)
        requests, state = self.asked(client)
        self.house.clock.advance(pools.PARKED)
        (answer,) = self.answers_to(7)
        self.assertEqual(answer["error"]["code"], -32603)
        (cancelled,) = self.sent("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], at["id"])
        late = self.answer_to(retry(able(), 2, state, **{next(iter(requests)): {}}))
        self.assertIn("expired", self.error_of(late, 400, -32602)["message"])

    def test_leaving_after_retry(self) -> None:
        """A client that leaves its retry cancels the call."""
        client, at = self.call()
        self.question(at)
        requests, state = self.asked(client)
        again = self.ask(retry(able(), 2, state, **{next(iter(requests)): {}}))
        again.hang_up()
        self.assertEqual(len(self.sent("notifications/cancelled")), 1)
        self.assertEqual(self.house.pool.parked, 0)

    def test_answered_meanwhile(self) -> None:
        """A call that ends while its client is away keeps its answer for it."""
        client, at = self.call()
        self.question(at)
        requests, state = self.asked(client)
        self.link.tell(messages.notification("notifications/cancelled", {"requestId": 7}))
        self.link.tell(messages.result(at["id"], {"content": [], "n": 1}), at["id"])
        result = self.result_of(retry(able(), 2, state, **{next(iter(requests)): {"action": "accept"}}))
        self.assertEqual(result["n"], 1)
        self.assertEqual(self.answers_to(7), [])

    def test_restart(self) -> None:
        """A call that was lost while its client was away is known to be uncertain, and is not made again."""
        client, at = self.call()
        self.question(at)
        requests, state = self.asked(client)
        self.backend.go_down()
        self.backend.come_back()
        answer = self.answer_to(retry(able(), 2, state, **{next(iter(requests)): {"action": "accept"}}))
        error = self.assert_error(answer, 200, -31002, 2)
        self.assertEqual(error["data"]["delivered"], "yes")
        self.assertEqual(len(self.sent("tools/call")), 1)
        self.assertEqual(self.answers_to(7), [])

    def test_restart_of_read(self) -> None:
        """A read that was lost is made again, and goes on with the questions of the new backend."""
        read = able("resources/read", 1, {"uri": "a:1"})
        client, at = self.call(read)
        self.question(at)
        requests, state = self.asked(client)
        self.backend.go_down()
        self.backend.come_back()
        at = self.sent("resources/read")[-1]
        self.question(at, identity=1)
        requests, state = self.asked(self.ask(retry(read, 2, state, **{next(iter(requests)): {}})))
        self.assertEqual(self.answers_to(1), [])
        last = self.ask(retry(read, 3, state, **{next(iter(requests)): {"action": "accept"}}))
        self.assertEqual(len(self.answers_to(1)), 1)
        self.link.tell(messages.result(at["id"], {"contents": []}), at["id"])
        self.assertEqual(last.answer.json()["id"], 3)

    def test_not_expressible(self) -> None:
        """A question of no call, of a list, or of a kind that the client does not answer, is answered for it."""
        client, at = self.call(modern.request("tools/call", 1, {"name": "echo"}, **said(elicitation={})))
        self.question(at, "sampling/createMessage", 2)
        self.question(at, "elicitation/create", 3, mode="url", url="https://x")
        self.question(at, "unknown/method", 4)
        for identity in (2, 3, 4):
            self.assertEqual([each["error"]["code"] for each in self.answers_to(identity)], [-32601], identity)
        listing, at = self.call(able("tools/list", 5, {}))
        self.question(at, "roots/list", 6)
        self.link.tell(messages.request("roots/list", 1, {}))
        for identity in (6, 1):
            self.assertEqual(self.answers_to(identity)[0]["error"]["code"], -32601)
        self.assertFalse(client.started or listing.started)

    def test_on_no_stream(self) -> None:
        """A question on the stream for all belongs to the only call; from then on, calls that matter are kept apart."""
        client, at = self.call()
        self.link.tell(messages.request("roots/list", 1, {}))
        requests, state = self.asked(client)
        again = self.ask(retry(able(), 2, state, **{next(iter(requests)): {"roots": []}}))
        self.assertEqual(self.answers_to(1), [messages.result(1, {"roots": []})])
        (one, at_one), (two, at_two) = self.call(able(identity=3)), self.call(able(identity=4))
        self.assertEqual(len(self.links), 3)
        for number, (client, at) in enumerate(((two, at_two), (one, at_one))):
            link = next(link for link in self.links if at in link.sent)
            link.tell(messages.request("roots/list", number, {}))
            self.asked(client)
        again.hang_up()

    def test_ping(self) -> None:
        """A ping of the backend's is answered here."""
        _, at = self.call()
        self.question(at, "ping", 8)
        self.assertEqual(self.answers_to(8), [messages.result(8, {})])

    def test_url(self) -> None:
        """A URL to visit has no id of the backend's, and nobody is told that it is done."""
        client, at = self.call()
        self.question(at, mode="url", url="https://x", message="Go", elicitationId="e")
        requests, _ = self.asked(client)
        self.assertEqual(
            [each["params"] for each in requests.values()], [{"mode": "url", "url": "https://x", "message": "Go"}]
        )
        self.link.tell(messages.notification("notifications/elicitation/complete", {"elicitationId": "e"}))

    def test_url_required(self) -> None:
        """An error that wants URLs visited is a question; then the call, which was refused, is made again."""
        visit = {"mode": "url", "url": "https://x", "message": "Go", "elicitationId": "e"}
        error = {**messages.error(0, -32042)["error"], "data": {"elicitations": [visit]}}
        self.backend.answers["tools/call"] = lambda asked: {"jsonrpc": "2.0", "id": asked["id"], "error": error}
        requests, state = self.asked(self.ask(able()))
        (name,) = requests
        requests, state = self.asked(self.ask(retry(able(), 2, state)))
        self.assertEqual(len(self.sent("tools/call")), 1)
        self.backend.answers["tools/call"] = lambda asked: messages.result(asked["id"], {"n": 1})
        self.assertEqual(self.result_of(retry(able(), 3, state, **{name: {"action": "accept"}}))["n"], 1)
        self.assertEqual(len(self.sent("tools/call")), 2)
        self.assertEqual(self.sent("tools/call")[1]["params"], self.sent("tools/call")[0]["params"])

    def test_url_declined(self) -> None:
        """If the user does not visit it, nothing is asked again."""
        visit = {"mode": "url", "url": "https://x", "message": "Go", "elicitationId": "e"}
        error = {**messages.error(0, -32042)["error"], "data": {"elicitations": [visit]}}
        self.backend.answers["tools/call"] = lambda asked: {"jsonrpc": "2.0", "id": asked["id"], "error": error}
        requests, state = self.asked(self.ask(able()))
        answer = self.answer_to(retry(able(), 2, state, **{next(iter(requests)): {"action": "decline"}}))
        self.error_of(answer, 200, -32603)
        self.assertEqual(len(self.sent("tools/call")), 1)

    def test_too_many_parked(self) -> None:
        """Only so many calls are parked; one more is cancelled, and its client told."""
        self.patch(pools, "MAX_PARKED", 1)
        for number in (1, 2):
            client, at = self.call(able(identity=number))
            self.question(at, identity=number)
            self.house.clock.advance(groups.ASK_WAIT)
        self.error_of(client.answer, 200, -31004)
        self.assertEqual(self.house.refusals, {"too_many_parked": 1})
        self.assertEqual(self.answers_to(2)[0]["error"]["code"], -32603)
        self.assertEqual(len(self.sent("notifications/cancelled")), 1)


class Logs(BridgeCase):
    def log(self, at: Json | None, level: str) -> Json:
        """The backend logs."""
        message = messages.notification("notifications/message", {"level": level, "data": level})
        self.link.tell(message, None if at is None else at["id"])
        return message

    def test_level(self) -> None:
        """A request hears of its own logs if it wants any, from its level on."""
        quiet, at_quiet = self.call(able(identity=1))
        client, at = self.call(able(identity=2, **{"io.modelcontextprotocol/logLevel": "warning"}))
        self.assertEqual([each["params"]["level"] for each in self.sent("logging/setLevel")], ["warning"])
        self.log(at_quiet, "error")
        self.log(None, "error")
        self.log(at, "info")
        told = self.log(at, "error")
        self.assertEqual(client.messages, [told])
        self.assertFalse(quiet.started)

    def test_lowest(self) -> None:
        """The level is the lowest that anybody wants at the moment, and set before the call is made."""
        self.backend.answers["logging/setLevel"] = lambda asked: messages.result(asked["id"], {})
        for number, level in enumerate(("error", "debug", "warning")):
            client, at = self.call(able(identity=number, **{"io.modelcontextprotocol/logLevel": level}))
        self.assertEqual([each["params"]["level"] for each in self.sent("logging/setLevel")], ["error", "debug"])
        order = [each["method"] for each in self.link.sent][2:]
        self.assertEqual(order, ["logging/setLevel", "tools/call", "logging/setLevel", "tools/call", "tools/call"])
        self.assertFalse(client.started)
        self.log(at, "info")
        self.assertFalse(client.started)

    def test_slow_to_set(self) -> None:
        """A backend that does not answer that does not hold the call up for ever."""
        self.backend.answers["logging/setLevel"] = silent
        self.backend.answers["tools/call"] = silent
        self.ask(able(identity=1, **{"io.modelcontextprotocol/logLevel": "error"}))
        leaver = self.ask(able(identity=2, **{"io.modelcontextprotocol/logLevel": "error"}))
        self.assertEqual(self.sent("tools/call"), [])
        leaver.hang_up()
        self.house.clock.advance(5)
        self.assertEqual(len(self.sent("tools/call")), 1)


class Listening(BridgeCase):
    def setUp(self) -> None:
        """A backend that can be subscribed to."""
        super().setUp()
        self.backend.answers["resources/subscribe"] = lambda asked: messages.result(asked["id"], {})

    def listen(self, identity: Any = "L", **filter_: Any) -> Connection:
        """A client listens."""
        return self.ask(modern.listen(identity, **filter_))

    def test_subset(self) -> None:
        """What is honoured is what the backend can, and each message names the subscription."""
        client = self.listen(toolsListChanged=True, promptsListChanged=True, resourceSubscriptions=["a:1"])
        filter_ = {"toolsListChanged": True, "resourceSubscriptions": ["a:1"]}
        self.assertEqual(client.messages, [modern.acknowledged("L", **filter_)])
        self.link.tell(messages.notification(TOOLS_CHANGED))
        self.link.tell(messages.notification("notifications/prompts/list_changed"))
        self.link.tell(messages.notification(UPDATED, {"uri": "a:1"}))
        self.link.tell(messages.notification(UPDATED, {"uri": "a:2"}))
        self.link.tell(messages.notification("notifications/message", {"level": "error", "data": 1}))
        expected = [modern.told(TOOLS_CHANGED, "L"), modern.told(UPDATED, "L", uri="a:1")]
        self.assertEqual(client.messages[1:], expected)

    def test_refused_resource(self) -> None:
        """A resource that the backend does not let be subscribed to is not honoured."""
        self.backend.answers["resources/subscribe"] = lambda asked: (
            messages.error(asked["id"], -32002) if asked["params"]["uri"] == "b:2" else messages.result(asked["id"], {})
        )
        client = self.listen(resourceSubscriptions=["a:1", "b:2"])
        self.assertEqual(client.messages, [modern.acknowledged("L", resourceSubscriptions=["a:1"])])

    def test_counted(self) -> None:
        """A resource is subscribed to once, and until the last who listens for it has left."""
        one, two = (self.listen(n, resourceSubscriptions=["a:1"]) for n in (1, "1"))
        self.assertEqual(len(self.sent("resources/subscribe")), 1)
        self.link.tell(messages.notification(UPDATED, {"uri": "a:1"}))
        for client, identity in ((one, 1), (two, "1")):
            self.assertEqual(client.messages[-1], modern.told(UPDATED, identity, uri="a:1"))
        one.hang_up()
        self.assertEqual(self.sent("resources/unsubscribe"), [])
        two.hang_up()
        self.assertEqual([each["params"]["uri"] for each in self.sent("resources/unsubscribe")], ["a:1"])

    def test_restart(self) -> None:
        """Over a restart the stream stays; there is no second acknowledgement, and only what may differ is told."""
        client = self.listen(toolsListChanged=True, resourceSubscriptions=["a:1"])
        other = self.listen("M", toolsListChanged=True)
        self.backend.go_down()
        self.house.modern.keep_alive()
        self.backend.answers["tools/list"] = lambda asked: messages.result(asked["id"], {"tools": []})
        self.backend.come_back()
        told = client.messages[1:]
        self.assertEqual(told, [modern.told(TOOLS_CHANGED, "L"), modern.told(UPDATED, "L", uri="a:1")])
        self.assertEqual(other.messages[1:], [modern.told(TOOLS_CHANGED, "M")])
        self.assertEqual(len(self.sent("resources/subscribe")), 2)
        self.backend.go_down()
        self.backend.come_back()
        self.assertEqual(other.messages[2:], [])

    def test_honours_less(self) -> None:
        """What the next backend does not honour any more ends with a result; what it honours goes on."""
        ended = [self.listen("L", resourceSubscriptions=["a:1"]), self.listen("M", resourcesListChanged=True)]
        stays = self.listen("N", toolsListChanged=True)
        self.backend.go_down()
        result = messages.initialize_result({"tools": {}}, "another")
        self.backend.answers["initialize"] = lambda asked: messages.result(asked["id"], result)
        del self.backend.answers["resources/subscribe"]
        self.backend.come_back()
        for client, identity in zip(ended, ("L", "M"), strict=True):
            self.assertEqual(client.message(identity)["result"]["resultType"], "complete")
            self.assertTrue(client.answer.complete)
        self.assertFalse(stays.answer.complete)
        discovered = self.result_of(modern.request("server/discover"))
        self.assertEqual(discovered["capabilities"], {"tools": {"listChanged": True}})
        self.assertEqual(discovered["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "another")

    def test_while_down(self) -> None:
        """Who begins to listen in an outage is told when the backend has agreed."""
        self.result_of(modern.call())
        self.backend.go_down()
        client = self.listen(resourceSubscriptions=["a:1"])
        self.assertFalse(client.started)
        self.backend.come_back()
        self.assertEqual(client.messages, [modern.acknowledged("L", resourceSubscriptions=["a:1"])])

    def test_slow(self) -> None:
        """What a client does not read is told once, when it reads again."""
        client = self.listen(toolsListChanged=True)
        client.stop_reading()
        for _ in range(3):
            self.link.tell(messages.notification(TOOLS_CHANGED))
        self.assertEqual(len(client.messages), 1)
        self.assertEqual(self.link.pausers, set())
        client.read_again()
        self.assertEqual(client.messages[1:], [modern.told(TOOLS_CHANGED, "L")])

    def test_end(self) -> None:
        """A session that ends ends what listens on it with a result."""
        client = self.listen(toolsListChanged=True)
        for session in self.house.registry:
            session.close()
        result = client.message("L")["result"]
        self.assertEqual(result, {"resultType": "complete", "_meta": {modern.META_SUBSCRIPTION: "L"}})
        self.assertTrue(client.answer.complete)

    def test_nothing(self) -> None:
        """Who listens for nothing that there is, is told so, and may stay."""
        client = self.listen(promptsListChanged=True)
        self.assertEqual(client.messages, [modern.acknowledged("L")])
        self.assertFalse(client.answer.complete)

    def test_changes_era(self) -> None:
        """A listen at a backend of the revision goes on where the next one knows only older ones."""
        self.backend.is_legacy = False
        self.backend.answers["subscriptions/listen"] = lambda asked: modern.acknowledged(
            asked["id"], **asked["params"]["notifications"]
        )
        client = self.listen(toolsListChanged=True)
        self.assertEqual(len(client.messages), 1)
        self.backend.go_down()
        self.backend.is_legacy = True
        self.backend.come_back()
        self.assertEqual(client.messages[1:], [modern.told(TOOLS_CHANGED, "L")])
        self.assertFalse(client.answer.complete)
        self.link.tell(messages.notification(TOOLS_CHANGED))
        self.assertEqual(client.messages[2:], [modern.told(TOOLS_CHANGED, "L")])


class Restarts(BridgeCase):
    def test_fates(self) -> None:
        """The rules of delivery are those of every session."""
        call, _ = self.call()
        listing, _ = self.call(able("tools/list", 2, {}))
        self.backend.answers["tools/list"] = lambda asked: messages.result(asked["id"], {"tools": []})
        self.backend.go_down()
        held = self.ask(able(identity=3))
        self.backend.answers["tools/call"] = lambda asked: messages.result(asked["id"], {})
        self.backend.come_back()
        self.assert_error(call.answer, 200, -31002, 1)
        self.assertEqual(listing.answer.json()["id"], 2)
        self.assertEqual(held.answer.json()["result"]["resultType"], "complete")
        self.assertEqual(len(self.sent("tools/call")), 2)
        self.assertEqual(len(self.sent("initialize")), 2)

    def test_lost_session(self) -> None:
        """A session that only the backend has lost is restored, and nobody sees it."""
        self.result_of(able())
        self.backend.refusals["tools/call"] = Refusal(404, "404", HTTPAnswer(404, (), b""))
        self.backend.opens = False
        client = self.ask(able(identity=2))
        self.backend.opens = True
        self.house.clock.pump([3] * 3)
        self.assertFalse(client.started and client.answer.status == 404)
        client.hang_up()

    def test_deadline(self) -> None:
        """What is held for too long is answered with the truth."""
        self.result_of(able())
        self.backend.go_down()
        client = self.ask(able(identity=2))
        self.house.clock.advance(Policy().hold_timeout)
        error = self.assert_error(client.answer, 200, -31001, 2)
        self.assertEqual(error["data"]["delivered"], "no")


class Leases(BridgeCase):
    """Where one stream brings all that the backend says."""

    correlates = False

    def test_certain(self) -> None:
        """Two calls that may be asked something have a session each, so it is certain who is asked."""
        (one, at_one), (two, at_two) = self.call(able(identity=1)), self.call(able(identity=2))
        self.assertEqual(len(self.sent("initialize")), 3)
        self.question(at_two)
        self.assertFalse(one.started)
        requests, state = self.asked(two)
        self.question(at_one, identity=8)
        self.asked(one)
        again = self.ask(retry(able(), 5, state, **{next(iter(requests)): {"action": "accept"}}))
        link = next(link for link in self.links if at_two in link.sent)
        self.assertEqual(link.sent[-1], messages.result(7, {"action": "accept"}))
        link.tell(messages.result(at_two["id"], {}))
        self.assertEqual(again.answer.json()["id"], 5)

    def test_found_out_late(self) -> None:
        """The first calls as well, though the link finds out only with the handshake what the backend speaks."""
        answer, self.backend.answers["initialize"] = self.backend.answers["initialize"], silent
        self.backend.correlates = True
        self.ask(able(identity=1))
        self.backend.correlates = False
        self.backend.answers["initialize"] = answer
        link, settled = self.link, self.backend.make_link(self.link.owner, self.link.headers)
        link.owner.link_settled(link, settled)  # type: ignore[attr-defined]
        link.closed = True
        self.backend.answers["tools/call"] = silent
        settled.tell(messages.result(link.sent[0]["id"], messages.initialize_result()))
        self.ask(able(identity=2))
        self.assertEqual(len(self.sent("initialize")), 3)

    def test_used_again(self) -> None:
        """A session that is free again takes the next call."""
        for number in range(3):
            self.result_of(able(identity=number))
        self.assertEqual(len(self.sent("initialize")), 2)

    def test_not_needed(self) -> None:
        """Who cannot be asked and wants no logs needs none."""
        for number in range(3):
            self.call(modern.call(number))
        self.assertEqual(len(self.sent("initialize")), 1)

    def test_leaving(self) -> None:
        """A call that was left ends its session: what comes of it still would be taken for the next call's."""
        client, at = self.call()
        client.hang_up()
        self.house.clock.advance(0)
        link = next(link for link in self.links if at in link.sent)
        self.assertTrue(link.closed)
        self.call(able(identity=2))
        self.assertEqual(len(self.sent("initialize")), 3)

    def test_bounded(self) -> None:
        """There are only so many; then calls wait for one, not for ever."""
        calls = [self.call(able(identity=number)) for number in range(18)]
        self.assertEqual(len(self.sent("tools/call")), 16)
        calls[17][0].hang_up()
        link = next(link for link in self.links if calls[0][1] in link.sent)
        link.tell(messages.result(calls[0][1]["id"], {}))
        self.assertEqual(len(self.sent("tools/call")), 17)
        late = self.ask(able(identity=99))
        self.house.clock.advance(Policy().hold_timeout)
        self.assert_error(late.answer, 200, -31004, 99)
        self.assertEqual(len(self.sent("tools/call")), 17)

    def test_changes_are_told_all(self) -> None:
        """What a call's own session is told of changes reaches who listens."""
        listener = self.ask(able("subscriptions/listen", "L", {"notifications": {"toolsListChanged": True}}))
        _, at = self.call()
        link = next(link for link in self.links if at in link.sent)
        link.tell(messages.notification(TOOLS_CHANGED))
        self.assertEqual(listener.messages[1:], [modern.told(TOOLS_CHANGED, "L")])

    def test_progress(self) -> None:
        """Progress goes by its token."""
        (one, at_one), (two, _) = (self.call(modern.call(n, progressToken="p")) for n in (1, 2))
        progress = {"progressToken": at_one["id"], "progress": 1}
        self.link.tell(messages.notification("notifications/progress", progress))
        self.assertEqual([each["params"]["progressToken"] for each in one.messages], ["p"])
        self.assertFalse(two.started)
