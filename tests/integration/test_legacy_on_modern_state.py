"""What lasts longer than one request: questions, subscriptions, cancellations, and all of it over restarts."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred

from tests.integration.legacy_case import ELICIT, ROOTS, SAMPLE, TOOLS_CHANGED, UPDATED, LegacyCase, form, progress
from tests.integration.service_case import BOB, reactor
from tests.integration.streamable_case import result_of, silent
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import Asked, BackendConnection, Stream, response
from tests.support.scripted_modern import ModernOnlyBackend
from tests.support.scripted_streamable import JSON_HEADER, StreamableBackend
from tests.support.streamable_client import StreamableClient
from tests.support.wire import Client

SAMPLING: Json = {"method": SAMPLE, "params": {"messages": [], "maxTokens": 1}}


class Asking(LegacyCase):
    """A backend that needs more input asks the client as one of the older revisions would."""

    def asks(self, *rounds: Json) -> None:
        """The tool asks for these in turn, and then answers with what it got in the end."""

        def answer(stream: Stream, asked: Json) -> Json:
            number = len(self.backend.deliveries("tools/call")) - 1
            if number < len(rounds):
                return messages.result(asked["id"], {"resultType": "input_required", **rounds[number]})
            got = {name: asked["params"].get(name) for name in ("inputResponses", "requestState")}
            return messages.result(asked["id"], {"resultType": "complete", "got": got})

        self.backend.answers["tools/call"] = answer

    async def give(self, client: Client, asked: Json, result: Json) -> None:
        """The client answers a question."""
        await client.begin(messages.result(asked["id"], result))

    async def test_two_at_once(self) -> None:
        """Two questions are two requests; one retry under another id has both answers and the very state."""
        state = 'opaque "ü\\ 1.0'
        self.asks({"inputRequests": {"a": form(), "b": SAMPLING}, "requestState": state})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c", {"n": 1}))
        sampled, filled = await self.question(client, SAMPLE), await self.question(client, ELICIT)
        self.assertEqual(filled["params"], form()["params"])
        await self.give(client, sampled, {"role": "assistant", "model": "m"})
        self.assertEqual(len(self.calls()), 1)
        await self.give(client, filled, {"action": "accept", "content": {"name": "x"}})
        got = result_of(await client.answer_to("c"))["got"]
        expected = {
            "a": {"action": "accept", "content": {"name": "x"}},
            "b": {"role": "assistant", "model": "m"},
        }
        self.assertEqual(got, {"inputResponses": expected, "requestState": state})
        first, second = (each.message for each in self.backend.deliveries("tools/call"))
        self.assertNotEqual(first["id"], second["id"])
        self.assertEqual((second["params"]["name"], second["params"]["arguments"]), ("echo", {"n": 1}))

    async def test_rounds(self) -> None:
        """A backend may ask again and again, and may ask only for another try."""
        self.asks({"inputRequests": {"a": form()}}, {"requestState": "s"}, {"inputRequests": {"r": {"method": ROOTS}}})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c"))
        await self.give(client, await self.question(client, ELICIT), {"action": "decline"})
        await self.give(client, await self.question(client, ROOTS), {"roots": []})
        self.assertEqual(
            result_of(await client.answer_to("c"))["got"],
            {"inputResponses": {"r": {"roots": []}}, "requestState": None},
        )
        _, second, third, _ = self.calls()
        self.assertEqual(second["inputResponses"], {"a": {"action": "decline"}})
        self.assertEqual((third["requestState"], "inputResponses" in third), ("s", False))

    async def test_endless(self) -> None:
        """A backend that never has enough is stopped."""
        self.asks(*({"requestState": str(number)} for number in range(100)))
        self.start()
        client = await self.legacy()
        self.assertEqual((await client.call())["error"]["code"], -32603)
        self.assertEqual(len(self.calls()), 33)

    async def test_errors(self) -> None:
        """An error for a form is a cancelled form; any other ends the call with that error, without a retry."""
        self.asks({"inputRequests": {"a": form()}})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c"))
        await client.begin(messages.error((await self.question(client, ELICIT))["id"], -32000))
        got = result_of(await client.answer_to("c"))["got"]
        self.assertEqual(got["inputResponses"], {"a": {"action": "cancel"}})
        self.backend.got.clear()
        self.asks({"inputRequests": {"a": SAMPLING, "b": form()}})
        await client.begin(messages.call("d"))
        other = await self.question(client, ELICIT, 2)
        await client.begin(messages.error((await self.question(client, SAMPLE))["id"], -1, "I will not"))
        self.assertEqual((await client.answer_to("d"))["error"], {"code": -1, "message": "I will not"})
        await self.until(lambda: client.notifications("notifications/cancelled"))
        self.assertEqual(client.notifications("notifications/cancelled")[0]["params"]["requestId"], other["id"])
        await self.give(client, other, {"action": "accept"})
        self.assertEqual(len(self.calls()), 1)

    async def test_url(self) -> None:
        """A question that sends the user to a page gets the id that the older revisions want."""
        page = {"method": ELICIT, "params": {"mode": "url", "message": "Go", "url": "https://x.test/"}}
        self.asks({"inputRequests": {"a": page, "b": page}})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c"))
        await self.question(client, ELICIT, 2)
        one, two = client.asked(ELICIT)
        self.assertNotEqual(one["params"]["elicitationId"], two["params"]["elicitationId"])
        for each in (one, two):
            await self.give(client, each, {"action": "accept"})
        self.assertIn("result", await client.answer_to("c"))

    async def test_nonsense(self) -> None:
        """What cannot be asked ends the call with an error."""
        self.start()
        client = await self.legacy()
        for wrong in ({}, {"inputRequests": {"a": {"method": "ping"}}}, {"inputRequests": 1}):
            self.backend.got.clear()
            self.asks(wrong)
            self.assertEqual((await client.call())["error"]["code"], -32603)

    async def test_restart_while_asked(self) -> None:
        """When the backend dies, its questions are cancelled, and the call is not made again by anybody."""
        self.asks({"inputRequests": {"a": form()}, "requestState": "s"})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c"))
        asked = await self.question(client, ELICIT)
        await self.restart()
        self.assert_unknown(await client.answer_to("c"), "yes")
        await self.until(lambda: client.notifications("notifications/cancelled"))
        self.assertEqual(client.notifications("notifications/cancelled")[0]["params"]["requestId"], asked["id"])
        await self.give(client, asked, {"action": "accept"})
        self.assertIn("result", await client.ask(messages.request("ping", "p")))
        self.assertEqual(len(self.calls()), 1)

    async def test_death_unseen(self) -> None:
        """The same if nothing is open at the backend when it dies: it tells of no changes, and ends such a stream."""
        self.backend.answers["subscriptions/listen"] = lambda stream, asked: messages.error(asked["id"], -32601)
        self.asks({"inputRequests": {"a": form()}, "requestState": "s"})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c"))
        await self.question(client, ELICIT)
        self.backend.die()
        self.assert_unknown(await client.answer_to("c"), "yes")
        await self.until(lambda: client.notifications("notifications/cancelled"))
        await self.backend.revive()
        self.assertIn("result", await client.ask(messages.request("tools/list", "p")))

    async def test_restart_in_retry(self) -> None:
        """A retry whose outcome is unknown is not made again either."""
        self.asks({"inputRequests": {"a": form()}, "requestState": "s"})
        self.start()
        client = await self.legacy()
        await client.begin(messages.call("c"))
        asked = await self.question(client, ELICIT)
        self.backend.answers["tools/call"] = silent
        await self.give(client, asked, {"action": "accept"})
        await self.until(lambda: len(self.calls()) == 2)
        await self.restart()
        self.assert_unknown(await client.answer_to("c"), "yes")
        self.assertEqual(len(self.calls()), 2)


class AskingSSE(Asking):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Cancelled(LegacyCase):
    """A client that cancels, and one that only leaves."""

    async def cancel(self, client: Client, identity: str) -> None:
        await client.begin(messages.notification("notifications/cancelled", {"requestId": identity}))

    async def test_cancelled(self) -> None:
        """A cancelled call's stream is closed; nothing else is."""
        self.start()
        client = await self.legacy()
        one = await self.pending(client, messages.call("one"))
        two = await self.pending(client, messages.call("two"))
        one.begin()
        one.send(progress("x", 1))
        await self.cancel(client, "one")
        await self.gone(one)
        two.answer(messages.result(two.message["id"], {"n": 2}))
        self.assertEqual(result_of(await client.answer_to("two")), {"n": 2})
        self.assertEqual(client.answers("one"), [])
        self.assertFalse(self.backend.newest_listen().connection.closed)

    async def test_while_asked(self) -> None:
        """Questions of a cancelled call are cancelled; a late answer has no effect."""
        self.start()
        client = await self.legacy()
        self.backend.answers["tools/call"] = lambda stream, asked: self.backend.input_required(asked, a=form())
        await client.begin(messages.call("c"))
        asked = await self.question(client, ELICIT)
        await self.cancel(client, "c")
        await self.until(lambda: client.notifications("notifications/cancelled"))
        await client.begin(messages.result(asked["id"], {"action": "accept"}))
        self.assertIn("result", await client.ask(messages.request("ping", "p")))
        self.assertEqual((len(self.calls()), client.answers("c")), (1, []))

    async def test_left(self) -> None:
        """A client that loses its connection has cancelled nothing."""
        self.start()
        client = await self.legacy()
        reply = await self.pending(client)
        if isinstance(client, StreamableClient):
            reply.begin()
            reply.send(progress("x", 1))
            await self.until(lambda: client.notifications("notifications/progress"))
            last = client.sent[-1].events[-1].id
            client.sent[-1].wire.abort()
        else:
            assert client.stream is not None
            last = client.events[-1].id
            client.stream.abort()
        registry = self.internals()._registry
        await self.until(lambda: all(not each.attached for each in registry) or self.kind == "streamable")
        self.assertFalse(reply.connection.closed)
        reply.answer(messages.result(reply.message["id"], {"done": True}))
        if isinstance(client, StreamableClient):
            await client.listen(last)
        else:
            await client.open(last)
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})


