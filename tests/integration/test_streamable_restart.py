"""A Streamable HTTP backend restarts or forgets its sessions, and its clients do not notice."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

from tests.integration.streamable_case import ALICE, StreamableCase, result_of, silent
from tests.support import messages
from tests.support.messages import encoded
from tests.support.scripted import Asked, BackendConnection, response
from tests.support.scripted_streamable import JSON_HEADER, STALE, refusal

TOOLS_CHANGED = "notifications/tools/list_changed"


class Restart(StreamableCase):
    async def test_survives(self) -> None:
        """Calls before and after two restarts are answered in one client session, with one handshake on each."""
        self.start()
        client = await self.joined()
        for number in range(3):
            self.assertEqual(result_of(await client.call(n=number)), {"echo": {"n": number}})
            if number < 2:
                await self.restart()
        self.assertEqual([self.backend.line(each).count("initialize") for each in (1, 2, 3)], [1, 1, 1])
        self.assertEqual(len(self.backend.deliveries("tools/call")), 3)

    async def test_order(self) -> None:
        """The backend gets initialize, initialized, GET, the level, the subscriptions, and only then what was held."""
        self.start()
        client = await self.joined()
        for number, (method, params) in enumerate(
            (
                ("logging/setLevel", {"level": "debug"}),
                ("resources/subscribe", {"uri": "file:///a"}),
                ("resources/subscribe", {"uri": "file:///b"}),
                ("tools/list", None),
            )
        ):
            self.assertIn("result", await client.ask(messages.request(method, number, params)))
        await self.dead()
        await client.begin(messages.call("held"))
        await self.backend.revive()
        await client.answer_to("held")
        line = [each for each in self.backend.line(2) if each != "ping"]  # one may ask for the old session first
        self.assertEqual(line[:3], ["initialize", "notifications/initialized", "GET"])
        self.assertEqual(
            sorted(line[3:-1]), ["logging/setLevel", "resources/subscribe", "resources/subscribe", "tools/list"]
        )
        self.assertEqual(line[-1], "tools/call")
        self.assertEqual({each.headers["x-api-key"] for each in self.backend.requests(2)}, {"alice-key"})
        first, *later = [each for each in self.backend.requests(2) if b'"ping"' not in each.body]
        self.assertNotIn("mcp-session-id", first.headers)
        self.assertNotIn("mcp-protocol-version", first.headers)
        (session,) = self.backend.sessions
        self.assertEqual({each.headers.get("mcp-session-id") for each in later}, {session})
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])

    async def test_order_stale(self) -> None:
        """The same order when the loss is found out by a 404 while the backend lives."""
        self.backend.offers_stream = False
        self.start()
        client = await self.joined()
        self.assertIn("result", await client.ask(messages.request("logging/setLevel", 1, {"level": "debug"})))
        self.backend.forget()
        before = len(self.backend.requests())
        self.assertIn("result", await client.call())
        self.assertEqual(
            self.backend.line()[before:],
            ["tools/call", "initialize", "notifications/initialized", "GET", "logging/setLevel", "tools/call"],
        )

    async def test_subscription(self) -> None:
        """Each resource that was subscribed to is announced once after a restart, and updates arrive again."""
        self.start()
        client = await self.joined()
        listening = await self.listening(client)
        for number, uri in enumerate(("file:///a", "file:///b")):
            await client.ask(messages.request("resources/subscribe", number, {"uri": uri}))
        await self.restart()
        await self.until(lambda: len(client.notifications("notifications/resources/updated")) == 2)
        await self.until(lambda: self.backend.streams)
        self.backend.get_stream.send(messages.notification("notifications/resources/updated", {"uri": "file:///a"}))
        await self.until(lambda: len(client.notifications("notifications/resources/updated")) == 3)
        uris = [each["params"]["uri"] for each in client.notifications("notifications/resources/updated")]
        self.assertEqual((sorted(uris[:2]), uris[2]), (["file:///a", "file:///b"], "file:///a"))
        assert listening is not None
        self.assertFalse(listening.closed)

    async def listening(self, client: Any) -> Any:
        """The connection on which the client hears what belongs to no request."""
        if self.kind == "sse":
            return client.stream
        return (await client.listen()).wire

    async def test_list_changed(self) -> None:
        """Changed tools are announced after a restart, unchanged ones are not."""
        self.start()
        client = await self.joined()
        await self.listening(client)
        await client.ask(messages.request("tools/list", "list"))
        await self.restart()
        await client.call()
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])
        self.backend.tools.append({"name": "new", "inputSchema": {"type": "object"}})
        await self.restart()
        await client.call()
        await self.until(lambda: client.notifications(TOOLS_CHANGED))
        self.assertEqual(len(client.notifications(TOOLS_CHANGED)), 1)

    async def test_back_at_once(self) -> None:
        """A backend without sessions and streams is away for a moment only: what it has now is told all the same."""
        self.backend.is_stateless = True
        self.start()
        client = await self.joined()
        await self.listening(client)
        await client.ask(messages.request("tools/list", "list"))
        await self.away_for_a_moment()
        self.backend.tools.append({"name": "new", "inputSchema": {"type": "object"}})
        await self.backend.revive()
        await self.until(lambda: client.notifications(TOOLS_CHANGED))
        self.assertEqual(len(client.notifications(TOOLS_CHANGED)), 1)
        self.assertIn("result", await client.call())

    async def test_five_at_once(self) -> None:
        """Five calls that find the backend gone cause one handshake, and each is delivered once."""
        self.start()
        client = await self.joined()
        await self.dead()
        for number in range(5):
            await client.begin(messages.call(number, {"n": number}))
        await self.backend.revive()
        for number in range(5):
            self.assertEqual(result_of(await client.answer_to(number)), {"echo": {"n": number}})
        self.assertEqual(self.backend.posts("initialize"), 2)
        self.assertEqual(self.backend.posts("tools/call"), 5)

    async def test_version_header(self) -> None:
        """Requests after the handshake name the revision from 2025-06-18 on, in every generation."""
        self.start()
        client = await self.joined()
        await client.call()
        await self.restart()
        await client.call()
        version = "2025-11-25" if self.kind == "streamable" else None
        for asked in self.backend.requests():
            first = asked.method == "POST" and json.loads(asked.body).get("method") == "initialize"
            self.assertEqual(asked.headers.get("mcp-protocol-version"), None if first else version)

    async def test_stateless(self) -> None:
        """A backend without sessions is called again after a restart, without errors and without more handshakes."""
        self.backend.is_stateless = True
        self.start()
        client = await self.joined()
        await client.call()
        await self.restart()
        for number in range(3):
            self.assertEqual(result_of(await client.call(n=number)), {"echo": {"n": number}})
        self.assertLessEqual(self.backend.line(2).count("initialize"), 1)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 4)
        self.assertEqual({asked.headers.get("mcp-session-id") for asked in self.backend.requests()}, {None})

    async def test_changed_version(self) -> None:
        """A backend that comes back with another revision is spoken to in that revision."""
        self.start()
        client = await self.joined()
        self.backend.version = "2025-06-18"
        await self.restart()
        await self.assert_works(client)
        later = [asked for asked in self.backend.requests(2) if b'"ping"' not in asked.body][1:]
        self.assertEqual({asked.headers.get("mcp-protocol-version") for asked in later}, {"2025-06-18"})


class RestartSSE(Restart):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Stale(StreamableCase):
    """A backend that lives and does not know the session id any more. It offers no GET stream, or that would tell."""

    def setUp(self) -> None:
        super().setUp()
        self.backend.offers_stream = False

    async def forgotten(self, shape: str) -> None:
        """The call that finds out is sent once more, in a new session; the next one as well as ever."""
        self.backend.on_stale = self.backend.refuse_as(shape)
        self.start()
        client = await self.joined()
        self.backend.forget()
        for number in range(2):
            self.assertEqual(result_of(await client.call(n=number)), {"echo": {"n": number}})
        self.assertEqual((self.backend.posts("initialize"), self.backend.posts("tools/call")), (2, 3))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)

    async def test_python(self) -> None:
        """404 with -32600, as Python's SDK answers."""
        await self.forgotten("python")

    async def test_typescript(self) -> None:
        """404 with -32001, as TypeScript's does."""
        await self.forgotten("typescript")

    async def test_everything(self) -> None:
        """400 with -32000, as server-everything does."""
        await self.forgotten("everything")

    async def test_fresh_id(self) -> None:
        """400 with a fresh session id: that id is not adopted."""
        await self.forgotten("fresh_id")
        ids = {asked.headers.get("mcp-session-id", "") for asked in self.backend.requests()}
        self.assertNotIn("backend-session-never-begun", ids)

    async def test_silent(self) -> None:
        """A backend that takes any id: no handshake, no error."""
        self.backend.on_stale = self.backend.serve_anyway
        self.start()
        client = await self.joined()
        self.backend.forget()
        for _ in range(3):
            await self.assert_works(client)
        self.assertEqual(self.backend.posts("initialize"), 1)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 3)

    async def test_another_id(self) -> None:
        """A backend that goes on in a session of its own: its answer counts, then the session is restored, once."""
        self.backend.on_stale = self.backend.serve_as_another
        self.start()
        client = await self.joined()
        self.assertIn("result", await client.ask(messages.request("logging/setLevel", 1, {"level": "debug"})))
        self.backend.forget()
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        await self.until(lambda: self.backend.posts("logging/setLevel") == 2)
        self.assertEqual(result_of(await client.call(n=2)), {"echo": {"n": 2}})
        self.assertEqual((self.backend.posts("initialize"), self.backend.posts("tools/call")), (2, 2))

    async def test_for_ever(self) -> None:
        """A call that is always answered 404 ends in an error, not in a loop, and the session goes on."""
        self.start()
        client = await self.joined()

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            if json.loads(asked.body).get("method") == "tools/call":
                connection.write(STALE["python"])
            else:
                self.backend.take_post(connection, asked)

        self.backend.on_post = on_post
        self.assertIn("error", await client.call())
        self.assertEqual(self.backend.posts("tools/call"), 2)
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))

    async def test_notification(self) -> None:
        """A notification that finds the session forgotten makes it be restored, too."""
        self.start()
        client = await self.joined()
        self.backend.forget()
        await client.begin(messages.notification("notifications/x"))
        await self.until(lambda: self.backend.posts("initialize") == 2)
        await self.assert_works(client)

    async def test_while_away(self) -> None:
        """A backend that was restarted while nobody asked anything is known again at the next call."""
        self.start()
        client = await self.joined()
        await self.restart()
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(self.backend.line(2).count("initialize"), 1)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_bad_request(self) -> None:
        """A 400 to a message of a session that still answers a ping is about the message, and is passed on."""
        self.start()
        client = await self.joined()
        refused = refusal(400, -32602, "bad arguments")

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            if json.loads(asked.body).get("method") == "tools/call":
                self.backend.on_post = self.backend.take_post
                connection.write(refused)
            else:
                self.backend.take_post(connection, asked)

        self.backend.on_post = on_post
        if self.kind == "streamable":
            answer = await client.post(messages.call("x"))
            self.assertEqual((answer.status, answer.json()["error"]["code"]), (400, -32602))
        else:
            error = (await client.ask(messages.call("x")))["error"]
            self.assertEqual((error["code"], error["message"]), (-32602, "bad arguments"))
        self.assertEqual((self.backend.posts("initialize"), self.backend.posts("tools/call")), (1, 1))
        self.assertEqual(self.backend.posts("ping"), 1)
        await self.assert_works(client)

    async def test_error_with_id(self) -> None:
        """A session id on an error to initialize is not adopted."""
        self.start()
        client = self.speaker(ALICE)
        fresh = ("Mcp-Session-Id", "backend-session-never-begun")

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            self.backend.on_post = self.backend.take_post
            error = encoded(messages.error("hello", -32602, "not yet"))
            connection.write(response(200, error, JSON_HEADER, fresh))

        self.backend.on_post = on_post
        self.assertIn("error", await client.initialize())
        client = await self.speaking(ALICE)
        await client.call()
        ids = {asked.headers.get("mcp-session-id", "") for asked in self.backend.requests()}
        self.assertNotIn("backend-session-never-begun", ids)


