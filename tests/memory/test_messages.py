"""POST: what is taken, what is refused, and that a refusal harms nothing."""

from __future__ import annotations

from typing import Any

from mcp_proxy.frontend import stream
from mcp_proxy.session.interfaces import Refusal
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import ALICE, BOB, HouseCase
from tests.support import messages
from tests.support.http1 import HeaderList, ask, chunked
from tests.support.memory import JSON_HEAD, Connection
from tests.support.messages import encoded

PING = encoded(messages.request("ping", 1))


class PostCase(HouseCase):
    def setUp(self) -> None:
        """One client that has initialized."""
        super().setUp()
        self.stream = self.house.initialized(ALICE)
        self.count = 0

    def send(self, body: bytes | None, headers: HeaderList = JSON_HEAD) -> Connection:
        return self.house.ask("POST", self.stream.path, (*headers, ALICE), body)

    def assert_unharmed(self, *, stream: Connection | None = None) -> None:
        """A good request works, is answered once, and nothing else has reached client or backend."""
        stream = stream or self.stream
        self.count += 1
        identity = f"good-{self.count}"
        self.assertEqual(self.house.post(stream.path, messages.call(identity), ALICE).status, 202)
        self.assertIn("result", stream.message(identity))
        self.assertFalse(stream.closed)

    def reached(self) -> list[Any]:
        """The methods that the backend got after the handshake."""
        return [each.get("method") for each in self.house.backend.link.sent][2:]


class Accepted(PostCase):
    def test_accepted(self) -> None:
        """A message is acknowledged with 202; its answer comes on the stream, as it came from the backend."""
        answer = self.send(encoded(messages.call(7, {"x": 1}))).answer
        self.assertEqual((answer.status, answer.body, answer.complete), (202, b"Accepted", True))
        self.assertEqual(
            self.stream.message(7), messages.result(7, {"content": [], "echo": {"name": "echo", "arguments": {"x": 1}}})
        )

    def test_content_types(self) -> None:
        """Parameters and letter case of the content type do not matter."""
        for kind in (b"application/json; charset=utf-8", b"Application/JSON", b"application/json;"):
            self.assertEqual(self.send(PING, ((b"content-type", kind),)).answer.status, 202, kind)

    def test_chunked(self) -> None:
        """A chunked body is as good as one with a length."""
        body = encoded(messages.call("chunked"))
        connection = self.house.connect()
        headers = (*JSON_HEAD, ALICE, (b"transfer-encoding", b"chunked"))
        connection.send(ask("POST", self.stream.path, headers, chunked(body[:5], body[5:])))
        self.assertEqual(connection.answer.status, 202)
        self.assertIn("result", self.stream.message("chunked"))

    def test_byte_by_byte(self) -> None:
        """However a request is cut into segments, it is understood."""
        connection = self.house.connect()
        text = ask("POST", self.stream.path, (*JSON_HEAD, ALICE), encoded(messages.call("slow")))
        for at in range(len(text)):
            connection.send(text[at : at + 1])
        self.assertEqual(connection.answer.status, 202)
        self.assertIn("result", self.stream.message("slow"))

    def test_ids(self) -> None:
        """Ids come back with value and type, whatever they are; a number that others would round as well."""
        for identity in ("1", 1, "", "ä€😀", 0, -5, 2**53, 2**63, 10**40, 'quote"\\'):
            self.send(encoded(messages.call(identity)))
            found = self.stream.message(identity)
            self.assertIs(type(found["id"]), type(identity))
            self.assertIn("result", found)

    def test_number_and_text(self) -> None:
        """The number 1 and the string "1" are two requests at the same time."""
        self.house.backend.answers["tools/call"] = lambda asked: None
        self.send(encoded(messages.call(1)))
        self.send(encoded(messages.call("1")))
        self.house.backend.link.tell(messages.result("1", {"is": "text"}))
        self.house.backend.link.tell(messages.result(1, {"is": "number"}))
        answers = {repr(each["id"]): each["result"]["is"] for each in self.stream.messages[1:]}
        self.assertEqual(answers, {"'1'": "text", "1": "number"})

    def test_raw_bytes(self) -> None:
        """A message that needs no change reaches the backend with the values that it had."""
        self.send(
            b'{ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"n": 1.0, "big": 12345678901234567890}}'
        )
        self.assertEqual(self.house.backend.link.sent[-1]["params"], {"n": 1.0, "big": 12345678901234567890})

    def test_keep_alive(self) -> None:
        """Two messages can come on one connection."""
        connection = self.house.connect()
        for identity in (1, 2):
            connection.send(ask("POST", self.stream.path, (*JSON_HEAD, ALICE), encoded(messages.call(identity))))
        self.assertEqual(connection.raw.count(b"202 Accepted"), 2)
        self.assertIn("result", self.stream.message(2))


