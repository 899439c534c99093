"""The backend's transport is found out, remembered, and found out again; every client speaks to every backend."""

from __future__ import annotations

import json
from typing import Any

from tests.integration.service_case import reactor
from tests.integration.streamable_case import ALICE, StreamableCase, messages, result_of, silent
from tests.support.messages import Json
from tests.support.scripted import Asked, BackendConnection, ScriptedBackend, response
from tests.support.scripted_streamable import StreamableBackend
from tests.support.wire import Client

SAMPLING = "sampling/createMessage"


class OldBackend(ScriptedBackend):
    """An HTTP+SSE backend that has no other endpoint; ``refusal`` is what it says to a POST there."""

    refusal = response(404, b"Not Found")

    def serve(self, connection: BackendConnection, asked: Asked) -> None:
        """Answer one HTTP request."""
        if asked.path == "/mcp":
            connection.write(self.refusal)
        else:
            super().serve(connection, asked)


class AutoCase(StreamableCase):
    transport = "auto"

    def old(self) -> OldBackend:
        """An HTTP+SSE backend."""
        return OldBackend(reactor)

    def tries(self, backend: ScriptedBackend) -> int:
        """How many handshakes were tried at its Streamable HTTP endpoint."""
        return sum(asked.path == "/mcp" and b'"initialize"' in asked.body for asked in backend.asked)

    async def initialized(self, backend: ScriptedBackend, client: Client) -> None:
        """A client goes through its handshake."""
        await client.open()
        self.assertIn("result", await client.initialize())
        await self.until(lambda: "notifications/initialized" in backend.methods())


class Detected(AutoCase):
    """Which transport it is."""

    def newcomer(self) -> Client:
        """A client of this case's kind."""
        return self.speaker(ALICE) if self.kind == "streamable" else self.client(ALICE)

    async def test_streamable(self) -> None:
        """A backend that answers at its MCP endpoint speaks Streamable HTTP; that is found out once."""
        self.start()
        for _ in range(2):
            client = await self.joined()
            await self.assert_works(client)
        self.assertEqual(self.backend.posts("initialize"), 2)
        self.assertEqual([each.path for each in self.backend.asked if "sse" in each.path], [])

    async def old_backend(self, status: int) -> None:
        old = self.old()
        old.refusal = response(status, b"no")
        await self.become(old)
        self.start()
        for _ in range(2):
            client = self.newcomer()
            await self.initialized(old, client)
            self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(self.tries(old), 1, "it is remembered")
        self.assertEqual(len(old.deliveries("initialize")), 2)

    async def test_404(self) -> None:
        """A backend without an MCP endpoint speaks HTTP+SSE."""
        await self.old_backend(404)

    async def test_405(self) -> None:
        """So does one that takes no POST there."""
        await self.old_backend(405)

    async def test_400(self) -> None:
        """So does one that finds the POST bad, if it has the other endpoint."""
        await self.old_backend(400)

    async def test_no_verdict(self) -> None:
        """401, 403, 5xx and a refused connection say nothing about the transport."""
        self.start()
        for status in (401, 403, 500, 503):
            self.refuse_initialize(status)
            client = self.newcomer()
            await client.open()
            if self.kind == "streamable":
                self.assertEqual((await client.post(messages.initialize(0))).status, 200 if status == 503 else status)
            else:
                answer = await client.ask(messages.initialize(0))
                self.assertEqual("result" in answer, status == 503)
        view = self.internals()._backend
        self.backend.die()
        client = self.speaker(ALICE)
        await client.request(messages.initialize(1))
        await self.until(lambda: view.is_down)
        await self.backend.revive()
        self.assertIn("result", await client.answer_to(1))
        self.assertEqual([each.path for each in self.backend.asked if "sse" in each.path], [])

    def refuse_initialize(self, status: int) -> None:
        def on_post(connection: BackendConnection, asked: Asked) -> None:
            self.backend.on_post = self.backend.take_post
            connection.write(response(status, b"no"))

        self.backend.on_post = on_post

    async def test_paths(self) -> None:
        """The endpoint is where the settings say."""
        self.backend.path = "/elsewhere/mcp"
        self.start(backend_mcp_path="/elsewhere/mcp")
        await self.assert_works(await self.joined())

    async def test_restart(self) -> None:
        """A restart of a backend of the same transport."""
        self.start()
        client = await self.joined()
        for _ in range(2):
            await self.restart()
            await self.assert_works(client)
        self.assertEqual([each.path for each in self.backend.asked if "sse" in each.path], [])

    async def test_changes(self) -> None:
        """A backend that comes back with the other transport, and back again, keeps its clients."""
        self.start()
        client = await self.joined()
        self.assertIn("result", await client.ask(messages.request("logging/setLevel", 1, {"level": "debug"})))
        old, new = self.old(), StreamableBackend(reactor)
        await self.become(old)
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(old.methods(), ["initialize", "notifications/initialized", "logging/setLevel", "tools/call"])
        await self.become(new)
        self.assertEqual(result_of(await client.call(n=2)), {"echo": {"n": 2}})
        self.assertEqual(
            [each for each in new.line() if each not in ("ping", "GET")],
            ["initialize", "notifications/initialized", "logging/setLevel", "tools/call"],
        )
        self.assertEqual(len(old.deliveries("tools/call")), 1)
        await self.service_stopped()

    async def test_changes_unseen(self) -> None:
        """The same where no stream of the backend's tells of the change."""
        self.backend.offers_stream = False
        self.start()
        client = await self.joined()
        old = self.old()
        await self.become(old)
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(len(old.deliveries("tools/call")), 1)

    async def test_changes_unseen_newcomer(self) -> None:
        """The same for a client that comes then: what was known is tried once, not twice."""
        self.backend.offers_stream = False
        self.start()
        await self.joined()
        old = self.old()
        await self.become(old)
        client = self.newcomer()
        await self.initialized(old, client)
        self.assertLessEqual(self.tries(old), 2)
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})

    async def test_starts_later(self) -> None:
        """A backend that is not there yet is found out when it is."""
        self.start()
        await self.until(lambda: self.backend.asked, "the first look at its health")
        self.backend.die()
        old = self.old()
        client = self.newcomer()
        await client.open()
        if self.kind == "streamable":
            await client.request(messages.initialize(0))  # type: ignore[attr-defined]
        else:
            await client.begin(messages.initialize(0))
        await self.become(old)
        self.assertIn("result", await client.answer_to(0))

    async def service_stopped(self) -> None:
        """Nothing is asked of a backend that is about to go."""
        assert self.service is not None
        await self.service.stopService()
        self.service = None