class CancelledSSE(Cancelled):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Subscriptions(LegacyCase):
    """What the client is told of without asking."""

    async def subscribe(self, client: Client, *uris: str) -> None:
        for uri in uris:
            answer = await client.ask(messages.request("resources/subscribe", uri, {"uri": uri}))
            self.assertEqual(result_of(answer), {})

    def uris(self) -> list[list[str]]:
        return [each.get("resourceSubscriptions", []) for each in self.backend.filters()]

    async def test_changes(self) -> None:
        """A change that the backend tells of is told, once, without what the client does not know."""
        self.start()
        client = await self.legacy()
        self.backend.change(TOOLS_CHANGED)
        await self.until(lambda: client.notifications(TOOLS_CHANGED))
        self.assertEqual(client.notifications(TOOLS_CHANGED), [messages.notification(TOOLS_CHANGED)])

    async def test_second(self) -> None:
        """Another subscription is another stream, which is there before the one before it is closed."""
        self.start()
        client = await self.legacy()
        await self.subscribe(client, "a:1")
        before = self.backend.newest_listen()
        self.backend.answers["subscriptions/listen"] = silent
        await client.begin(messages.request("resources/subscribe", "second", {"uri": "a:2"}))
        await self.until(lambda: len(self.backend.filters()) == 3)
        self.assertEqual(self.uris(), [[], ["a:1"], ["a:1", "a:2"]])
        self.assertFalse(before.connection.closed)
        self.backend.change(UPDATED, uri="a:1")
        await self.until(lambda: client.notifications(UPDATED))
        self.assertEqual(client.answers("second"), [])
        self.backend._listen(self.backend.newest_listen(), self.backend.newest_listen().message)
        self.assertEqual(result_of(await client.answer_to("second")), {})
        await self.gone(before)
        for uri in ("a:1", "a:2"):
            self.backend.change(UPDATED, uri=uri)
        await self.until(lambda: len(client.notifications(UPDATED)) == 3)
        told = [each["params"]["uri"] for each in client.notifications(UPDATED)]
        self.assertEqual(told, ["a:1", "a:1", "a:2"])

    async def test_unsubscribed(self) -> None:
        """What is not wanted any more is not asked for any more."""
        self.start()
        client = await self.legacy()
        await self.subscribe(client, "a:1", "a:2")
        answer = await client.ask(messages.request("resources/unsubscribe", 9, {"uri": "a:1"}))
        self.assertEqual(result_of(answer), {})
        self.assertEqual(self.uris()[-1], ["a:2"])

    async def test_not_honoured(self) -> None:
        """A subscription that the backend does not honour is an error, and so is one where nothing is told."""
        self.backend.honours.remove("resourceSubscriptions")
        self.start()
        client = await self.legacy()
        answer = await client.ask(messages.request("resources/subscribe", 1, {"uri": "a:1"}))
        self.assertEqual(answer["error"]["code"], -32602)
        await self.restart()
        self.assertEqual(self.uris()[-1], [])

    async def test_unsupported(self) -> None:
        """A backend that knows no such streams is asked no more; all else works."""

        def no(stream: Stream, asked: Json) -> Json:
            return messages.error(asked["id"], -32601)

        self.backend.answers["subscriptions/listen"] = no
        self.start()
        client = await self.legacy()
        await self.assert_works(client)
        answer = await client.ask(messages.request("resources/subscribe", 1, {"uri": "a:1"}))
        self.assertEqual(answer["error"]["code"], -32601)
        self.assertEqual(len(self.backend.filters()), 1)

    async def test_restart(self) -> None:
        """After a restart all subscriptions are in one stream, and each is said to be updated."""
        self.start()
        client = await self.legacy()
        await self.subscribe(client, "a:1", "a:2")
        for count in (3, 6):
            before = len(self.uris())
            await self.restart()
            await self.until(lambda count=count: len(client.notifications(UPDATED)) == count - 1)
            self.assertEqual(self.uris()[before:], [[], ["a:1", "a:2"]])
            self.backend.change(UPDATED, uri="a:2")
            await self.until(lambda count=count: len(client.notifications(UPDATED)) == count)
            self.assertEqual(client.notifications(UPDATED)[-1]["params"], {"uri": "a:2"})
            await self.assert_works(client)

    async def test_broken(self) -> None:
        """A stream that breaks while the backend is there is opened again; what may have been missed is told."""
        self.start()
        client = await self.legacy()
        await self.subscribe(client, "a:1")
        reply = await self.pending(client)
        self.backend.newest_listen().connection.drop("rst")
        await self.until(lambda: len(self.backend.filters()) == 3)
        for name in (TOOLS_CHANGED, "notifications/prompts/list_changed", UPDATED):
            await self.until(lambda name=name: len(client.notifications(name)) == 1, client.messages)
        reply.answer(messages.result(reply.message["id"], {}))
        self.assertIn("result", await client.answer_to("slow"))
        self.assertEqual(len(self.backend.deliveries("server/discover")), 1)

    async def test_ended(self) -> None:
        """The same for one that the backend ends; one that stops is not hammered, and its calls may end."""
        self.start()
        client = await self.legacy()
        reply = await self.pending(client)
        self.backend.stop_listening()
        listen = self.backend.newest_listen()
        listen.answer(messages.result(listen.message["id"], {"resultType": "complete"}))
        await self.pause(0.4)
        reply.answer(messages.result(reply.message["id"], {"done": True}))
        self.assertEqual(result_of(await client.answer_to("slow")), {"done": True})
        self.backend.answers["tools/call"] = lambda stream, asked: messages.result(asked["id"], {"again": True})
        await client.begin(messages.call("held"))
        await self.backend.revive()
        self.assertEqual(result_of(await client.answer_to("held")), {"again": True})

    def pause(self, seconds: float) -> Deferred[None]:
        """Let time pass, in which something must not happen."""
        waited: Deferred[None] = Deferred()
        reactor.callLater(seconds, waited.callback, None)
        return waited


