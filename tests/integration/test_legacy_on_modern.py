"""Clients that begin with a handshake, and a backend of revision 2026-07-28 that knows none."""

from __future__ import annotations

from tests.integration.legacy_case import LegacyCase, meta, progress
from tests.integration.service_case import BOB
from tests.integration.streamable_case import ALICE, result_of
from tests.support import messages, modern
from tests.support.messages import Json, encoded
from tests.support.scripted import Answerer, Stream, response
from tests.support.scripted_modern import NO_HANDSHAKE
from tests.support.scripted_streamable import JSON_HEADER, Reply
from tests.support.streamable_client import StreamableClient


def fails(status: int, code: int, **more: object) -> Answerer:
    """Answer a request with a status and an error, as servers of this revision do."""

    def answer(stream: Stream, asked: Json) -> None:
        body = messages.error(asked["id"], code)
        body["error"].update(more)
        stream.send_raw(response(status, encoded(body), JSON_HEADER))

    return answer


class Handshake(LegacyCase):
    """Who is who."""

    async def test_initialize(self) -> None:
        """The handshake is answered with what the backend says of itself; it sees nothing of it but its questions."""
        self.start()
        await self.legacy()
        self.assertEqual(self.shown["serverInfo"], {"name": "modern", "version": "7"})
        self.assertEqual(self.shown["instructions"], "Be kind.")
        self.assertEqual(self.shown["protocolVersion"], "2025-11-25" if self.kind == "streamable" else "2024-11-05")
        changing = {"listChanged": True}
        self.assertEqual(
            self.shown["capabilities"],
            {"tools": changing, "prompts": changing, "resources": {"subscribe": True, **changing}, "logging": {}},
        )
        self.assertEqual(set(self.shown), {"protocolVersion", "capabilities", "serverInfo", "instructions"})
        self.assertEqual(self.backend.methods(), ["server/discover", "subscriptions/listen"])
        lists = {"toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True}
        self.assertEqual(self.backend.filters(), [lists])

    async def test_bare(self) -> None:
        """A backend that says next to nothing of itself is shown under some name; there is nothing to listen for."""
        self.backend.discovered = {"supportedVersions": [modern.VERSION], "capabilities": {}}
        self.backend.answers["subscriptions/listen"] = lambda stream, asked: messages.error(asked["id"], -32601)
        self.start()
        client = self.speaker(ALICE) if self.kind == "streamable" else self.client(ALICE)
        await client.open()
        result = result_of(await client.initialize())
        self.assertEqual(set(result), {"protocolVersion", "capabilities", "serverInfo"})
        await self.assert_works(client)
        self.assertEqual(self.backend.methods(), ["server/discover", "tools/call"])

    async def test_refusals(self) -> None:
        """However such a backend refuses initialize, it is known for what it is; for later clients at once."""
        for transport in ("auto", "streamable"):
            self.transport = transport
            for shape in NO_HANDSHAKE:
                self.backend.no_handshake = shape
                self.start()
                for headers in (ALICE, BOB):
                    await self.assert_works(await self.legacy(headers))
                tried = [each for each in self.backend.requests() if b'"initialize"' in each.body]
                self.assertEqual(len(tried), 1, (transport, shape))
                self.backend.asked.clear()
                for client in self.clients:
                    client.hang_up()
                assert self.service is not None
                await self.service.stopService()

    async def test_no_verdict(self) -> None:
        """401, 403 and 5xx say nothing about the revision, whichever of the two questions they are an answer to."""
        self.start()
        for status in (401, 403, 500, 503):
            client = self.speaker(ALICE) if self.kind == "streamable" else self.client(ALICE)
            await client.open()
            discover = self.backend.answers["server/discover"]

            def refuse(stream: Stream, asked: Json, status: int = status, discover: Answerer = discover) -> None:
                self.backend.answers["server/discover"] = discover
                fails(status, -32000)(stream, asked)

            self.backend.answers["server/discover"] = refuse
            if status == 503:
                self.assertIn("result", await client.initialize())
            elif isinstance(client, StreamableClient):
                self.assertEqual((await client.post(messages.initialize(0))).status, status)
            else:
                self.assertIn("error", await client.ask(messages.initialize(0)))
            await self.assert_works(await self.legacy())
        self.assertEqual([each.path for each in self.backend.asked if "sse" in each.path], [])

    async def test_down(self) -> None:
        """A client that comes while the backend is away is served when it is there."""
        self.backend.die("fin")
        self.start()
        client = self.speaker(ALICE) if self.kind == "streamable" else self.client(ALICE)
        await client.open()
        if isinstance(client, StreamableClient):
            await client.request(messages.initialize("hello"))
        else:
            await client.begin(messages.initialize("hello"))
        await self.until(lambda: self.internals()._backend.is_down)
        await self.backend.revive()
        self.assertEqual(result_of(await client.answer_to("hello"))["serverInfo"]["name"], "modern")


class HandshakeSSE(Handshake):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Requests(LegacyCase):
    """What a request is at the other side, and its answer."""

    async def test_envelope(self) -> None:
        """Each request tells who asks, as the handshake said; its answer is what the client's revision knows."""
        self.start()
        client = await self.legacy()
        self.backend.answers["tools/call"] = lambda stream, asked: messages.result(
            asked["id"],
            {"resultType": "complete", "ttlMs": 1, "cacheScope": "private", "content": [], "n": 1.0, "_meta": {"x": 1}},
        )
        asked = messages.call("größe", {"n": 1}, name="größe ")
        asked["params"]["_meta"] = {"traceparent": "t", "progressToken": 7}
        self.assertEqual(result_of(await client.ask(asked)), {"content": [], "n": 1.0, "_meta": {"x": 1}})
        (got,) = self.backend.deliveries("tools/call")
        self.assertEqual(meta(got.message, "protocolVersion"), modern.VERSION)
        self.assertEqual(meta(got.message, "clientInfo"), messages.CLIENT_INFO)
        self.assertEqual(meta(got.message, "clientCapabilities"), self.capabilities)
        self.assertIsNone(meta(got.message, "logLevel"))
        self.assertEqual(got.message["params"]["_meta"]["traceparent"], "t")
        self.assertEqual(got.message["params"]["arguments"], {"n": 1})
        self.assertTrue(got.headers["mcp-name"].startswith("=?base64?"))
        self.assertEqual(got.headers["x-api-key"], ALICE[1].decode())

    async def test_local(self) -> None:
        """What the revision does not know is answered here, or swallowed."""
        self.start()
        client = await self.legacy()
        self.assertEqual(result_of(await client.ask(messages.request("ping", "p"))), {})
        await client.begin(messages.notification("notifications/roots/list_changed"))
        await client.begin(progress("t", 1))
        for number, (method, params, code) in enumerate((
            ("logging/setLevel", {"level": "loud"}, -32602),
            ("resources/subscribe", {}, -32602),
            ("server/discover", {}, -32601),
            ("subscriptions/listen", {"notifications": {}}, -32601),
        )):  # fmt: skip
            answer = await client.ask(messages.request(method, number, params))
            self.assertEqual(answer["error"]["code"], code, method)
        await self.assert_works(client)
        self.assertEqual(self.backend.methods(), ["server/discover", "subscriptions/listen", "tools/call"])

    async def test_level(self) -> None:
        """A log level goes with every request after it was set, also to the next backend; logs come with the call."""
        self.start()
        client = await self.legacy()
        self.assertEqual(result_of(await client.ask(messages.request("logging/setLevel", 1, {"level": "info"}))), {})

        def talk(stream: Stream, asked: Json) -> Json:
            assert isinstance(stream, Reply)
            stream.begin()
            stream.send(messages.notification("notifications/message", {"level": "info", "data": asked["id"]}))
            return messages.result(asked["id"], {})

        self.backend.answers["tools/call"] = talk
        for count in (1, 2):
            self.assertIn("result", await client.call())
            self.assertEqual(len(client.notifications("notifications/message")), count)
            self.assertEqual(meta(self.backend.deliveries("tools/call")[-1].message, "logLevel"), "info")
            await self.restart()

    async def test_stream(self) -> None:
        """What comes before the answer comes to the client as it comes, under its own token."""
        self.start()
        client = await self.legacy()
        asked = messages.call("slow")
        asked["params"]["_meta"] = {"progressToken": "mine"}
        reply = await self.pending(client, asked)
        token = reply.message["params"]["_meta"]["progressToken"]
        reply.begin()
        for number in (1, 2):
            reply.send(progress(token, number))
            await self.until(lambda number=number: len(client.notifications("notifications/progress")) == number)
        reply.answer(messages.result(reply.message["id"], {"resultType": "complete", "done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        tokens = {each["params"]["progressToken"] for each in client.notifications("notifications/progress")}
        self.assertEqual(tokens, {"mine"})

    async def test_errors(self) -> None:
        """An error is an answer, whatever its status; one that the proxy is to blame for is told as such."""
        self.start()
        client = await self.legacy()
        expected = {-32602: -32602, -32601: -32601, -32000: -32000, -32021: -32603, -32022: -32603, -32020: -32603}
        for number, (code, shown) in enumerate(expected.items()):
            status = {-32601: 404, -32000: 200}.get(code, 400)
            self.backend.answers["prompts/get"] = fails(status, code, data={"n": 1})
            error = (await client.ask(messages.request("prompts/get", number, {"name": "p"})))["error"]
            self.assertEqual(error["code"], shown)
            self.assertEqual(error["data"], {"n": 1} if code == shown else {**error["data"], "code": code})
        self.assertEqual(len(self.backend.deliveries("prompts/get")), len(expected))
        if isinstance(client, StreamableClient):
            self.assertEqual((await client.post(messages.request("prompts/get", 9, {"name": "p"}))).status, 200)

    async def test_genuine_refusal(self) -> None:
        """A refusal without an error of the request's is passed on, when the backend is known to be the same still."""
        self.start()
        client = await self.legacy()
        self.act("tools/call", lambda stream: stream.send_raw(response(400, b"bad")))
        if isinstance(client, StreamableClient):
            answer = await client.post(messages.call(1))
            self.assertEqual((answer.status, answer.body), (400, b"bad"))
        else:
            self.assertEqual((await client.ask(messages.call(1)))["error"]["data"]["status"], 400)
        await self.assert_works(client)
        self.assertEqual(len(self.backend.deliveries("server/discover")), 2)

    async def test_other_results(self) -> None:
        """A result of a type that the client's revision has no word for is an error that says so."""
        self.start()
        client = await self.legacy()
        for kind in ("task", "strange"):
            self.backend.answers["tools/call"] = lambda stream, asked, kind=kind: messages.result(
                asked["id"], {"resultType": kind, "taskId": "t"}
            )
            error = (await client.call())["error"]
            self.assertEqual((error["code"], error["data"]["delivered"]), (-32603, "yes"))
            self.assertIn(repr(kind), error["message"])


class RequestsSSE(Requests):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Statuses(LegacyCase):
    """What only a Streamable HTTP client can see."""

    async def test_challenge(self) -> None:
        """401 and 403 arrive as they are, but for the id of the request."""
        self.start()
        client = self.speaker(ALICE)
        await client.initialize()
        for status in (401, 403):
            text = response(status, b"no", ("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer scope=x"))
            self.act("tools/call", lambda stream, text=text: stream.send_raw(text))
            answer = await client.post(messages.call(status))
            self.assertEqual((answer.status, answer.body), (status, b"no"))
            self.assertEqual(answer.header(b"www-authenticate"), b"Bearer scope=x")
            self.act("tools/call", lambda stream, status=status: fails(status, -32001)(stream, stream.message))
            mine = f"mine {status}"
            self.assertEqual((await client.post(messages.call(mine))).json()["id"], mine)
        await self.assert_works(client)

    async def test_batch(self) -> None:
        """An array of a client of 2025-03-26 is split; the answers come as one."""
        self.start()
        client = self.speaker(BOB, version="2025-03-26")
        await client.initialize()
        answer = await client.post([messages.call(1), messages.call(2), messages.request("ping", 3)])
        self.assertEqual(sorted(each["id"] for each in answer.json()), [1, 2, 3])


def annotated(name: str, **properties: Json) -> Json:
    """A tool with these properties."""
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}


REGION: Json = {"type": "string", "x-mcp-header": "Region"}


class Parameters(LegacyCase):
    """Arguments that are repeated in headers."""

    async def test_learned(self) -> None:
        """They are repeated as the list of tools says; tools that ask for the impossible are not shown."""
        good = annotated("good", region=REGION, n={"type": "integer", "x-mcp-header": "N"}, plain={"type": "string"})
        bad = annotated("bad", n={"type": "number", "x-mcp-header": "N"})
        self.backend.tools = [good, bad]
        self.start()
        client = await self.legacy()
        tools = result_of(await client.ask(messages.request("tools/list", 1)))
        self.assertEqual(tools, {"tools": [good]})
        await client.ask(messages.call(2, {"region": "süd", "n": 3, "plain": "x"}, "good"))
        await client.ask(messages.call(3, {"region": None}, "good"))
        first, second = (
            {name: value for name, value in each.headers.items() if name.startswith("mcp-param-")}
            for each in self.backend.deliveries("tools/call")
        )
        self.assertEqual(first, {"mcp-param-region": "=?base64?c8O8ZA==?=", "mcp-param-n": "3"})
        self.assertEqual(second, {})

    def strict(self, stream: Stream, asked: Json) -> Json | None:
        if "mcp-param-region" not in stream.headers:
            fails(400, -32020)(stream, asked)
            return None
        return messages.result(asked["id"], {"resultType": "complete", "region": stream.headers["mcp-param-region"]})

    async def test_unknown(self) -> None:
        """A call that lacks one is made again, once, when the tools have been read; also after a restart."""
        self.backend.tools = [annotated("strict", region=REGION)]
        self.backend.answers["tools/call"] = self.strict
        self.start()
        client = await self.legacy()
        for count in (1, 2):
            answers = [await client.ask(messages.call(f"{count} {n}", {"region": "us"}, "strict")) for n in (1, 2)]
            self.assertEqual([result_of(each) for each in answers], [{"region": "us"}] * 2)
            self.assertEqual(len(self.backend.deliveries("tools/list")), count)
            self.assertEqual(len(self.backend.deliveries("tools/call")), 3 * count)
            await self.restart()

    async def test_never_right(self) -> None:
        """A call that is refused again is answered with that."""
        self.backend.answers["tools/call"] = fails(400, -32020)
        self.start()
        client = await self.legacy()
        error = (await client.call())["error"]
        self.assertEqual((error["code"], error["data"]["code"]), (-32603, -32020))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)