class DetectedSSE(Detected):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Neither(AutoCase):
    async def test_neither(self) -> None:
        """A backend that speaks neither transport is called that, and found when it speaks one."""
        self.backend.path = "/elsewhere"
        self.start(max_reconnect_attempts=2, hold_timeout=1.0)
        error = (await self.speaker(ALICE).initialize())["error"]
        self.assertEqual(error["code"], -31001)
        self.assertIn("neither Streamable HTTP (HTTP 404) nor HTTP+SSE", error["message"])
        self.backend.path = "/mcp"
        await self.assert_works(await self.joined())


class Across(AutoCase):
    """A Streamable HTTP client on an HTTP+SSE backend. The other way round is tested wherever ``kind`` is "sse"."""

    async def met(self) -> tuple[Any, OldBackend]:
        """Client and backend after their handshake."""
        old = self.old()
        await self.become(old)
        self.start(backend_transport="sse")
        client = self.speaker(ALICE)
        await self.initialized(old, client)
        return client, old

    async def test_everyday(self) -> None:
        """Calls, lists and errors are answered as JSON to their own POSTs."""
        client, old = await self.met()
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(result_of(await client.ask(messages.request("tools/list", "l"))), {"tools": messages.TOOLS})
        self.assertEqual((await client.ask(messages.request("nope", "n")))["error"]["code"], -32601)
        self.assertEqual(len(old.deliveries("initialize")), 1)

    async def test_progress(self) -> None:
        """Progress goes to the reply of the request whose token it has; other notifications to the GET stream."""
        client, old = await self.met()
        old.answers["tools/call"] = silent
        listening = await client.listen()
        for identity in ("a", "b"):
            params: Json = {"name": "echo", "arguments": {}, "_meta": {"progressToken": f"token-{identity}"}}
            await client.begin(messages.request("tools/call", identity, params))
        await self.until(lambda: len(old.deliveries("tools/call")) == 2)
        for identity in ("b", "a"):
            progress = {"progressToken": f"token-{identity}", "progress": 1}
            old.stream.send(messages.notification("notifications/progress", progress))
        old.stream.send(messages.notification("notifications/other"))
        for identity in ("a", "b"):
            old.stream.send(messages.result(identity, {}))
        for identity in ("a", "b"):
            await client.answer_to(identity)
            (sent,) = [each for each in client.sent if any(one.get("id") == identity for one in each.messages)]
            self.assertEqual(sent.messages[0]["params"]["progressToken"], f"token-{identity}")
            self.assertEqual(len(sent.messages), 2)
        await self.until(lambda: listening.messages)
        self.assertEqual([each["method"] for each in listening.messages], ["notifications/other"])

    async def test_asked(self) -> None:
        """The backend's request goes to the only call that is pending, else to the GET stream, and is answered."""
        client, old = await self.met()
        old.answers["tools/call"] = silent
        listening = await client.listen()
        old.stream.send(messages.request(SAMPLING, 0))
        await self.until(lambda: listening.messages)
        await client.begin(messages.call("slow"))
        await self.until(lambda: old.deliveries("tools/call"))
        old.stream.send(messages.request(SAMPLING, 1))
        await self.until(lambda: len(client.asked(SAMPLING)) == 2)
        self.assertEqual(len(listening.messages), 1)
        for number, asked in enumerate(sorted(client.asked(SAMPLING), key=lambda each: str(each["id"]))):
            await client.begin(messages.result(asked["id"], {"n": number}))
        await self.until(lambda: len([got for got in old.got if not got.method]) == 2)
        answers = sorted((got.message for got in old.got if not got.method), key=lambda each: int(each["id"]))
        self.assertEqual(answers, [messages.result(0, {"n": 0}), messages.result(1, {"n": 1})])
        old.stream.send(messages.result("slow", {}))
        await client.answer_to("slow")

    async def test_restart(self) -> None:
        """A restart: a call in flight is told the truth, a list is repeated, a subscription is restored."""
        client, old = await self.met()
        await client.listen()
        self.assertIn("result", await client.ask(messages.request("resources/subscribe", "s", {"uri": "file:///a"})))
        answer, old.answers["tools/call"] = old.answers["tools/call"], silent
        lists, old.answers["tools/list"] = old.answers["tools/list"], silent
        await client.begin(messages.call("slow"))
        await client.begin(messages.request("tools/list", "list"))
        await self.until(lambda: old.deliveries("tools/call") and old.deliveries("tools/list"))
        old.answers.update({"tools/call": answer, "tools/list": lists})
        await old.restart()
        self.assertEqual((await client.answer_to("slow"))["error"]["code"], -31002)
        self.assertEqual(result_of(await client.answer_to("list")), {"tools": messages.TOOLS})
        await self.until(lambda: client.notifications("notifications/resources/updated"))
        await self.assert_works(client)
        self.assertEqual(len(old.deliveries("tools/call")), 2)
        self.assertEqual(old.methods(old.generation).count("initialize"), 1)

    async def test_delete(self) -> None:
        """A client that is done closes the backend's stream."""
        client, old = await self.met()
        self.assertIn((await client.delete()).status, (200, 204))
        await self.until(lambda: not old.streams)
        self.assertEqual((await client.post(messages.call("late"))).status, 404)

    async def test_401(self) -> None:
        """A 401 of the backend's to a message reaches the client as it was."""
        client, old = await self.met()

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            if json.loads(asked.body).get("method") == "tools/call":
                old.on_post = old.take_post
                connection.write(response(401, b"who?", ("WWW-Authenticate", "Bearer x=1")))
            else:
                old.take_post(connection, asked)

        old.on_post = on_post
        answer = await client.post(messages.call("x"))
        self.assertEqual((answer.status, answer.body), (401, b"who?"))
        self.assertEqual(answer.header(b"www-authenticate"), b"Bearer x=1")
        await self.assert_works(client)
