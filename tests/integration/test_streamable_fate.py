"""What becomes of a request whose Streamable HTTP backend dies, breaks the connection or refuses.

Whatever happens, each request gets exactly one answer, a tool call is delivered at most once, and what is safe to
repeat is answered by the backend in the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mcp_proxy.backend import lean
from mcp_proxy.frontend import http_sse
from tests.integration.streamable_case import ALICE, StreamableCase, result_of, silent
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import Asked, BackendConnection, How, Stream, response
from tests.support.scripted_streamable import JSON_HEADER, Reply, chunk, event, refusal, stream_head
from tests.support.sockets import close_now

Act = Callable[[Reply], None]
PROGRESS = messages.notification("notifications/progress", {"progressToken": "t", "progress": 1})
WITH_TOKEN: Json = {"name": "echo", "arguments": {}, "_meta": {"progressToken": "t"}}


def whole(reply: Reply) -> bytes:
    """The answer as JSON, with its head."""
    body = encoded(reply.backend.answers[reply.message["method"]](reply, reply.message))
    return response(200, body, JSON_HEADER, *reply.session_header)


def streamed(reply: Reply) -> bytes:
    """The answer as a stream, with its head."""
    body = encoded(reply.backend.answers[reply.message["method"]](reply, reply.message))
    return stream_head(*reply.session_header) + chunk(event(body))


class DeathCase(StreamableCase):
    offers_stream = True

    def setUp(self) -> None:
        super().setUp()
        self.backend.offers_stream = self.offers_stream

    def cut(self, at: Callable[[int], int], how: How, text: Callable[[Reply], bytes]) -> Act:
        """Die after so many bytes of an answer."""

        def act(reply: Reply) -> None:
            data = text(reply)
            reply.connection.budget, reply.connection.how = at(len(data)), how
            reply.connection.write(data)

        return act

    async def in_flight(self, act: Act, delivered: str) -> None:
        """A call, then a list, at the moment of death; ``delivered`` is empty if the answer came through."""
        self.start()
        client = await self.joined()
        self.act("tools/call", act)
        await client.begin(messages.call("call", {"n": 1}))
        await self.revive_when_dead()
        answer = await client.answer_to("call")
        if delivered:
            self.assert_unknown(answer, delivered)
        else:
            self.assertEqual(result_of(answer), {"echo": {"n": 1}})
        await self.assert_works(client)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)
        self.act("tools/list", act)
        await client.begin(messages.request("tools/list", "list"))
        await self.revive_when_dead()
        self.assertEqual(result_of(await client.answer_to("list")), {"tools": messages.TOOLS})
        await self.assert_works(client)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 3)


class Death(DeathCase):
    """The backend dies at every interesting byte of an answer, and comes back on the same port."""

    async def test_no_byte(self) -> None:
        """Nothing of the answer has come when the backend is killed."""
        await self.in_flight(lambda reply: self.backend.die("rst"), "maybe")

    async def test_no_byte_fin(self) -> None:
        """The same when it closes its connections properly."""
        await self.in_flight(lambda reply: self.backend.die("fin"), "maybe")

    async def test_head(self) -> None:
        """Cut inside the head."""
        await self.in_flight(self.cut(lambda size: 30, "rst", whole), "maybe")

    async def test_head_fin(self) -> None:
        """The same with a proper close."""
        await self.in_flight(self.cut(lambda size: 30, "fin", whole), "maybe")

    async def test_json(self) -> None:
        """Cut inside a JSON answer: it was carried out, and the result is lost."""
        await self.in_flight(self.cut(lambda size: size - 5, "rst", whole), "yes")

    async def test_json_fin(self) -> None:
        """The same with a proper close."""
        await self.in_flight(self.cut(lambda size: size - 5, "fin", whole), "yes")

    async def test_json_whole(self) -> None:
        """Dead right after the last byte of a JSON answer: nothing is lost."""
        await self.in_flight(self.cut(lambda size: size, "fin", whole), "")

    async def test_stream(self) -> None:
        """Cut inside an event."""
        await self.in_flight(self.cut(lambda size: size - 9, "rst", streamed), "yes")

    async def test_stream_fin(self) -> None:
        """The same with a proper close."""
        await self.in_flight(self.cut(lambda size: size - 9, "fin", streamed), "yes")

    async def test_stream_whole(self) -> None:
        """Dead after the event of the answer, without the end of the stream: nothing is lost."""
        await self.in_flight(self.cut(lambda size: size, "fin", streamed), "")

    async def test_held(self) -> None:
        """What was not sent is held, and delivered once."""
        self.start()
        client = await self.joined()
        self.backend.die()
        await client.begin(messages.call("held", {"n": 1}))
        self.assertEqual(result_of(await client.ask(messages.request("ping", "p"))), {})
        self.assertEqual(client.answers("held"), [])
        await self.backend.revive()
        self.assertEqual(result_of(await client.answer_to("held")), {"echo": {"n": 1}})
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_list_while_away(self) -> None:
        """A list whose answer was cut off waits for a backend that stays away for longer than a moment."""
        self.start()
        client = await self.joined()
        self.act("tools/list", self.cut(lambda size: size - 5, "rst", whole))
        await client.begin(messages.request("tools/list", "list"))
        await self.until(lambda: not self.backend.is_listening)
        view = self.internals()._backend
        await self.until(lambda: view.is_down or client.answers("list"))
        await self.backend.revive()
        self.assertEqual(result_of(await client.answer_to("list")), {"tools": messages.TOOLS})
        await self.assert_works(client)

    async def test_progress_then_eof(self) -> None:
        """Progress, then the death of the backend: the error comes on the same stream."""

        def act(reply: Reply) -> None:
            reply.begin()
            reply.send(PROGRESS)

        self.start()
        client = await self.joined()
        self.act("tools/call", act)
        await client.begin(messages.request("tools/call", "call", WITH_TOKEN))
        await self.until(lambda: client.notifications("notifications/progress"))
        await self.restart("fin")
        self.assert_unknown(await client.answer_to("call"), "yes")
        if self.kind == "streamable":
            (sent,) = [each for each in client.sent if each.messages and PROGRESS in each.messages]  # type: ignore[attr-defined]
            self.assertEqual([each.get("id") for each in sent.messages], [None, "call"])
            self.assertTrue(sent.answer.complete)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
        await self.assert_works(client)


class DeathSSE(Death):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class DeathWithoutStream(Death):
    """The same where the backend offers no GET stream, whose end would tell."""

    offers_stream = False


class Breaks(StreamableCase):
    """Only one connection breaks; the backend lives."""

    async def broken(self, act: Act, delivered: str) -> None:
        """The call is told the truth, the list is asked for again, and nothing else is lost."""
        self.start()
        client = await self.joined()
        self.act("tools/call", act)
        self.assert_unknown(await client.ask(messages.call("call")), delivered)
        self.act("tools/list", act)
        self.assertEqual(result_of(await client.ask(messages.request("tools/list", "list"))), {"tools": messages.TOOLS})
        await self.assert_works(client)
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("tools/list")), (2, 2))
        self.assertEqual((self.backend.posts("initialize"), len(self.backend.gets())), (1, 1))

    async def test_no_byte(self) -> None:
        """A POST that is reset without an answer."""
        await self.broken(lambda reply: reply.connection.drop("rst"), "maybe")

    async def test_no_byte_fin(self) -> None:
        """A POST that is closed without an answer."""
        await self.broken(lambda reply: reply.connection.drop("fin"), "maybe")

    async def test_json(self) -> None:
        """A JSON answer that is cut off."""

        def act(reply: Reply) -> None:
            reply.send_raw(whole(reply)[:-5])
            reply.connection.drop("fin")

        await self.broken(act, "yes")

    async def test_stream(self) -> None:
        """A stream without event ids that is cut off."""

        def act(reply: Reply) -> None:
            reply.begin()
            reply.connection.drop("fin")

        await self.broken(act, "yes")

    async def test_stream_without_answer(self) -> None:
        """A stream without event ids that ends properly, but without the answer."""

        def act(reply: Reply) -> None:
            reply.begin()
            reply.end()

        await self.broken(act, "yes")

    async def test_html(self) -> None:
        """A page instead of an answer."""
        page = response(200, b"<html>Welcome</html>", ("Content-Type", "text/html"))
        await self.broken(lambda reply: reply.send_raw(page), "yes")

    async def test_202(self) -> None:
        """A request that is merely accepted."""
        await self.broken(lambda reply: reply.send_raw(response(202)), "yes")

    async def test_no_json(self) -> None:
        """An answer that is no JSON."""
        await self.broken(lambda reply: reply.send_raw(response(200, b"{nonsense", JSON_HEADER)), "yes")

    async def test_no_http(self) -> None:
        """An answer that is no HTTP."""

        def act(reply: Reply) -> None:
            reply.send_raw(b"\x16\x03\x01\x00\xff SSH-2.0-OpenSSH\r\n\r\n\x00\xff\xfe\r\n\r\n")
            reply.connection.drop("fin")

        await self.broken(act, "maybe")

    async def test_idle_connections(self) -> None:
        """A backend that closes idle connections now and then loses nothing, and no call is called ambiguous."""
        self.start()
        client = await self.joined()
        for number in range(4):
            self.backend.close_idle()
            self.assertEqual(result_of(await client.call(n=number)), {"echo": {"n": number}})
            self.assertIn("result", await client.ask(messages.request("tools/list", f"list-{number}")))
        self.assertEqual((self.backend.posts("initialize"), self.backend.posts("tools/call")), (1, 4))

    async def test_call_on_idle_connection(self) -> None:
        """An idle connection that dies just when something is sent on it harms neither a list nor a call."""
        self.start()
        self.patch(lean.Connection, "is_alive", property(self._close_idle_now))
        client = await self.joined()
        for number in range(5):
            self.assertIn("result", await client.call())
            self.assertIn("result", await client.ask(messages.request("tools/list", number)))
        self.assertEqual((len(self.backend.deliveries("tools/call")), self.backend.posts("tools/call")), (5, 5))

    def _close_idle_now(self, _: object) -> bool:
        """Looked at, it was alive; now it is not."""
        streaming = {stream.connection for stream in self.backend.streams.values()}
        for connection in [each for each in self.backend.connections if each not in streaming]:
            close_now(connection.transport)
        return True


class BreaksSSE(Breaks):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Statuses(StreamableCase):
    """The backend refuses."""

    def refuse(self, answer: bytes, *methods: str, once: bool = True) -> None:
        """Refuse messages of these methods."""

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            if json.loads(asked.body).get("method") in methods:
                if once:
                    self.backend.on_post = self.backend.take_post
                connection.write(answer)
            else:
                self.backend.take_post(connection, asked)

        self.backend.on_post = on_post

    async def test_503(self) -> None:
        """A list that is answered 503 is asked for again, a call is not."""
        self.start()
        client = await self.joined()
        for status in (502, 503, 504):
            self.refuse(response(status, b"busy", ("Retry-After", "1")), "tools/list")
            self.assertIn("result", await client.ask(messages.request("tools/list", f"list-{status}")))
            self.refuse(response(status, b"busy", ("Retry-After", "1")), "tools/call")
            self.assert_unknown(await client.call(), "maybe")
        self.assertEqual((self.backend.posts("tools/list"), self.backend.posts("tools/call")), (6, 3))
        self.assertEqual(self.backend.posts("initialize"), 1)
        await self.assert_works(client)

    async def test_gateway(self) -> None:
        """Where a gateway answers a ping too, what comes is held until the backend does; a call that met it is lost."""
        self.start()
        client = await self.joined()
        for count, status in enumerate((502, 503, 504, 521), 1):
            handshakes = self.backend.posts("initialize")
            self.refuse(response(status, b"away"), "tools/call", "tools/list", "ping", "initialize", once=False)
            await client.begin(messages.call(f"met-{status}"))
            await client.begin(messages.request("tools/list", f"list-{status}"))
            self.assert_unknown(await client.answer_to(f"met-{status}"), "maybe")
            await client.begin(messages.call(f"held-{status}"))
            await self.until(lambda seen=handshakes: self.backend.posts("initialize") >= seen + 2)
            self.backend.on_post = self.backend.take_post
            self.assertIn("result", await client.answer_to(f"held-{status}"))
            self.assertIn("result", await client.answer_to(f"list-{status}"))
            self.assertEqual(self.backend.posts("tools/call"), 2 * count)

    async def test_gateway_of_another(self) -> None:
        """A call that a gateway has lost may have been carried out, also if the backend turns out to be another."""
        self.start()
        client = await self.joined()
        for status in (502, 503, 504):
            self.backend.forget()
            self.refuse(response(status, b"away"), "tools/call")
            self.assert_unknown(await client.call(), "maybe")
            self.assertIn("result", await client.ask(messages.request("tools/list", f"list-{status}")))
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("initialize")), (3, 4))

    async def test_gateway_without_sessions(self) -> None:
        """A backend that knows no sessions is waited for in the same way."""
        self.backend.is_stateless = True
        self.start()
        client = await self.joined()
        self.refuse(response(502, b"away"), "tools/call", "ping", "initialize", once=False)
        self.assert_unknown(await client.call(), "maybe")
        asked = len(self.backend.asked)
        await client.begin(messages.call("held"))
        await self.until(lambda: len(self.backend.asked) >= asked + 2)
        self.backend.on_post = self.backend.take_post
        self.assertIn("result", await client.answer_to("held"))
        self.assertEqual(self.backend.posts("tools/call"), 2)

    async def test_starting(self) -> None:
        """A server that says this or that while it starts is waited for, if a stream has ended before."""
        self.start()
        client = await self.joined()
        page = ("Content-Type", "text/html")
        answers = (response(500), response(302, b"", ("Location", "/")), response(200, b"<p>", page))
        for number, answer in enumerate(answers):
            self.refuse(answer, "tools/call", "ping", "initialize", once=False)
            pings = self.backend.posts("ping")
            self.backend.get_stream.hang_up()
            await self.until(lambda pings=pings: self.backend.posts("ping") > pings)
            asked = len(self.backend.asked)
            await self.until(lambda asked=asked: len(self.backend.asked) > asked)
            await client.begin(messages.call(number))
            self.backend.on_post = self.backend.take_post
            self.assertIn("result", await client.answer_to(number))
            await self.until(lambda: self.backend.streams, "the stream is there again")
        self.assertEqual(self.backend.posts("tools/call"), len(answers))

    async def test_500(self) -> None:
        """A 500 is passed on, once."""
        self.start()
        client = await self.joined()
        for method in ("tools/list", "tools/call"):
            self.refuse(response(500, b"oops", ("Content-Type", "text/plain")), method)
            await self.assert_passed_on(client, messages.request(method, method), 500, b"oops")
            self.assertEqual(self.backend.posts(method), 1)
        self.assertEqual(self.backend.posts("initialize"), 1)
        await self.assert_works(client)

    async def assert_passed_on(self, client: Any, message: Json, status: int, body: bytes) -> Any:
        """A Streamable HTTP client gets the status and the body, another an error with the status."""
        if self.kind == "sse":
            error = (await client.ask(message))["error"]
            self.assertEqual(error["data"]["status"], status)
            return None
        answer = await client.post(message)
        self.assertEqual((answer.status, answer.body), (status, body))
        return answer

    async def test_own_error(self) -> None:
        """The backend's own JSON-RPC error under a status reaches the client under the id of its request."""
        self.start()
        client = await self.joined()
        for status in (400, 422, 500):
            self.refuse(refusal(status, -32099, "because"), "tools/call")
            if self.kind == "sse":
                error = (await client.call())["error"]
                self.assertEqual((error["code"], error["message"]), (-32099, "because"))
            else:
                answer = await client.post(messages.call("x"))
                self.assertEqual((answer.status, answer.json()["error"]["code"]), (status, -32099))
                client.sent.clear()  # type: ignore[attr-defined]  # it is passed on as it came, without an id
        self.assertEqual(self.backend.posts("tools/call"), 3)

    async def test_401(self) -> None:
        """A 401 arrives as it was, once, and repeats nothing."""
        await self.challenged(401, 'Bearer error="invalid_token"')

    async def test_403(self) -> None:
        """So does a 403."""
        await self.challenged(403, 'Bearer error="insufficient_scope"')

    async def challenged(self, status: int, challenge: str) -> None:
        self.start()
        client = await self.joined()
        secret = ("X-Secret", "no")
        self.refuse(response(status, b"expired", ("WWW-Authenticate", challenge), secret), "tools/call")
        if self.kind == "sse":
            error = (await client.call())["error"]
            self.assertEqual((error["data"]["status"], error["data"]["delivered"]), (status, "no"))
        answer = await client.post(messages.call("next"))
        self.assertEqual((answer.status, answer.body), (status, b"expired"))
        self.assertEqual(answer.header(b"www-authenticate"), challenge.encode())
        self.assertEqual(answer.header(b"x-secret"), b"")
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("initialize")), (1, 1))
        await self.assert_works(client)

    async def test_401_at_first(self) -> None:
        """A client whose initialize is answered 401 gets that, and may come again."""
        self.start()
        self.refuse(response(401, b"who?", ("WWW-Authenticate", "Bearer x=1")), "initialize")
        client = self.speaker(ALICE)
        answer = await client.post(messages.initialize(0))
        self.assertEqual((answer.status, answer.body), (401, b"who?"))
        self.assertEqual(answer.header(b"www-authenticate"), b"Bearer x=1")
        self.assertEqual(self.backend.posts("initialize"), 1)
        await self.assert_works(await self.joined())

    async def test_401_at_replay(self) -> None:
        """A 401 to the replayed handshake is shown to the client's next request, and then it is tried again."""
        self.start()
        client = await self.joined()
        self.refuse(response(401, b"who?", ("WWW-Authenticate", "Bearer x=1")), "initialize")
        await self.restart()
        await self.until(lambda: "initialize" in self.backend.line(2))
        (session,) = self.internals()._registry
        await self.until(lambda: session.credentials.challenge is not None)
        answer = await client.post(messages.call("x"))
        self.assertEqual((answer.status, answer.header(b"www-authenticate")), (401, b"Bearer x=1"))
        await self.assert_works(client)
        self.assertEqual(self.backend.posts("tools/call"), 1)

    async def test_redirect(self) -> None:
        """A redirected POST is not followed."""
        self.start()
        client = await self.joined()
        where = ("Location", f"http://127.0.0.1:{self.backend.port}/elsewhere")
        for status in (301, 302, 307, 308):
            self.refuse(response(status, b"", where), "tools/call")
            self.assertIn("error", await client.call())
        self.assertEqual([asked.path for asked in self.backend.asked if "elsewhere" in asked.path], [])
        self.assertEqual((self.backend.posts("tools/call"), self.backend.posts("initialize")), (4, 1))
        await self.assert_works(client)

    async def test_gateway_at_replay(self) -> None:
        """A gateway that answers 503 while the backend starts is asked until the backend is there."""
        self.start()
        client = await self.joined()
        self.refuse(response(503, b"starting"), "initialize", once=False)
        await self.restart()
        await client.begin(messages.call("held"))
        await self.until(lambda: self.backend.line(2).count("initialize") >= 2)
        self.backend.on_post = self.backend.take_post
        self.assertIn("result", await client.answer_to("held"))
        self.assertEqual(self.backend.posts("tools/call"), 1)


