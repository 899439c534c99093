"""A modern link between a fake session and a fake backend, in any order of events: one answer, and nothing twice."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.modern import ModernLink
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, ILinkOwner, Loss, Outgoing, Refusal
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message
from mcp_proxy.wire.sse import Oversized
from tests.support import messages, modern
from tests.support.messages import Json, encoded

KEY: Headers = ((b"x-api-key", b"k"),)
ASKS: Json = {
    "resultType": "input_required",
    "inputRequests": {"q": {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}},
}
DISCOVERED: Json = {
    "supportedVersions": [modern.VERSION],
    "capabilities": {"tools": {}, "resources": {"subscribe": True}, "logging": {}},
}


class Inner:
    """The link inside: keeps the POSTs that are under way. A withdrawn one is forgotten."""

    correlates = True
    is_judged = False
    is_owed = True
    is_blind = False

    def __init__(self, owner: ILinkOwner, headers: Headers) -> None:
        self.owner = owner
        self.open_posts: list[Outgoing] = []
        self.sent: list[Json] = []
        self.paused: list[object] = []
        self.closed = False
        self.reaches = True

    def open(self) -> None:
        """Nobody asks."""

    def send(self, outgoing: Outgoing) -> None:
        """Take a message."""
        assert not self.closed
        self.open_posts.append(outgoing)
        self.sent.append(json.loads(outgoing.raw))
        if self.reaches:
            self.owner.link_sent(self, outgoing)

    def withdraw(self, outgoing: Outgoing) -> None:
        """Forget a message."""
        if outgoing in self.open_posts:
            self.open_posts.remove(outgoing)

    def pause(self, source: object) -> None:
        """The client does not read."""
        self.paused.append(source)

    def resume(self, source: object) -> None:
        """It reads again."""
        self.paused.remove(source)

    def close(self, *, done: bool = False) -> None:
        """The end."""
        self.closed = True
        self.open_posts.clear()

    # -- what the backend does ---------------------------------------------------------------------------------

    def posts(self, method: str) -> list[Outgoing]:
        """The POSTs of this method that are under way."""
        return [each for each in self.open_posts if each.method == method]

    def say(self, post: Outgoing, message: Json) -> None:
        """A message on the stream of a POST."""
        self.owner.link_received(self, jsonrpc.parse(encoded(message)), post.exchange)

    def answer(self, post: Outgoing, result: Json) -> None:
        """The answer to a POST."""
        self.open_posts.remove(post)
        self.owner.link_accepted(self, post)
        self.say(post, messages.result(json.loads(post.raw)["id"], result))

    def refuse(self, post: Outgoing, refusal: Refusal) -> None:
        """Take a POST not."""
        self.open_posts.remove(post)
        self.owner.link_refused(self, post, refusal)

    def fail(self, post: Outgoing, status: int, code: int) -> None:
        """Answer a POST with an error."""
        body = encoded(messages.error(json.loads(post.raw)["id"], code))
        self.refuse(post, Refusal(status, "refused", HTTPAnswer(status, (), body)))


class Owner:
    """The session's side: keeps what it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[Json, Exchange | None]] = []
        self.refused: list[tuple[Outgoing, Refusal]] = []
        self.lost: list[Loss] = []
        self.sent: list[Outgoing] = []
        self.dropped: list[int] = []
        self.accepted: list[Outgoing] = []

    def link_opened(self, link: Any) -> None:
        """Open."""

    def link_received(self, link: Any, message: Message, about: Exchange | None = None) -> None:
        """A message."""
        assert not self.lost
        self.got.append((json.loads(message.raw), about))

    def link_streaming(self, link: Any, about: Exchange) -> None:
        """A stream."""

    def link_polling(self, link: Any, about: Exchange, delay: float) -> None:
        """Later."""

    def link_oversized(self, link: Any, event: Oversized, about: Exchange | None = None) -> None:
        """Too large."""
        if about is None:
            assert event == Oversized(b"", b"", event.size)  # nobody may be found by what it says
            self.dropped.append(event.size)
            return
        self.got.append(({"id": jsonrpc.value_of(about.backend_id), "error": {"code": 413}}, about))

    def link_sent(self, link: Any, outgoing: Outgoing) -> None:
        """On its way."""
        self.sent.append(outgoing)

    def link_accepted(self, link: Any, outgoing: Outgoing) -> None:
        """Taken."""
        self.accepted.append(outgoing)

    def link_refused(self, link: Any, outgoing: Outgoing, refusal: Refusal) -> None:
        """Not taken."""
        assert not self.lost
        self.refused.append((outgoing, refusal))

    def link_lost(self, link: Any, loss: Loss) -> None:
        """Over."""
        self.lost.append(loss)

    def answers(self, identity: Any) -> list[Json]:
        """The answers to a request."""
        return [each for each, _ in self.got if "method" not in each and each.get("id") == identity]

    def told(self, method: str) -> list[Json]:
        """The messages of this method."""
        return [each for each, _ in self.got if each.get("method") == method]