class Refused(PostCase):
    def test_not_json(self) -> None:
        """What is no JSON in UTF-8 is a parse error."""
        for body in (
            b"{",
            b"hello",
            b'{"jsonrpc":"2.0","id":1,"method":"pi\xff"}',
            b"\xff\xfe{}",
            b"{'a': 1}",
            b"[" * 3000,
        ):
            self.assert_json_error(self.send(body).answer, 400, -32700)
            self.assert_unharmed()

    def test_not_jsonrpc(self) -> None:
        """JSON that is no JSON-RPC message is an invalid request."""
        for body in (
            b"1",
            b'"text"',
            b"null",
            b"{}",
            b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
            b'{"jsonrpc":"2.0","id":1}',
            b'{"jsonrpc":"2.0","id":1,"method":5}',
            b'{"jsonrpc":"2.0","id":1,"method":""}',
            b'{"jsonrpc":"2.0","id":1,"method":"ping","params":5}',
            b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
        ):
            self.assert_json_error(self.send(body).answer, 400, -32600)
            self.assert_unharmed()

    def test_bad_ids(self) -> None:
        """An id that MCP does not allow is refused."""
        for identity in ("null", "1.5", "true", "[]", "{}"):
            body = f'{{"jsonrpc":"2.0","id":{identity},"method":"tools/call"}}'.encode()
            self.assert_json_error(self.send(body).answer, 400, -32600)
            self.assert_unharmed()

    def test_huge_float_id(self) -> None:
        """An id such as 1e400, which is no number to most parsers, is refused without a failure of ours."""
        for identity in (b"1e400", b"-1e999", b"1e300"):
            answer = self.send(b'{"jsonrpc":"2.0","id":%b,"method":"tools/call","params":{}}' % identity).answer
            self.assertIn(answer.status, (202, 400), identity)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assert_unharmed()

    def test_long_number(self) -> None:
        """An id of thousands of digits is answered or refused, but breaks nothing."""
        self.rebuild(max_body_bytes=10_000)
        self.stream = self.house.initialized(ALICE)
        for digits in (3900, 5000):
            body = b'{"jsonrpc":"2.0","id":%b,"method":"tools/call","params":{}}' % (b"7" * digits)
            self.assertIn(self.send(body).answer.status, (202, 400), digits)
            self.assertEqual(self.flushLoggedErrors(), [])
            self.assert_unharmed()

    def test_numbers_out_of_range(self) -> None:
        """A number that fits in no double is the peers' business, wherever it stands; nothing of ours breaks."""
        for method in ("tools/call", "notifications/cancelled", "resources/subscribe", "tools/list"):
            body = b'{"jsonrpc":"2.0","id":"%b","method":"%b","params":{"x":1e400,"requestId":1e400}}'
            body = body % (method.encode(), method.encode())
            if method.startswith("notifications"):
                body = body.replace(b'"id":"notifications/cancelled",', b"")
            self.assertIn(self.send(body).answer.status, (202, 400), method)
            self.assertEqual(self.flushLoggedErrors(), [], method)
            self.assert_unharmed()

    def test_batch(self) -> None:
        """A batch is refused as a whole, in words that say what to do; nothing of it is sent."""
        error = self.assert_json_error(self.send(b"[" + PING + b"," + PING + b"]").answer, 400, -32600)
        self.assertIn("one by one", error["message"])
        self.assert_json_error(self.send(b"[]").answer, 400, -32600)
        self.assertEqual(self.reached(), [])
        self.assert_unharmed()

    def test_content_type(self) -> None:
        """A body that is not said to be JSON is refused."""
        for kind in (
            b"text/plain",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data; boundary=x",
            b"",
            b"json",
        ):
            self.assert_json_error(self.send(PING, ((b"content-type", kind),)).answer, 415, -32600)
        self.assert_json_error(self.send(PING, ()).answer, 415, -32600)
        self.assertEqual(self.reached(), [])
        self.assert_unharmed()

    def test_empty(self) -> None:
        """An empty body is an invalid request."""
        for body in (b"", b" \r\n\t "):
            self.assert_json_error(self.send(body).answer, 400, -32600)
        self.assert_unharmed()

    def test_no_length(self) -> None:
        """A POST without a length has no body."""
        self.assert_json_error(self.send(None).answer, 411, -32600)
        self.assert_unharmed()

    def test_oversized(self) -> None:
        """A body over the limit is refused with 413 and forgotten; the connection lives on."""
        body = encoded(messages.call("big", {"x": "y" * 5000}))
        connection = self.send(body)
        error = self.assert_json_error(connection.answer, 413, -32600)
        self.assertIn("MAX_BODY_BYTES", error["message"])
        self.assertEqual(self.reached(), [])
        connection.send(ask("POST", self.stream.path, (*JSON_HEAD, ALICE), encoded(messages.call("after"))))
        self.assertIn("result", self.stream.message("after"))
        self.assert_unharmed()

    def test_oversized_chunked(self) -> None:
        """The same if nobody said before how long it is: no more than the limit is kept."""
        connection = self.house.connect()
        headers = (*JSON_HEAD, ALICE, (b"transfer-encoding", b"chunked"))
        body = encoded(messages.call("big", {"x": "y" * 50_000}))
        text = ask(
            "POST", self.stream.path, headers, chunked(*(body[at : at + 1000] for at in range(0, len(body), 1000)))
        )
        connection.send(text[:30_000])
        self.assertEqual(connection.kept_bytes, 0)
        connection.send(text[30_000:])
        self.assert_json_error(connection.answer, 413, -32600)
        self.assertEqual(self.reached(), [])
        self.assert_unharmed()

    def test_limit_is_exact(self) -> None:
        """A body of just the limit passes, one byte more does not."""
        empty = encoded(messages.call("x", {"x": ""}))
        fits = encoded(messages.call("x", {"x": "y" * (4096 - len(empty))}))
        self.assertEqual(self.send(fits).answer.status, 202)
        self.assert_json_error(self.send(fits + b" ").answer, 413, -32600)

    def test_endless_body(self) -> None:
        """A sender that does not stop is cut off in the end."""
        self.patch(stream, "MAX_SWALLOWED", 20_000)
        connection = self.house.connect()
        connection.send(ask("POST", self.stream.path, (*JSON_HEAD, ALICE, (b"content-length", b"1000000")), b""))
        for _ in range(30):
            if not connection.closed:
                connection.send(b"y" * 1000)
        self.assertTrue(connection.closed)
        self.assert_unharmed()

    def test_unknown_session(self) -> None:
        """A path that is no session is 404, in words that say what to do."""
        error = self.assert_json_error(self.house.post("/mcp/messages/unknown", PING, ALICE), 404, -32600)
        self.assertIn("GET /mcp/sse", error["message"])
        self.assert_unharmed()

    def test_foreign_session(self) -> None:
        """Another credential's session looks exactly like one that does not exist, and nothing is passed on."""
        unknown = self.house.post("/mcp/messages/unknown", PING, BOB)
        for headers in ((BOB,), (), ((b"authorization", b"Bearer x"),), (ALICE, BOB), (ALICE, ALICE)):
            foreign = self.house.post(self.stream.path, PING, *headers)
            self.assertEqual((foreign.status, foreign.body), (unknown.status, unknown.body), headers)
            self.assertEqual([name for name, _ in foreign.headers], [name for name, _ in unknown.headers], headers)
        self.assertEqual(self.reached(), [])
        self.assert_unharmed()

    def test_foreign_oversized(self) -> None:
        """What a stranger posts to a session does not tell whether the session exists, whatever is wrong with it."""
        for body, kind in ((b"{", b"application/json"), (PING, b"text/plain"), (b"x" * 5000, b"application/json")):
            answers = [
                self.house.ask("POST", path, ((b"content-type", kind), BOB), body).answer
                for path in (self.stream.path, "/mcp/messages/unknown")
            ]
            self.assertEqual(answers[0].status, answers[1].status, (kind, body[:5]))
            self.assertEqual(answers[0].body, answers[1].body)

    def test_duplicate(self) -> None:
        """A request posted twice (its 202 was lost) is taken once and answered once."""
        self.house.backend.answers["tools/call"] = lambda asked: None
        for _ in range(2):
            self.assertEqual(self.send(encoded(messages.call("same", {"a": 1}))).answer.status, 202)
        self.assertEqual(self.reached(), ["tools/call"])
        self.house.backend.link.tell(messages.result("same", {}))
        self.assertEqual(self.stream.message("same")["result"], {})

    def test_reused_id(self) -> None:
        """Another request under an id that is not answered yet is refused; the first one is answered."""
        self.house.backend.answers["tools/call"] = lambda asked: None
        self.send(encoded(messages.call("same", {"a": 1})))
        self.assert_json_error(self.send(encoded(messages.call("same", {"a": 2}))).answer, 400, -32600)
        self.house.backend.link.tell(messages.result("same", {"a": 1}))
        self.assertEqual(self.stream.message("same")["result"], {"a": 1})

    def test_id_free_again(self) -> None:
        """Once answered, an id can be used again."""
        for _ in range(2):
            self.assertEqual(self.send(encoded(messages.call("same"))).answer.status, 202)
        self.assertEqual(len([each for each in self.stream.messages if each["id"] == "same"]), 2)

    def test_before_initialize(self) -> None:
        """Refused messages on a stream that is not initialized yet do not stand in the way of its handshake."""
        stream = self.house.stream(BOB)
        for body in (b"{", b"[]", b"", b'{"jsonrpc":"2.0","id":null,"method":"initialize"}'):
            self.assertEqual(self.house.post(stream.path, body, BOB).status, 400)
        self.house.post(stream.path, messages.initialize(0), BOB)
        self.assertIn("result", stream.message(0))