class SubscriptionsSSE(Subscriptions):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"


class Restarts(LegacyCase):
    """The promise, with such a backend."""

    async def test_between(self) -> None:
        """A restart between two calls is not noticed; lists that have changed are, and others are not."""
        self.start()
        client = await self.legacy()
        await client.ask(messages.request("tools/list", "list"))
        await self.assert_works(client)
        await self.restart()
        await self.assert_works(client)
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])
        self.backend.tools = [*self.backend.tools, {"name": "new", "inputSchema": {"type": "object"}}]
        await self.restart()
        await self.until(lambda: client.notifications(TOOLS_CHANGED))
        await self.assert_works(client)

    async def test_back_at_once(self) -> None:
        """A backend of which nobody has a stream is away for a moment only: what it has now is told all the same."""
        self.backend.honours.clear()
        self.start()
        client = await self.legacy()
        listen = self.backend.newest_listen()
        listen.answer(messages.result(listen.message["id"], {"resultType": "complete"}))
        await client.ask(messages.request("tools/list", "list"))
        for count, name in enumerate(("new", "newer")):
            await self.away_for_a_moment()
            self.backend.tools = [*self.backend.tools, {"name": name, "inputSchema": {"type": "object"}}]
            await self.backend.revive()
            await self.until(lambda count=count: len(client.notifications(TOOLS_CHANGED)) == count + 1)
        await self.assert_works(client)

    async def test_in_flight(self) -> None:
        """A call that died with the backend is answered with the truth; a list is asked for again."""
        self.start()
        client = await self.legacy()
        await self.pending(client)
        lists = self.backend.answers.pop("tools/list")
        self.backend.answers["tools/list"] = silent
        await client.begin(messages.request("tools/list", "list"))
        await self.until(lambda: self.backend.deliveries("tools/list"))
        self.backend.answers["tools/list"] = lists
        await self.restart()
        self.assert_unknown(await client.answer_to("slow"), "maybe")
        self.assertIn("result", await client.answer_to("list"))
        self.assertEqual(len(self.calls()), 1)

    async def test_held(self) -> None:
        """What comes while the backend is away waits for it, and is carried out once."""
        self.start()
        client = await self.legacy()
        await self.dead()
        for number in range(3):
            await client.begin(messages.call(number, {"n": number}))
        await self.backend.revive()
        for number in range(3):
            self.assertEqual(result_of(await client.answer_to(number))["echo"], {"n": number})
        self.assertEqual(len(self.calls()), 3)

    def away(self, status: int) -> None:
        """Have a gateway answer, as if nobody were behind it."""
        self.backend.on_post = lambda connection, asked: connection.write(response(status, b"away"))

    async def test_gateway(self) -> None:
        """A call that a gateway has lost is answered with the truth, and what comes later waits for the backend."""
        self.start()
        client = await self.legacy()
        for count, status in enumerate((502, 503, 504), 1):
            self.away(status)
            await client.begin(messages.call(f"met-{status}"))
            await client.begin(messages.request("tools/list", f"list-{status}"))
            self.assert_unknown(await client.answer_to(f"met-{status}"), "maybe")
            asked = len(self.backend.asked)
            await client.begin(messages.call(f"held-{status}"))
            await self.until(lambda asked=asked: len(self.backend.asked) >= asked + 2)
            self.backend.on_post = self.backend.take_post
            self.assertIn("result", await client.answer_to(f"held-{status}"))
            self.assertIn("result", await client.answer_to(f"list-{status}"))
            self.assertEqual(len(self.calls()), count)

    async def test_gateway_told(self) -> None:
        """A stream of changes that a gateway ends and does not renew tells that the backend is away."""
        self.start()
        client = await self.legacy()
        for count, status in enumerate((502, 503, 504), 1):
            self.away(status)
            asked = len(self.backend.asked)
            self.backend.newest_listen().hang_up()
            await self.until(lambda asked=asked: len(self.backend.asked) >= asked + 2)
            await client.begin(messages.call(status))
            await self.until(lambda asked=asked: len(self.backend.asked) >= asked + 4)
            self.backend.on_post = self.backend.take_post
            self.assertIn("result", await client.answer_to(status))
            self.assertEqual(len(self.calls()), count)

    async def test_busy(self) -> None:
        """A 503 of a backend that is there is the message's own affair: a list is repeated, a call is not."""
        self.start()
        client = await self.legacy()
        for status in (502, 503, 504):
            for method in ("tools/list", "tools/call"):
                busy = response(status, b"busy")
                self.act(method, lambda stream, busy=busy: stream.send_raw(busy))
                answer = await client.ask(messages.request(method, f"{method}-{status}", {"name": "echo"}))
                if method == "tools/list":
                    self.assertIn("result", answer)
                else:
                    self.assert_unknown(answer, "maybe")
        self.assertEqual((len(self.calls()), len(self.backend.deliveries("tools/list"))), (3, 6))
        await self.assert_works(client)

    async def test_eras(self) -> None:
        """A backend that comes back without handshake, and then with one, keeps its clients and their state."""
        self.backend.die("fin")
        await self.backend._stopping
        self.backend = StreamableBackend(reactor)  # type: ignore[assignment]
        self.backend.start()
        self.start()
        client = await self.joined()
        self.assertIn("result", await client.ask(messages.request("logging/setLevel", 1, {"level": "error"})))
        self.assertIn("result", await client.ask(messages.request("resources/subscribe", 2, {"uri": "a:1"})))
        self.assertIn("result", await client.ask(messages.request("tools/list", 3)))
        if isinstance(client, StreamableClient):
            await client.listen()
        modern = ModernOnlyBackend(reactor)
        await self.become(modern)
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        (got,) = modern.deliveries("tools/call")
        self.assertEqual(got.message["params"]["_meta"]["io.modelcontextprotocol/logLevel"], "error")
        self.assertEqual(modern.filters()[-1]["resourceSubscriptions"], ["a:1"])
        await self.until(lambda: len(client.notifications(UPDATED)) == 1)
        last = StreamableBackend(reactor)
        registry = self.internals()._registry
        modern.die("rst")
        await self.until(lambda: all(session.phase.value not in ("live", "doubted") for session in registry))
        await self.become(last)
        self.assertEqual(result_of(await client.call(n=2)), {"echo": {"n": 2}})
        restored = ["initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe", "tools/list"]
        asked = [each for each in last.methods() if each != "ping"]
        self.assertEqual((sorted(asked[:-1]), asked[-1]), (sorted(restored), "tools/call"))
        await self.until(lambda: len(client.notifications(UPDATED)) == 2)
        self.assertEqual(client.notifications(TOOLS_CHANGED), [])

    async def test_era_unseen(self) -> None:
        """The same for one that was away so shortly that nobody has seen its port closed."""
        self.forgives_violations = True  # it is asked whether it knows the session
        self.start()
        client = await self.legacy()
        self.backend.die("rst")
        await self.backend._stopping
        other = StreamableBackend(reactor)
        other.port, other.generation = self.backend.port, self.backend.generation
        self.others.append(other)
        other.start()
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(len(other.deliveries("tools/call")), 1)
        other.die("rst")
        await other._stopping
        self.backend.start()
        self.assertEqual(result_of(await client.call(n=2))["echo"], {"n": 2})

    async def test_era_of_a_call(self) -> None:
        """A call that a backend with a handshake does not understand is made again after one."""
        await self.not_understood(StreamableBackend(reactor))

    async def test_era_of_a_call_by_id(self) -> None:
        """The same if it says so under the id of the call."""

        def refuse(connection: BackendConnection, asked: Asked) -> None:
            error = messages.error(json.loads(asked.body).get("id"), -32000)
            connection.write(response(400, encoded(error), JSON_HEADER))

        other = StreamableBackend(reactor)
        other.on_stale = refuse
        await self.not_understood(other)

    async def not_understood(self, other: StreamableBackend) -> None:
        """The backend is replaced by this one, without being missed; a call is carried out once."""
        self.backend.answers["subscriptions/listen"] = lambda stream, asked: messages.error(asked["id"], -32601)
        self.start()
        client = await self.legacy()
        self.backend.die("fin")
        await self.backend._stopping
        other.port, other.generation = self.backend.port, self.backend.generation
        self.others.append(other)
        other.start()
        newcomer = self.speaker(BOB)
        self.assertIn("result", await newcomer.initialize())
        self.assertEqual(result_of(await client.call(n=1)), {"echo": {"n": 1}})
        self.assertEqual(len(other.deliveries("tools/call")), 1)


class RestartsSSE(Restarts):
    """The same for a client that speaks HTTP+SSE."""

    kind = "sse"
