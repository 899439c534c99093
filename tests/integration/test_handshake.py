"""A restarted backend is taught the session again, and the client hears only what it must know."""

from __future__ import annotations

from tests.integration.service_case import ALICE, ServiceCase
from tests.support import messages
from tests.support.messages import Json
from tests.support.scripted import Stream

TOOLS_CHANGED = "notifications/tools/list_changed"


class Replay(ServiceCase):
    async def test_order(self) -> None:
        """The backend gets initialize, initialized, the level, the subscriptions, and only then what was held."""
        self.start()
        client = await self.connected(ALICE)
        for number, (method, params) in enumerate(
            (
                ("logging/setLevel", {"level": "debug"}),
                ("resources/subscribe", {"uri": "file:///a"}),
                ("resources/subscribe", {"uri": "file:///b"}),
                ("tools/list", None),
            )
        ):
            self.assertIn("result", await client.ask(messages.request(method, number, params)))
        self.backend.die()
        await client.begin(messages.call("held"))
        await self.backend.revive()
        await client.answer_to("held")
        got = [each for each in self.backend.got if each.generation == 2]
        self.assertEqual([each.method for each in got][:2], ["initialize", "notifications/initialized"])
        middle = ["logging/setLevel", "resources/subscribe", "resources/subscribe", "tools/list"]
        self.assertEqual(sorted(each.method for each in got[2:-1]), middle)
        self.assertEqual(got[-1].method, "tools/call")
        self.assertEqual({each.headers["x-api-key"] for each in got}, {"alice-key"})
        first = got[0]
        self.assertEqual(first.message["params"], messages.initialize()["params"])
        self.assertNotIn("mcp-session-id", first.headers)
        uris = [each.message["params"]["uri"] for each in got if each.method == "resources/subscribe"]
        self.assertEqual(sorted(uris), ["file:///a", "file:///b"])
        level = next(each for each in got if each.method == "logging/setLevel")
        self.assertEqual(level.message["params"], {"level": "debug"})
        updated = [each["params"]["uri"] for each in client.notifications("notifications/resources/updated")]
        self.assertEqual(sorted(updated), ["file:///a", "file:///b"])
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])
        self.assertEqual([each["id"] for each in client.messages if "id" in each], ["hello", 0, 1, 2, 3, "held"])

    async def test_unsubscribed(self) -> None:
        """What the client has unsubscribed from is not subscribed to again."""
        self.start()
        self.backend.answers["resources/unsubscribe"] = self.backend.answers["resources/subscribe"]
        client = await self.connected(ALICE)
        for number, method in enumerate(("resources/subscribe", "resources/unsubscribe")):
            await client.ask(messages.request(method, number, {"uri": "file:///a"}))
        await self.backend.restart()
        await client.call()
        self.assertEqual(self.backend.methods(2), ["initialize", "notifications/initialized", "tools/call"])

    async def test_list_changed(self) -> None:
        """The promise to tell of changed tools is shown, and kept only when they have changed."""
        self.start()
        self.backend.capabilities = {"tools": {}}
        client = self.client(ALICE)
        await client.open()
        shown = (await client.initialize())["result"]["capabilities"]
        self.assertIs(shown["tools"]["listChanged"], True)
        await client.ask(messages.request("tools/list", "list"))
        await self.backend.restart()
        await client.call()
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])
        self.backend.tools.append({"name": "new", "inputSchema": {"type": "object"}})
        await self.backend.restart()
        await client.call()
        self.assertEqual(len(client.notifications(TOOLS_CHANGED)), 1)

    async def test_never_read(self) -> None:
        """A client that has not read the tools is not told of them, and the backend is not asked."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.tools = []
        await self.backend.restart()
        await client.call()
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])
        self.assertEqual(self.backend.deliveries("tools/list"), [])

    async def test_refused_steps(self) -> None:
        """A backend that does not take the level any more gets the session all the same."""
        self.start()
        client = await self.connected(ALICE)
        await client.ask(messages.request("logging/setLevel", 1, {"level": "debug"}))
        self.backend.answers["logging/setLevel"] = lambda stream, asked: messages.error(asked["id"], -32601)
        await self.backend.restart()
        self.assertIn("result", await client.call())

    async def test_silent_steps(self) -> None:
        """A backend that does not answer a list any more delays the session by a bounded time only."""
        self.start(connect_timeout=0.3)
        client = await self.connected(ALICE)
        await client.ask(messages.request("tools/list", 1))
        self.backend.answers["tools/list"] = lambda stream, asked: None
        await self.backend.restart()
        self.assertIn("result", await client.call())

    async def test_initialize_refused(self) -> None:
        """A backend that refuses the replayed handshake: held requests are told why, and later ones are delivered."""
        self.start(max_reconnect_attempts=2)
        client = await self.connected(ALICE)
        answer = self.backend.answers["initialize"]
        self.backend.answers["initialize"] = lambda stream, asked: messages.error(asked["id"], -32602, "too new")
        await self.backend.restart()
        error = (await client.call())["error"]
        self.assertEqual(error["code"], -31001)
        self.assertIn("too new", error["message"])
        self.backend.answers["initialize"] = answer
        self.assertIn("result", await client.call())

    async def test_initialize_unanswered(self) -> None:
        """A backend that does not answer the replayed handshake is tried again."""
        self.start(connect_timeout=0.2)
        client = await self.connected(ALICE)
        answer = self.backend.answers["initialize"]
        self.backend.answers["initialize"] = lambda stream, asked: None
        await self.backend.restart()
        await client.begin(messages.call("held"))
        await self.until(lambda: len(self.backend.deliveries("initialize")) >= 3)
        self.backend.answers["initialize"] = answer
        self.assertIn("result", await client.answer_to("held"))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_one_handshake(self) -> None:
        """Many requests at once that find the backend gone cause one handshake."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.die()
        for number in range(8):
            await client.begin(messages.call(number))
        await self.backend.revive()
        for number in range(8):
            self.assertIn("result", await client.answer_to(number))
        self.assertEqual(self.backend.methods(2).count("initialize"), 1)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 8)

    async def test_newest_credential(self) -> None:
        """Headers that a client has changed meanwhile are used for the replay as it sent them last."""
        self.start()
        client = await self.connected(ALICE, (b"x-trace", b"old"))
        client.headers = (ALICE, (b"x-trace", b"new"))
        await client.call()
        await self.backend.restart()
        await client.call()
        traces = {got.headers.get("x-trace") for got in self.backend.got if got.generation == 2}
        self.assertEqual(traces, {"new"})


