"""Revision 2026-07-28 over real sockets, with a backend that dies where it is told."""

from __future__ import annotations

from typing import Any

from mcp_proxy.service import ProxyService
from tests.integration.service_case import ALICE, BOB, reactor
from tests.integration.streamable_case import StreamableCase, silent
from tests.support import messages, modern
from tests.support.http1 import count_comments
from tests.support.messages import Json, encoded
from tests.support.modern_client import ModernClient
from tests.support.scripted import ScriptedBackend, Stream, response
from tests.support.scripted_modern import DISCOVERED, ModernBackend
from tests.support.scripted_streamable import JSON_HEADER, Reply, refusal
from tests.support.streamable_client import Sent
from tests.support.wire import Client

TOOLS_CHANGED = "notifications/tools/list_changed"


class ModernCase(StreamableCase):
    """A test with the whole program and a backend of this revision."""

    transport = "auto"
    backend: ModernBackend

    def setUp(self) -> None:
        """A backend that listens; the program is started by the test."""
        self.backend = ModernBackend(reactor)
        self.backend.start()
        self.others: list[ScriptedBackend] = []
        self.service: ProxyService | None = None
        self.port = 0
        self.clients: list[Client] = []
        self.forgives_violations = False

    def visitor(self, *headers: tuple[bytes, bytes]) -> ModernClient:
        """A client of this revision."""
        client = ModernClient(reactor, self.port, *(headers or (ALICE,)))
        self.clients.append(client)
        return client

    async def deliveries(self, method: str, count: int) -> None:
        """Wait until the backend has got so many messages of this method."""
        await self.until(lambda: len(self.backend.deliveries(method)) == count, self.backend.methods)

    async def gone(self, reply: Reply) -> None:
        """Wait until the connection of this reply is closed."""
        await self.until(lambda: reply.connection.closed, "the backend's stream is closed")

    def registry(self) -> list[Any]:
        """The sessions that there are."""
        return list(self.internals()._registry)

    async def tearDown(self) -> None:  # type: ignore[override]  # trial awaits it
        """When every client has gone, no session of one request is left."""
        try:
            for client in self.clients:
                client.hang_up()
            await self.until(lambda: self.internals()._health.describe()["last_check"], "the health page was asked for")
            await self.until(lambda: all(session.id for session in self.registry()), self.registry)
        finally:
            await super().tearDown()