class World:
    """A link that has been through its handshake and listens."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.owner = Owner()
        self.link = ModernLink(self.owner, Inner, KEY, self.clock, 10.0)
        inner = self.link._inner
        assert isinstance(inner, Inner)
        self.inner = inner
        self.count = 0
        self.send(messages.initialize("hello", {"elicitation": {}}))
        self.inner.answer(self.inner.posts("server/discover")[0], DISCOVERED)
        self.send(messages.notification("notifications/initialized"))
        self.acknowledge()

    def acknowledge(self) -> None:
        """The backend grants the newest stream."""
        post = self.inner.posts("subscriptions/listen")[-1]
        asked = json.loads(post.raw)
        self.inner.say(post, modern.acknowledged(asked["id"], **asked["params"]["notifications"]))

    def send(self, message: Json, reply: object = None) -> Outgoing:
        """The session sends a message."""
        parsed = jsonrpc.parse(encoded(message))
        exchange = None
        if "method" in message and "id" in message:
            exchange = Exchange(parsed, KEY, 0.0, parsed.id or b"", reply=reply)
        outgoing = Outgoing(parsed.raw, KEY, parsed.method, exchange)
        self.link.send(outgoing)
        return outgoing

    def call(self, reply: object = None, **more: Any) -> str:
        """A call; returns its id."""
        self.count += 1
        identity = f"c{self.count}"
        self.send(messages.call(identity, {"call": identity, **more}), reply)
        return identity


def of_call(message: Json) -> str:
    """Which call a POST is for."""
    value: str = message["params"]["arguments"]["call"]
    return value


class Races(RuleBasedStateMachine):
    """Calls with rounds; answers, cancellations, refusals and a loss in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.calls: list[str] = []
        self.cancelled: set[str] = set()
        self.maybe_taken: set[str] = set()  # by a gateway
        self.posts_at_end: dict[str, int] = {}
        self.answered_questions: list[str] = []

    @property
    def is_lost(self) -> bool:
        """Whether the link is over."""
        return bool(self.world.owner.lost)

    def pick(self, number: int) -> Outgoing:
        """A POST of a call that is under way."""
        posts = self.world.inner.posts("tools/call")
        return posts[number % len(posts)]

    def has_posts(self) -> bool:
        """Whether there is one."""
        return bool(self.world.inner.posts("tools/call"))

    @precondition(lambda self: len(self.calls) < 6 and not self.is_lost)
    @rule()
    def call(self) -> None:
        """A call."""
        self.calls.append(self.world.call())

    @precondition(lambda self: self.has_posts())
    @rule(number=st.integers(0, 9))
    def complete(self, number: int) -> None:
        """It is answered."""
        self.world.inner.answer(self.pick(number), {"resultType": "complete"})

    @precondition(lambda self: self.has_posts())
    @rule(number=st.integers(0, 9), kinds=st.lists(st.sampled_from(["elicitation/create", "roots/list"]), max_size=3))
    def ask(self, number: int, kinds: list[str]) -> None:
        """The backend needs more."""
        inputs = {f"k{place}": {"method": kind, "params": {}} for place, kind in enumerate(kinds)}
        result = {"resultType": "input_required", "requestState": "s", "inputRequests": inputs}
        self.world.inner.answer(self.pick(number), result)

    @precondition(lambda self: self.has_posts())
    @rule(number=st.integers(0, 9), status=st.sampled_from([400, 404, 500]), code=st.sampled_from([-32602, -32020, -1]))
    def fail(self, number: int, status: int, code: int) -> None:
        """An error."""
        self.world.inner.fail(self.pick(number), status, code)

    @precondition(lambda self: self.has_posts())
    @rule(number=st.integers(0, 9), status=st.sampled_from([0, 400, 401, 404, 503]))
    def refuse(self, number: int, status: int) -> None:
        """A refusal without an error."""
        answer = None if status == 0 else HTTPAnswer(status, (), b"no")
        post = self.pick(number)
        if status == 503:
            self.maybe_taken.add(of_call(json.loads(post.raw)))
        self.world.inner.refuse(post, Refusal(status, "no", answer))

    @precondition(lambda self: self.world.inner.posts("tools/list") or self.world.inner.posts("server/discover"))
    @rule(outcome=st.sampled_from(("well", "well", "well", "404", "500", "503")))
    def own_answer(self, outcome: str) -> None:
        """The proxy's own question is answered, or not."""
        inner = self.world.inner
        post = [*inner.posts("tools/list"), *inner.posts("server/discover")][0]
        if outcome == "well":
            inner.answer(post, {"tools": [], **DISCOVERED})
        else:
            inner.refuse(post, Refusal(int(outcome), "no"))

    @precondition(lambda self: self.questions() and not self.is_lost)
    @rule(number=st.integers(0, 9), well=st.booleans())
    def reply(self, number: int, well: bool) -> None:
        """The client answers a question, perhaps for the second time."""
        questions = self.questions()
        identity = questions[number % len(questions)]["id"]
        self.answered_questions.append(identity)
        answer = messages.result(identity, {"action": "accept", "roots": [], "question": identity})
        self.world.send(answer if well else messages.error(identity, -1))

    def questions(self) -> list[Json]:
        """All questions ever."""
        return [*self.world.owner.told("elicitation/create"), *self.world.owner.told("roots/list")]

    @precondition(lambda self: self.calls and not self.is_lost)
    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        """The client cancels."""
        identity = self.calls[number % len(self.calls)]
        self.cancelled.add(identity)
        self.world.send(messages.notification("notifications/cancelled", {"requestId": identity}))

    @precondition(lambda self: not self.is_lost)
    @rule(sure=st.integers(0, 4))
    def lose(self, sure: int) -> None:
        """The backend dies, now and then."""
        if sure == 0:
            self.world.link.link_lost(self.world.inner, Loss("gone", reachable=False))

    @rule(seconds=st.integers(0, 9))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.world.clock.advance(seconds)

    @invariant()
    def one_end(self) -> None:
        """Each call ends once at most, and nothing is posted for it afterwards; no answer is used twice."""
        owner, inner = self.world.owner, self.world.inner
        for identity in self.calls:
            refusals = [each for each, _ in owner.refused if json.loads(each.raw).get("id") == identity]
            ends = len(owner.answers(identity)) + len(refusals)
            assert ends <= 1, (identity, ends)
            posts = [each for each in inner.sent if each["method"] == "tools/call" and of_call(each) == identity]
            ids = [each["id"] for each in posts]
            assert len(ids) == len(set(ids))
            if ends or identity in self.cancelled or self.is_lost:
                assert self.posts_at_end.setdefault(identity, len(posts)) == len(posts)
                assert not any(of_call(json.loads(each.raw)) == identity for each in inner.posts("tools/call"))
            else:
                self.has_somebody_to_wait_for(identity)
            responses = [
                json.dumps(each["params"]["inputResponses"]) for each in posts if "inputResponses" in each["params"]
            ]
            used = [json.loads(each) for each in dict.fromkeys(responses)]
            asked = [answer.get("question") for each in used for answer in each.values() if "question" in answer]
            assert len(asked) == len(set(asked)), "an answer went into two rounds"

    @invariant()
    def nothing_twice(self) -> None:
        """What may have been carried out never counts as not sent."""
        for loss in self.world.owner.lost:
            unseen = {json.loads(each.raw)["id"] for each in loss.unseen}
            assert not unseen & self.maybe_taken, unseen & self.maybe_taken

    def has_somebody_to_wait_for(self, identity: str) -> None:
        """A call that has not ended waits for a POST, for the client, or for what the proxy asks on its behalf."""
        inner, link = self.world.inner, self.world.link
        if link._waiting and any(json.loads(each.raw).get("id") == identity for each in link._waiting):
            assert inner.posts("server/discover"), "nobody asks whether the backend is there"
            return
        call = link._calls._calls[f'"{identity}"'.encode()]
        is_posted = any(of_call(json.loads(each.raw)) == identity for each in inner.posts("tools/call"))
        is_asked = bool(call.rounds.asked)
        is_helped = bool(inner.posts("tools/list") or inner.posts("server/discover"))
        assert is_posted or is_asked or is_helped, identity