class BackendRequests(ServiceCase):
    """The backend asks the client."""

    async def sampled(self, count: int, client: object) -> Json:
        """The backend's newest request, as the client sees it, when there are so many of them."""
        await self.until(lambda: len(client.asked("sampling/createMessage")) == count)  # type: ignore[attr-defined]
        found: Json = client.asked("sampling/createMessage")[-1]  # type: ignore[attr-defined]
        return found

    def replies(self) -> list[Json]:
        """The answers that the backend got."""
        return [got.message for got in self.backend.got if not got.method]

    async def test_round_trip(self) -> None:
        """The backend gets the answer under its own id, with its type."""
        self.start()
        client = await self.connected(ALICE)
        for count, identity in enumerate((0, "0", "text", 2**60), 1):
            self.backend.stream.send(messages.request("sampling/createMessage", identity, {"n": count}))
            asked = await self.sampled(count, client)
            self.assertEqual(asked["params"], {"n": count})
            await client.begin(messages.result(asked["id"], {"n": count}))
            await self.until(lambda count=count: len(self.replies()) == count)
            self.assertEqual(self.replies()[-1], messages.result(identity, {"n": count}))

    async def test_restart(self) -> None:
        """A restarted backend counts from 0 again: no collision, the old request is cancelled, its answer unheard."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.stream.send(messages.request("sampling/createMessage", 0, {"of": "old"}))
        old = await self.sampled(1, client)
        await self.backend.restart()
        await client.call()
        (cancelled,) = client.notifications("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], old["id"])
        self.backend.stream.send(messages.request("sampling/createMessage", 0, {"of": "new"}))
        new = await self.sampled(2, client)
        self.assertNotEqual(new["id"], old["id"])
        await client.begin(messages.result(old["id"], {"of": "old"}))
        await client.begin(messages.result(new["id"], {"of": "new"}))
        await self.until(self.replies)
        await client.call()
        self.assertEqual(self.replies(), [messages.result(0, {"of": "new"})])

    async def test_late_while_down(self) -> None:
        """An answer to a dead backend is accepted, also while there is none."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.stream.send(messages.request("sampling/createMessage", 0))
        asked = await self.sampled(1, client)
        self.backend.die()
        await self.until(lambda: client.notifications("notifications/cancelled"))
        await client.begin(messages.result(asked["id"], {}))
        await self.backend.revive()
        await client.call()
        self.assertEqual(self.replies(), [])

    async def test_cancelled_by_backend(self) -> None:
        """A backend that cancels its request is understood by the client."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.stream.send(messages.request("sampling/createMessage", 7))
        asked = await self.sampled(1, client)
        self.backend.stream.send(messages.notification("notifications/cancelled", {"requestId": 7, "reason": "x"}))
        await self.until(lambda: client.notifications("notifications/cancelled"))
        (cancelled,) = client.notifications("notifications/cancelled")
        self.assertEqual(cancelled["params"], {"requestId": asked["id"], "reason": "x"})

    async def test_cancelled_by_client(self) -> None:
        """A client that cancels its request is understood by the backend, also under an id that had to be changed."""
        self.start()
        client = await self.connected(ALICE)
        seen: list[Json] = []

        def remember(stream: Stream, asked: Json) -> None:
            seen.append(asked)

        self.backend.answers["tools/call"] = remember
        for identity in ("a", 2**70):
            await client.begin(messages.call(identity))
            await self.until(lambda: seen)
            await client.begin(messages.notification("notifications/cancelled", {"requestId": identity}))
            await self.until(lambda: self.backend.deliveries("notifications/cancelled"))
            cancelled = self.backend.deliveries("notifications/cancelled")[-1].message
            self.assertEqual(cancelled["params"]["requestId"], seen[-1]["id"])
            seen.clear()
            self.backend.got.clear()

    async def test_ping(self) -> None:
        """A backend that pings gets an answer, from the client or in its place."""
        self.start()
        client = await self.connected(ALICE)
        stream = self.backend.stream
        stream.send(messages.request("ping", 5))
        await self.until(lambda: client.asked("ping"))
        await client.begin(messages.result(client.asked("ping")[0]["id"], {}))
        await self.until(self.replies)
        client.hang_up()
        registry = self.internals()._registry
        await self.until(lambda: registry.connected == 0)
        stream.send(messages.request("ping", 6))
        await self.until(lambda: len(self.replies()) == 2)
        self.assertEqual(self.replies(), [messages.result(5, {}), messages.result(6, {})])