class Answered(ModernCase):
    async def test_json_and_stream(self) -> None:
        """Both kinds of answer arrive as such, and what was asked reaches the backend as it came."""
        self.start()
        client = self.visitor(ALICE, (b"authorization", b"Bearer t"), (b"mcp-param-region", b"us"))
        message = modern.call("größe", {"n": 1}, name="größe")
        sent = await client.request(message)
        answer = await client.complete(sent)
        self.assertEqual((answer.status, answer.header(b"content-type")), (200, b"application/json"))
        (asked,) = [each for each in self.backend.asked if each.method == "POST"]
        self.assertEqual(asked.body, encoded(message))
        for name, value in (("authorization", "Bearer t"), ("mcp-param-region", "us"), ("mcp-method", "tools/call")):
            self.assertEqual(asked.headers[name], value)

        def stream(reply: Stream, asked: Json) -> None:
            assert isinstance(reply, Reply)
            reply.begin(prime=True)
            reply.send(messages.notification("notifications/progress", {"progressToken": "p", "progress": 1}))
            reply.answer(messages.result(asked["id"], {}))

        self.backend.answers["tools/call"] = stream
        sent = await client.request(modern.call("s", progressToken="p"))
        await client.complete(sent)
        self.assertEqual([each.get("method", "answer") for each in sent.messages], ["notifications/progress", "answer"])
        self.assertEqual([each.id for each in sent.events], ["", ""])

    async def test_no_delay(self) -> None:
        """Each event passes as it comes, while the answer is still open."""
        self.start()
        self.backend.answers["tools/call"] = silent
        client = self.visitor()
        sent = await client.request(modern.call("c"))
        await self.deliveries("tools/call", 1)
        reply = self.backend.reply_to("tools/call")
        reply.begin()
        for number in range(3):
            reply.send(messages.notification("notifications/x", {"n": number}))
            await self.until(lambda: len(sent.messages) == number + 1, sent.messages)  # noqa: B023
        reply.answer(messages.result("c", {}))
        await client.complete(sent)

    async def test_refusals(self) -> None:
        """Statuses, bodies and challenges pass unchanged, once; nothing is taken for a lost session."""
        self.start()
        client = self.visitor()
        for number, (status, code) in enumerate(((404, -32601), (400, -32602), (400, -32021), (401, -32000))):
            challenge = ("WWW-Authenticate", "Bearer scope=x")
            body = encoded(messages.error(number, code))
            answer = response(status, body, JSON_HEADER, challenge)
            self.act("tools/call", lambda stream, answer=answer: stream.send_raw(answer))
            seen = await client.complete(await client.request(modern.call(number)))
            self.assertEqual((seen.status, seen.body), (status, body))
            self.assertEqual(seen.header(b"www-authenticate"), challenge[1].encode())
        self.assertEqual(len(self.backend.deliveries("tools/call")), 4)
        self.assertIn("result", await client.call())
        self.assertEqual(set(self.backend.line()), {"tools/call"})

    async def test_refused_here(self) -> None:
        """What contradicts itself never reaches the backend."""
        self.start()
        client = self.visitor()
        sent = await client.request(modern.call(1), (b"mcp-method", b"tools/call"))
        answer = await client.complete(sent)
        self.assertEqual((answer.status, answer.json()["error"]["code"]), (400, -32020))
        self.assertEqual(self.backend.requests(), [])

    async def test_beside_sessions(self) -> None:
        """A client with a session and one without use one proxy and one backend, over a restart as well."""
        self.start()
        old, new = await self.speaking(BOB), self.visitor(ALICE)
        self.assertIn("result", await new.call())
        for _ in range(2):
            await self.backend.restart()
            self.assertIn("result", await new.call())
            now = self.backend.generation
            await self.until(lambda: "notifications/initialized" in self.backend.methods(now))  # noqa: B023
            self.assertIn("result", await old.call())