class Held(HouseCase):
    def test_bounded(self) -> None:
        """While the backend is down, no more is held than allowed; the rest is told at once."""
        house = self.rebuild(policy=Policy(max_held=2))
        stream = house.initialized(ALICE)
        house.backend.go_down()
        for identity in (1, 2, 3):
            self.assertEqual(house.post(stream.path, messages.call(identity), ALICE).status, 202)
        error = stream.message(3)["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31004, "no"))
        house.backend.come_back()
        self.assertEqual([stream.message(identity)["id"] for identity in (1, 2)], [1, 2])
        self.assertIn("result", stream.message(1))

    def test_bytes(self) -> None:
        """The bytes that are held are bounded as well."""
        house = self.rebuild(policy=Policy(max_held_bytes=1500))
        stream = house.initialized(ALICE)
        house.backend.go_down()
        for identity in (1, 2):
            house.post(stream.path, messages.call(identity, {"x": "y" * 800}), ALICE)
        self.assertEqual(stream.message(2)["error"]["code"], -31004)
        self.assertEqual(len(stream.messages), 2)

    def test_time(self) -> None:
        """A held request is answered with the truth when its time is up, and is never sent afterwards."""
        house = self.rebuild(policy=Policy(hold_timeout=45.0))
        stream = house.initialized(ALICE)
        house.backend.go_down()
        house.post(stream.path, messages.call(1), ALICE)
        house.clock.advance(44.9)
        self.assertEqual(len(stream.messages), 1)
        house.clock.advance(0.2)
        error = stream.message(1)["error"]
        self.assertEqual(error["code"], -31001)
        self.assertEqual(
            {name: error["data"][name] for name in ("source", "delivered", "retrySafe", "method")},
            {"source": "proxy", "delivered": "no", "retrySafe": True, "method": "tools/call"},
        )
        house.backend.come_back()
        self.assertNotIn("tools/call", [each.get("method") for each in house.backend.link.sent])

    def test_cancelled(self) -> None:
        """A held request that the client cancels is never sent."""
        stream = self.house.initialized(ALICE)
        self.house.backend.go_down()
        self.house.post(stream.path, messages.call(1), ALICE)
        self.house.post(stream.path, messages.notification("notifications/cancelled", {"requestId": 1}), ALICE)
        self.house.backend.come_back()
        sent = [each.get("method") for each in self.house.backend.link.sent]
        self.assertEqual([each for each in sent if each in ("tools/call", "notifications/cancelled")], [])

    def test_progress(self) -> None:
        """A held request with a progress token hears that it is not forgotten."""
        stream = self.house.initialized(ALICE)
        self.house.backend.go_down()
        self.house.post(
            stream.path, messages.request("tools/call", 1, {"name": "x", "_meta": {"progressToken": "t"}}), ALICE
        )
        for _ in range(3):
            self.house.clock.advance(10)
        beats = [each["params"] for each in stream.messages if each.get("method") == "notifications/progress"]
        self.assertEqual({each["progressToken"] for each in beats}, {"t"})
        growing = [each["progress"] for each in beats]
        self.assertEqual(growing, sorted(set(growing)))
        self.assertLess(growing[-1], 1)


class Late(PostCase):
    def refuse_late(self, status: int, method: str) -> None:
        """The answer comes on the stream before the refusal of the POST does."""
        link = self.house.backend.link
        self.house.backend.accepts = False
        answers: list[Any] = []

        def answer(asked: messages.Json) -> None:
            outgoing = link.outgoing[-1]
            if not answers:
                answers.append(outgoing)
                link.tell(messages.result(asked["id"], {"done": True}))
                link.owner.link_refused(link, outgoing, Refusal(status, f"status {status}"))

        self.house.backend.answers[method] = answer
        self.house.post(self.stream.path, messages.request(method, "late", {"name": "x"}), ALICE)
        self.house.clock.advance(10)

    def test_answered_before_refused(self) -> None:
        """A POST that fails after its request was answered changes nothing: one answer, one delivery."""
        for status in (0, 400, 401, 404, 500, 503):
            for method in ("tools/call", "tools/list"):
                self.rebuild()
                self.stream = self.house.initialized(ALICE)
                self.refuse_late(status, method)
                answers = [each for each in self.stream.messages if each.get("id") == "late"]
                self.assertEqual([each.get("result") for each in answers], [{"done": True}], (status, method))
                sent = [each["method"] for link in self.house.backend.made for each in link.sent]
                self.assertEqual(sent.count(method), 1, (status, method))
                self.house.close()