class AnyOrder(SynchronousTestCase):
    def test_races(self) -> None:
        """See the machine."""
        run_state_machine_as_test(Races, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))  # type: ignore[no-untyped-call]


class Bounds(SynchronousTestCase):
    def setUp(self) -> None:
        """A link."""
        self.world = World()

    def test_large(self) -> None:
        """There is an end to the large requests that are kept for another try; those without room end with an error."""
        for _ in range(17):
            self.world.call(text="x" * 1024 * 1024)
        posts = self.world.inner.posts("tools/call")
        for post in (posts[0], posts[-1]):
            self.world.inner.answer(post, {"resultType": "input_required", "requestState": "s"})
        self.assertEqual(len(self.world.inner.sent), 2 + 17 + 1)
        self.assertIn("error", self.world.owner.answers("c17")[0])

    def test_pressure(self) -> None:
        """What feeds a reply that is not read is the reply's own; a list of changes belongs to no reply."""
        reply = object()
        self.world.call(reply)
        (post,) = self.world.inner.posts("tools/call")
        assert post.exchange is not None
        self.assertIs(post.exchange.reply, reply)
        (listen,) = self.world.inner.posts("subscriptions/listen")
        assert listen.exchange is not None
        self.assertIsNone(listen.exchange.reply)
        self.world.link.pause(reply)
        self.assertEqual(self.world.inner.paused, [reply])

    def test_oversized(self) -> None:
        """An answer over the bound ends its call, by whatever it is known."""
        one, two = self.world.call(), self.world.call()
        first, second = self.world.inner.posts("tools/call")
        assert second.exchange is not None
        self.world.link.link_oversized(self.world.inner, Oversized(b"", b"", 9), second.exchange)
        head = b'{"jsonrpc":"2.0","id":%d,"result":{' % json.loads(first.raw)["id"]
        self.world.link.link_oversized(self.world.inner, Oversized(head, b"}}", 9))
        self.world.link.link_oversized(self.world.inner, Oversized(b"?", b"?", 9))
        self.assertEqual([self.world.owner.answers(each)[0]["error"]["code"] for each in (one, two)], [413, 413])
        self.assertEqual(self.world.owner.dropped, [9])

    def test_credentials(self) -> None:
        """What is accepted is told with the headers that it had; the next stream has the newest of them."""
        token: Headers = ((b"authorization", b"Bearer new"), (b"mcp-name", b"x"))
        call = jsonrpc.parse(encoded(messages.call("c")))
        self.world.link.send(Outgoing(call.raw, token, "tools/call", Exchange(call, token, 0.0, b'"c"')))
        (post,) = self.world.inner.posts("tools/call")
        self.assertEqual([value for name, value in post.headers if name.lower() == b"mcp-name"], [b"echo"])
        self.world.inner.answer(post, {})
        self.world.send(messages.request("resources/subscribe", 1, {"uri": "a"}))
        self.world.clock.advance(0)
        newest = self.world.inner.posts("subscriptions/listen")[-1]
        self.assertIn(token[0], newest.headers)

    def test_silent_stream(self) -> None:
        """A stream that is not acknowledged is given up; after a few, whoever waits for it is told."""
        self.world.send(messages.request("resources/subscribe", 1, {"uri": "a"}))
        for _ in range(200):
            self.world.clock.advance(0.5)
        self.assertIn("error", self.world.owner.answers(1)[0])
        self.assertEqual(len(self.world.inner.posts("subscriptions/listen")), 1, "the stream that there was stays")
        self.assertEqual(self.world.owner.lost, [])

    def test_burst(self) -> None:
        """Subscriptions that are asked for together are one stream."""
        for number in range(20):
            self.world.send(messages.request("resources/subscribe", number, {"uri": f"a:{number}"}))
        self.world.clock.advance(0)
        self.assertEqual(len(self.world.inner.posts("subscriptions/listen")), 2)
        self.world.acknowledge()
        self.assertEqual(len(self.world.inner.posts("subscriptions/listen")), 1)
        self.assertTrue(all("result" in self.world.owner.answers(number)[0] for number in range(20)))

    def test_owed(self) -> None:
        """A backend that waits for answers of the client's owes none itself, and a stream of changes is none."""
        link, inner = self.world.link, self.world.inner
        self.assertFalse(link.is_owed)
        self.world.call()
        self.assertTrue(link.is_owed)
        inner.answer(inner.posts("tools/call")[0], ASKS)
        (asked,) = self.world.owner.told("elicitation/create")
        self.assertFalse(link.is_owed)
        self.world.send(messages.result(asked["id"], {"action": "accept"}))
        self.assertTrue(link.is_owed)

    def listens(self) -> list[Json]:
        """The streams that were asked for."""
        return [each for each in self.world.inner.sent if each["method"] == "subscriptions/listen"]

    def test_in_vain(self) -> None:
        """A backend that ends a stream for which it has nothing to tell is not asked again, but for something else."""
        inner = self.world.inner
        inner.answer(inner.posts("subscriptions/listen")[0], {})
        self.world.clock.advance(1)
        (post,) = inner.posts("subscriptions/listen")
        inner.say(post, modern.acknowledged(json.loads(post.raw)["id"]))
        inner.answer(post, {})
        before = len(self.listens())
        for _ in range(100):
            self.world.clock.advance(1)
        self.assertEqual((len(self.listens()), self.world.clock.getDelayedCalls()), (before, []))
        self.world.send(messages.request("resources/subscribe", 1, {"uri": "a"}))
        self.world.clock.advance(0)
        self.world.acknowledge()
        self.assertEqual(self.world.owner.answers(1), [messages.result(1, {})])
        self.assertEqual(self.world.owner.told("notifications/resources/updated"), [])

    def test_restarted_unnoticed(self) -> None:
        """A backend that tells nothing of its lists has others when it is quickly back, and that is told."""
        world, inner = self.world, self.world.inner
        world.send(messages.request("resources/subscribe", 1, {"uri": "a"}))
        world.clock.advance(0)
        for _ in range(2):
            (*_, post) = inner.posts("subscriptions/listen")
            inner.say(post, modern.acknowledged(json.loads(post.raw)["id"], resourceSubscriptions=["a"]))
            inner.refuse(post, Refusal(0, "the answer was cut off"))
            world.clock.advance(1)
        for method in ("notifications/tools/list_changed", "notifications/resources/updated"):
            self.assertEqual(len(world.owner.told(method)), 1, method)

    def test_not_delayed(self) -> None:
        """However seldom a stream that ends is asked for again, who subscribes need not wait for that."""
        inner, clock = self.world.inner, self.world.clock
        for _ in range(8):
            inner.answer(inner.posts("subscriptions/listen")[0], {})
            while not inner.posts("subscriptions/listen"):
                clock.advance(0.1)
            self.world.acknowledge()
        inner.answer(inner.posts("subscriptions/listen")[0], {})
        before = len(self.listens())
        clock.advance(5)
        self.assertEqual(len(self.listens()), before)
        self.world.send(messages.request("resources/subscribe", 1, {"uri": "a"}))
        clock.advance(0)
        self.assertEqual(self.listens()[-1]["params"]["notifications"]["resourceSubscriptions"], ["a"])
        self.world.acknowledge()
        self.assertEqual(self.world.owner.answers(1), [messages.result(1, {})])

    def test_stopping(self) -> None:
        """A backend that ends the stream and listens no more may finish its calls; then the link is over."""
        inner, owner, clock = self.world.inner, self.world.owner, self.world.clock
        identity = self.world.call()
        inner.answer(inner.posts("subscriptions/listen")[0], {})
        inner.reaches = False
        for delay in (0.2, 0.4):
            clock.advance(delay)
            inner.refuse(inner.posts("subscriptions/listen")[0], Refusal(0, "connection refused"))
        self.assertEqual(owner.lost, [])
        inner.answer(inner.posts("tools/call")[0], {})
        self.assertEqual(len(owner.answers(identity)), 1)
        clock.advance(0.8)
        inner.refuse(inner.posts("subscriptions/listen")[0], Refusal(0, "connection refused"))
        self.assertEqual([each.reachable for each in owner.lost], [False])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_listens_first(self) -> None:
        """Requests wait until changes are told of, but not for long; a cancelled one is not sent at all."""
        world, inner = self.world, self.world.inner
        world.send(messages.notification("notifications/initialized"))
        one, two = world.call(), world.call()
        world.send(messages.notification("notifications/cancelled", {"requestId": one}))
        world.clock.advance(0.9)
        self.assertEqual(inner.posts("tools/call"), [])
        world.clock.advance(0.2)
        self.assertEqual([of_call(json.loads(each.raw)) for each in inner.posts("tools/call")], [two])
        self.assertEqual(len(world.owner.answers(one)), 1, "the session need not wait for it")

    def test_gateway(self) -> None:
        """What a gateway has lost is not sent again, whoever is behind it; what comes meanwhile waits."""
        for outcome in (None, 404, 503):
            self.setUp()
            owner, inner = self.world.owner, self.world.inner
            met = self.world.call()
            inner.refuse(inner.posts("tools/call")[0], Refusal(503, "away"))
            held = self.world.call()
            self.assertEqual((inner.posts("tools/call"), owner.refused), ([], []))
            (question,) = inner.posts("server/discover")
            if outcome is None:
                inner.answer(question, DISCOVERED)
                self.assertEqual([json.loads(each.raw)["id"] for each, _ in owner.refused], [met])
                self.assertEqual([of_call(json.loads(each.raw)) for each in inner.posts("tools/call")], [held])
            else:
                inner.refuse(question, Refusal(outcome, "no"))
                self.assertEqual(owner.lost, [Loss(owner.lost[0].reason, reachable=outcome == 404)])

    def test_nothing_left(self) -> None:
        """A closed link has no timers and no messages."""
        self.world.call()
        self.world.send(messages.request("resources/subscribe", 1, {"uri": "a"}))
        self.world.link.close()
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.world.call()
        self.assertEqual(self.world.inner.open_posts, [])