class Restarted(ModernCase):
    async def test_between(self) -> None:
        """A restart between two requests is not seen."""
        self.start()
        client = self.visitor()
        for _ in range(3):
            self.assertIn("result", await client.call())
            await self.backend.restart()
        self.assertIn("result", await client.call())
        self.assertEqual(self.backend.methods(), ["tools/call"] * 4)

    async def test_idle_connection_closed(self) -> None:
        """A backend that closes its idle connections is asked on a new one."""
        self.start()
        client = self.visitor()
        for message in (modern.call("a"), modern.request("tools/list", "b")):
            await client.ask(modern.request("tools/list", f"before-{message['id']}"))
            self.backend.close_idle()
            self.assertIn("result", await client.ask(message))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_held(self) -> None:
        """What comes while nobody listens is delivered once and answered, when somebody does again."""
        self.start()
        clients = [self.visitor(who) for who in (ALICE, BOB)]
        await clients[0].call()
        self.backend.die()
        for client in clients:
            for identity in (1, "1", "x"):
                await client.request(modern.call(identity, {"held": True}))
            await client.request(modern.request("server/discover", "d"))
        await self.until(lambda: len(self.registry()) == 8, self.registry)
        await self.backend.revive()
        for client in clients:
            for identity in (1, "1", "x", "d"):
                self.assertIn("result", await client.answer_to(identity))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 7)

    def away(self, status: int) -> None:
        """Have a gateway answer whatever is asked, as if nobody were behind it."""
        self.backend.health = response(status, b"away")
        self.backend.on_post = lambda connection, asked: connection.write(response(status, b"away"))

    def back(self) -> None:
        """Somebody is behind it."""
        self.backend.health = response(200, b"{}")
        self.backend.on_post = self.backend.take_post

    async def test_gateway(self) -> None:
        """A call that a gateway has lost is answered with the truth, and what comes later waits for the backend."""
        self.start()
        client = self.visitor()
        for count, status in enumerate((502, 503, 504, 521), 1):
            self.away(status)
            await client.request(modern.request("tools/list", f"list-{status}"))
            await client.request(modern.call(f"met-{status}"))
            self.assert_unknown(await client.answer_to(f"met-{status}"), "maybe")
            for number in range(3):
                await client.request(modern.call(f"held-{status}-{number}"))
            asked = len(self.backend.asked)
            await self.until(lambda asked=asked: len(self.backend.asked) >= asked + 4)
            self.back()
            for number in range(3):
                self.assertIn("result", await client.answer_to(f"held-{status}-{number}"))
            self.assertIn("result", await client.answer_to(f"list-{status}"))
            self.assertEqual(len(self.backend.deliveries("tools/call")), 3 * count)

    async def test_gateway_later(self) -> None:
        """The same if nobody waits in the meantime; that a gateway listens does not mean that the backend is back."""
        self.start()
        client = self.visitor()
        self.away(502)
        self.assert_unknown(await client.call(), "maybe")
        leaving = await client.request(modern.call("leaving"))
        await self.until(lambda: self.internals()._backend.is_down)
        leaving.wire.abort()
        await self.until(lambda: not self.registry(), self.registry)
        await self.until(lambda: any(asked.path == "/health" for asked in self.backend.asked[-2:]))
        await client.request(modern.call("held"))
        asked = len(self.backend.asked)
        await self.until(lambda: len(self.backend.asked) >= asked + 2)
        self.back()
        self.assertIn("result", await client.answer_to("held"))
        self.away(502)
        self.assert_unknown(await client.call(), "maybe")
        self.back()
        self.assertIn("result", await client.call())
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)

    async def test_busy(self) -> None:
        """A 503 of a backend that is there is that message's own affair: a list is repeated, a call is not."""
        self.start()
        client = self.visitor()
        for method in ("tools/list", "tools/call"):
            self.act(method, lambda stream: stream.send_raw(response(503, b"busy")))
            answer = await client.ask(modern.request(method, method, {"name": "echo"} if "call" in method else None))
            if method == "tools/list":
                self.assertIn("result", answer)
            else:
                self.assert_unknown(answer, "maybe")
        self.assertEqual(self.internals()._backend.outages, 0)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_first_of_all(self) -> None:
        """A proxy that starts before its backend holds what comes."""
        self.backend.die()
        self.start()
        client = self.visitor()
        await client.request(modern.call("early"))
        await self.until(lambda: self.internals()._backend.outages, "it was looked for in vain")
        await self.backend.revive()
        self.assertIn("result", await client.answer_to("early"))
        self.assertEqual(self.backend.methods(), ["server/discover", "tools/call"])

    async def test_call_in_flight(self) -> None:
        """A call that was read when the backend died is answered with the truth and not repeated."""
        for how in ("rst", "fin"):
            if self.service is None:
                self.start()
            client = self.visitor()
            self.act("tools/call", lambda stream, how=how: self.backend.die(how))
            self.assert_unknown(await client.call(), "maybe")
            await self.revive_when_dead()
            self.assertIn("result", await client.call())
        self.assertEqual(len(self.backend.deliveries("tools/call")), 4)

    async def test_call_on_stream(self) -> None:
        """The same on a stream that had begun, at the end of that stream."""
        self.start()
        client = self.visitor()

        def progress_and_die(stream: Stream) -> None:
            assert isinstance(stream, Reply)
            stream.begin()
            stream.send(messages.notification("notifications/x"))
            self.backend.die("fin")

        self.act("tools/call", progress_and_die)
        sent = await client.request(modern.call("c"))
        answer = await client.complete(sent)
        self.assertEqual((answer.status, sent.messages[0]["method"]), (200, "notifications/x"))
        self.assert_unknown(sent.messages[1], "yes")

    async def test_call_cut_off(self) -> None:
        """An answer that is cut off is no answer."""
        self.start()
        client = self.visitor()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"

        def cut(stream: Stream) -> None:
            stream.send_raw(head + b'{"jsonrpc":"2.0","id":"c",')
            self.backend.die("fin")

        self.act("tools/call", cut)
        self.assert_unknown(await client.ask(modern.call("c")), "yes")

    async def test_list_in_flight(self) -> None:
        """A list that was read when the backend died is asked again, also after its stream had begun."""
        self.start()
        client = self.visitor()
        for begins in (False, True):

            def die(stream: Stream, begins: bool = begins) -> None:
                assert isinstance(stream, Reply)
                if begins:
                    stream.begin()
                self.backend.die()

            self.act("tools/list", die)
            sent = await client.request(modern.request("tools/list", f"list-{begins}"))
            await self.revive_when_dead()
            await client.complete(sent)
            self.assertEqual([each["id"] for each in sent.messages], [f"list-{begins}"])
            self.assertIn("result", sent.messages[0])
        self.assertEqual(len(self.backend.deliveries("tools/list")), 4)

    async def test_answers_are_used_once(self) -> None:
        """A prompt that was asked with answers to questions is not asked again."""
        self.start()
        client = self.visitor()
        self.act("prompts/get", lambda stream: self.backend.die())
        params = {"name": "p", "inputResponses": {"k": {}}, "requestState": "s"}
        answer = await client.ask(modern.request("prompts/get", 1, params))
        self.assertEqual(answer["error"]["code"], -31002)
        await self.revive_when_dead()
        await client.call()
        self.assertEqual(len(self.backend.deliveries("prompts/get")), 1)

    async def test_discover_in_flight(self) -> None:
        """A discover that was read when the backend died is asked of the next, and answered with one message."""
        self.start()
        client = self.visitor()
        self.act("server/discover", lambda stream: self.backend.die())
        sent = await client.request(modern.request("server/discover", 1))
        await self.revive_when_dead()
        answer = await client.complete(sent)
        self.assertEqual((answer.status, answer.json()), (200, messages.result(1, DISCOVERED)))