class StaleSSE(Stale):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Goodbye(StreamableCase):
    async def test_delete(self) -> None:
        """A client that ends its session ends the backend's; later use of the id is answered 404."""
        self.start()
        client = await self.speaking()
        self.assertEqual(len(self.backend.sessions), 1)
        self.assertIn((await client.delete()).status, (200, 204))
        await self.until(lambda: not self.backend.sessions)
        (asked,) = [each for each in self.backend.requests() if each.method == "DELETE"]
        self.assertTrue(asked.headers["mcp-session-id"].startswith("backend-session-"))
        self.assertEqual((await client.post(messages.call("late"))).status, 404)
        self.assertEqual(self.backend.posts("tools/call"), 0)
        await self.until(lambda: not self.backend.streams)

    async def test_delete_refused(self) -> None:
        """A backend that takes no DELETE is no reason to fail."""
        self.start()
        client = await self.speaking()
        self.backend.on_delete = lambda connection, asked: connection.write(response(405))
        self.assertIn((await client.delete()).status, (200, 204))
        await self.until(lambda: "DELETE" in self.backend.line())
        self.assertEqual((await client.post(messages.call("late"))).status, 404)

    async def test_delete_while_down(self) -> None:
        """A session that ends while the backend is away is not restored when that is back."""
        self.start()
        client = await self.speaking()
        other = await self.speaking()
        self.backend.die()
        self.assertIn((await client.delete()).status, (200, 204))
        await self.backend.revive()
        await self.assert_works(other)
        self.assertEqual(self.backend.line(2).count("initialize"), 1)

    async def test_stop(self) -> None:
        """When the program stops, whoever waits is told, and the backend's sessions are ended."""
        self.start()
        client = await self.speaking()
        self.backend.answers["tools/call"] = silent
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        assert self.service is not None
        await self.service.stopService()
        self.service = None
        self.assertEqual((await client.answer_to("slow"))["error"]["code"], -31002)
        self.assertEqual(self.backend.sessions, {})


class Token(StreamableCase):
    async def test_newest(self) -> None:
        """A session is restored with the newest token that the backend has accepted."""
        self.start()
        old, new = (
            b"Bearer e30." + urlsafe_b64encode(encoded({"iss": "i", "sub": "s", "n": number})).rstrip(b"=") + b".x"
            for number in range(2)
        )
        client = await self.speaking((b"authorization", old))
        client.headers = ((b"authorization", new),)
        await client.call()
        await self.restart()
        await client.call()
        tokens = {asked.headers["authorization"] for asked in self.backend.requests(2) if b'"ping"' not in asked.body}
        self.assertEqual(tokens, {new.decode()})