class StatusesSSE(Statuses):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class First(StreamableCase):
    """A client whose first words meet a backend that is away."""

    async def test_never_there(self) -> None:
        """An initialize waits for the backend, whichever transport the client speaks."""
        self.patch(http_sse, "VERDICT_WAIT", 0.1)
        self.start()
        await self.until(lambda: self.backend.asked, "the first look at its health")
        self.backend.die()
        client = self.speaker(ALICE)
        other = self.client(ALICE)
        await other.open()
        await other.begin(messages.initialize("first"))
        sent = await client.request(messages.initialize("hello"))
        await self.until(lambda: len(self.internals()._registry) == 2)
        self.assertIsNone(sent.answer)
        await self.backend.revive()
        self.assertIn("result", await client.answer_to("hello"))
        self.assertIn("result", await other.answer_to("first"))
        self.assertEqual(self.backend.posts("initialize"), 2)

    async def test_dies_at_initialize(self) -> None:
        """A client does not notice that the backend dies while it answers initialize."""
        self.start()

        def act(reply: Stream) -> None:
            reply.connection.budget = 40
            reply.connection.write(response(200, b"{}" * 50, JSON_HEADER))

        self.act("initialize", act)
        client = self.speaker(ALICE)
        sent = await client.request(messages.initialize("hello"))
        await self.revive_when_dead()
        self.assertIn("result", await client.answer_to("hello"))
        answer = sent.answer
        assert answer is not None
        self.assertTrue(answer.header(b"mcp-session-id"))

    async def test_unanswered(self) -> None:
        """A backend that takes a call and says nothing is waited for, and a cancelled call ends."""
        self.start()
        client = await self.joined()
        self.backend.answers["tools/call"] = silent
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        await client.begin(messages.notification("notifications/cancelled", {"requestId": "slow"}))
        await self.until(lambda: self.backend.deliveries("notifications/cancelled"))
        self.assertEqual(client.answers("slow"), [])