class Listening(ModernCase):
    def seen(self, sent: Sent) -> list[str]:
        """The methods of what has come."""
        return [each.get("method", "answer") for each in sent.messages]

    async def test_over_restarts(self) -> None:
        """A subscription stays over restarts: no second acknowledgement, news each time, and news of the backend's."""
        self.start()
        client = self.visitor()
        subscriptions = {identity: await client.subscribe(identity, toolsListChanged=True) for identity in (1, "1")}
        for count in (2, 3, 4):
            await self.backend.restart()
            for sent in subscriptions.values():
                await self.until(lambda: len(sent.messages) == count, lambda: sent.messages)  # noqa: B023
        for identity, sent in subscriptions.items():
            self.backend.listening(identity).send(modern.told(TOOLS_CHANGED, identity))
            await self.until(lambda: len(sent.messages) == 5, lambda: sent.messages)  # noqa: B023
            expected = [modern.acknowledged(identity, toolsListChanged=True)]
            self.assertEqual(sent.messages, [*expected, *[modern.told(TOOLS_CHANGED, identity)] * 4])
            ids = {type(each["params"]["_meta"][modern.META_SUBSCRIPTION]) for each in sent.messages}
            self.assertEqual(ids, {type(identity)})
            self.assertFalse(sent.wire.closed)

    async def test_in_outage(self) -> None:
        """It outlasts an outage that is longer than anybody waits, and comments keep it alive."""
        self.start(hold_timeout=0.1, max_reconnect_attempts=2)
        client = self.visitor()
        sent = await client.subscribe("s", toolsListChanged=True)
        self.backend.die()
        comments = count_comments(bytes(sent.wire.data))
        await self.until(lambda: count_comments(bytes(sent.wire.data)) >= comments + 5, "comments")
        self.assertEqual(self.seen(sent), [modern.ACKNOWLEDGED])
        await self.backend.revive()
        await self.until(lambda: len(sent.messages) == 2, lambda: sent.messages)
        self.assertEqual(sent.messages[1], modern.told(TOOLS_CHANGED, "s"))

    async def test_less(self) -> None:
        """A next backend that honours less ends it with a complete result."""
        self.start()
        client = self.visitor()
        sent = await client.subscribe(1, toolsListChanged=True, promptsListChanged=True)
        self.backend.honours.discard("promptsListChanged")
        await self.backend.restart()
        await client.complete(sent)
        result = {"resultType": "complete", "_meta": {modern.META_SUBSCRIPTION: 1}}
        self.assertEqual(sent.messages[1:], [messages.result(1, result)])
        await self.gone(self.backend.listening(1))

    async def test_dropped_by_backend(self) -> None:
        """A stream that ends without a result while the backend lives is asked for again."""
        self.start()
        client = self.visitor()
        sent = await client.subscribe(1, toolsListChanged=True)
        for count in (2, 3):
            self.backend.listening(1).hang_up()
            await self.until(lambda: len(sent.messages) == count, lambda: sent.messages)  # noqa: B023
        self.assertEqual(self.seen(sent), [modern.ACKNOWLEDGED, TOOLS_CHANGED, TOOLS_CHANGED])

    async def test_ended_by_backend(self) -> None:
        """One that ends with a result is over."""
        self.start()
        client = self.visitor()
        sent = await client.subscribe(1, toolsListChanged=True)
        self.backend.listening(1).answer(messages.result(1, {"resultType": "complete"}))
        await client.complete(sent)
        self.assertEqual(self.seen(sent), [modern.ACKNOWLEDGED, "answer"])
        self.assertEqual(len(self.backend.deliveries("subscriptions/listen")), 1)

    async def test_next_is_older(self) -> None:
        """With a next backend of an earlier revision it goes on: its tools may have changed."""
        self.start()
        client = self.visitor()
        sent = await client.subscribe(1, toolsListChanged=True)
        self.backend.answers["subscriptions/listen"] = lambda stream, asked: stream.send_raw(
            refusal(404, -32601, "Method not found")
        )
        await self.backend.restart()
        await self.until(lambda: len(sent.messages) == 2, lambda: sent.messages)
        self.assertEqual(sent.messages[1], modern.told(TOOLS_CHANGED, 1))
        self.assertIn("initialize", self.backend.methods())


class Leaving(ModernCase):
    async def test_closes_the_backends(self) -> None:
        """A client that leaves closes the backend's side: of a silent call, of a stream, of a subscription."""
        self.start()
        client = self.visitor()
        self.backend.answers["tools/call"] = silent
        call = await client.request(modern.call("c"))
        listening = await client.subscribe("l", toolsListChanged=True)
        await self.deliveries("tools/call", 1)
        first = self.backend.reply_to("tools/call")
        call.wire.abort()
        await self.gone(first)
        streaming = await client.request(modern.call("d"))
        await self.deliveries("tools/call", 2)
        second = self.backend.reply_to("tools/call")
        second.begin()
        await self.until(lambda: streaming.is_stream)
        streaming.wire.abort()
        await self.gone(second)
        third = self.backend.listening("l")
        self.assertFalse(third.connection.closed)
        listening.wire.abort()
        await self.gone(third)
        self.assertEqual(self.registry(), [])

    async def test_held(self) -> None:
        """What is held for a client that leaves is never delivered."""
        self.start()
        client, other = self.visitor(ALICE), self.visitor(BOB)
        self.backend.die()
        held = [await client.request(modern.call(f"h{n}")) for n in range(3)]
        await other.request(modern.call("other"))
        await self.until(lambda: len(self.registry()) == 4, self.registry)
        for sent in held:
            sent.wire.abort()
        await self.until(lambda: len(self.registry()) == 1, self.registry)
        await self.backend.revive()
        await other.answer_to("other")
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_waiting_for_another_try(self) -> None:
        """Nor is a list asked again for a client that has left in the outage, nor a subscription."""
        self.start()
        client = self.visitor()
        listening = await client.subscribe("l", toolsListChanged=True)
        self.act("tools/list", lambda stream: self.backend.die())
        sent = await client.request(modern.request("tools/list", "t"))
        await self.until(lambda: not self.backend.is_listening)
        sent.wire.abort()
        listening.wire.abort()
        await self.until(lambda: not self.registry(), self.registry)
        await self.backend.revive()
        await client.call()
        asked = ["subscriptions/listen", "tools/list", "server/discover", "tools/call"]
        self.assertEqual(self.backend.methods(), asked)

    async def test_shutdown(self) -> None:
        """A program that stops leaves nobody without a word, and no connection at the backend."""
        self.start()
        client = self.visitor()
        self.backend.answers["tools/call"] = silent
        sent = await client.request(modern.call("c"))
        listening = await client.subscribe("l", toolsListChanged=True)
        await self.deliveries("tools/call", 1)
        assert self.service is not None
        await self.service.stopService()
        await client.complete(sent)
        await client.complete(listening)
        self.assert_unknown(sent.messages[0], "maybe")
