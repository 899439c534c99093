"""Doubts between a fake link and a backend that answers anything, in any order: one fate each, none is sent twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.bodies import IBodyReceiver
from mcp_proxy.backend.doubts import STALE_WAIT, Doubts
from mcp_proxy.backend.post import Post
from mcp_proxy.backend.response import Response
from mcp_proxy.session.interfaces import Loss, Outgoing, Refusal
from mcp_proxy.wire.headers import Headers

OWN = b"own"
HTML: Headers = ((b"content-type", b"text/html"),)
#: Pings that are answered by what knows the session, that are not, and by which it is seen to have gone.
FINE = (None, 200, 202, 401, 403, 406, 429)
FOREIGN = (400, 404, 405, 410)
AWAY = (502, 503, 504)
#: Those that count only where something broke that does not break by itself.
STARTING = (302, 500, 501)


class Answer(Response):
    """An answer to a ping, which is read no further."""

    def __init__(self, status: int, headers: Headers = ()) -> None:
        super().__init__(status, headers)
        self.is_aborted = False

    def deliver(self, receiver: IBodyReceiver) -> None:
        """Nobody asks."""
        raise AssertionError

    def pause(self) -> None:
        """Nobody asks."""

    def resume(self) -> None:
        """Nobody asks."""

    def abort(self) -> None:
        """It is not read."""
        self.is_aborted = True


class Link:
    """Has doubts, and keeps what it is told."""

    max_event_bytes = 1024

    def __init__(self, session: bytes = OWN) -> None:
        self.clock = Clock()
        self.doubts = Doubts(self, self.clock)
        self.session = session
        self.has_unheard = False
        self.is_held = False
        self.asked: list[Callable[[Response | None], None]] = []
        self.for_gateways: list[bool] = []
        self.fates: list[Post] = []
        self.listening_again = 0
        self.losses: list[Loss] = []

    def ask(self, answered: Callable[[Response | None], None], *, is_gateway: bool) -> None:
        """A ping, to be answered by the test."""
        assert not self.asked, "two pings at a time"
        assert not self.losses
        self.asked.append(answered)
        self.for_gateways.append(is_gateway)

    def answer(self, status: int | None, headers: Headers = ()) -> None:
        """The ping under way is answered."""
        response = None if status is None else Answer(status, headers)
        self.asked.pop()(response)
        assert response is None or response.is_aborted

    def hold(self) -> None:
        """Send nothing."""
        self.is_held = True

    def go(self) -> None:
        """Send again."""
        assert self.is_held
        self.is_held = False

    def only_a_stream(self, post: Post, reason: str) -> None:
        """The stream's own affair."""
        self._settle(post)

    def only_a_message(self, post: Post, refusal: Refusal) -> None:
        """The message's own affair."""
        self._settle(post)

    def only_listening(self) -> None:
        """The GET stream's own affair."""
        assert not self.losses
        self.listening_again += 1

    def lose(self, loss: Loss) -> None:
        """The end of the link."""
        assert not self.losses, "lost twice"
        self.losses.append(loss)
        self.doubts.close()

    def _settle(self, post: Post) -> None:
        assert not self.losses, "settled after the end"
        assert post not in self.fates, "settled twice"
        self.fates.append(post)


class Races(RuleBasedStateMachine):
    """What is in doubt, and what comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link()
        self.clock, self.doubts = self.link.clock, self.link.doubts
        self.broken: list[Post] = []
        self.not_taken: list[Post] = []  # refused for the session's sake, or perhaps
        self.maybe_taken: list[Post] = []  # by a gateway

    @property
    def is_lost(self) -> bool:
        """Whether the link has ended."""
        return bool(self.link.losses)

    def post(self) -> Post:
        """A message that is under way."""
        outgoing: Any = Outgoing(b"", ())
        return Post(self.link, outgoing, "", ())  # type: ignore[arg-type]

    @precondition(lambda self: not self.is_lost)
    @rule()
    def stream_breaks(self) -> None:
        """One of the backend's streams ends before its answer."""
        self.broken.append(self.post())
        self.doubts.stream_broke(self.broken[-1], "it broke")

    @precondition(lambda self: not self.is_lost)
    @rule()
    def listening_breaks(self) -> None:
        """The GET stream ends."""
        self.doubts.listening_broke()

    @precondition(lambda self: not self.is_lost)
    @rule(status=st.sampled_from((400, *AWAY)))
    def refused(self, status: int) -> None:
        """A message is refused."""
        post = self.post()
        (self.not_taken if status == 400 else self.maybe_taken).append(post)
        self.doubts.message_refused(post, Refusal(status, "no"))

    @precondition(lambda self: not self.is_lost)
    @rule()
    def unknown(self) -> None:
        """A message is refused, since the session is not known."""
        post = self.post()
        self.not_taken.append(post)
        self.doubts.session_unknown(post, "HTTP 404")

    @rule(has_unheard=st.booleans())
    def hear(self, has_unheard: bool) -> None:
        """Of other messages it becomes known what the backend makes of them, or there are more."""
        self.link.has_unheard = has_unheard

    @precondition(lambda self: self.link.asked and not self.is_lost)
    @rule(status=st.sampled_from((*FINE, *FINE, *FOREIGN, *AWAY, *STARTING)), headers=st.sampled_from(((), HTML)))
    def answer_ping(self, status: int | None, headers: Headers) -> None:
        """The ping is answered."""
        self.link.answer(status, headers)

    @rule()
    def wait(self) -> None:
        """Time passes."""
        self.clock.advance(STALE_WAIT)

    @invariant()
    def nothing_twice(self) -> None:
        """What may have been carried out never counts as not sent."""
        for loss in self.link.losses:
            unseen = set(loss.unseen)
            assert not unseen & {post.outgoing for post in self.maybe_taken}, "would be sent twice"
            assert not unseen & {post.outgoing for post in self.link.fates}, "has been settled before"

    @invariant()
    def nothing_forgotten(self) -> None:
        """What is in doubt is settled, or asked about, or waits for the end of the link, or the link has ended."""
        if self.is_lost or self.link.asked or self.clock.getDelayedCalls():
            return
        assert set(self.link.fates) >= {*self.broken, *self.not_taken, *self.maybe_taken}

    @invariant()
    def held_in_doubt_only(self) -> None:
        """Messages are held while a gateway's answer is in doubt and after the session is known to be lost."""
        if not self.is_lost:
            assert self.link.is_held == self.doubts.is_holding
            in_doubt = set(self.maybe_taken) - set(self.link.fates)
            assert self.doubts.is_holding == (bool(in_doubt) or self.doubts.is_stale)


class AnyOrder(SynchronousTestCase):
    def test_races(self) -> None:
        """See the machine."""
        run_state_machine_as_test(Races, settings=settings(max_examples=150, stateful_step_count=30, deadline=None))  # type: ignore[no-untyped-call]


class Verdicts(SynchronousTestCase):
    """What an answer to the ping means."""

    def world(self, session: bytes = OWN) -> tuple[Link, Doubts, Post]:
        """A link, and a message of it."""
        link = Link(session)
        return link, link.doubts, Post(link, Outgoing(b"", ()), "", ())  # type: ignore[arg-type]

    def verdict(self, trouble: str, status: int | None, headers: Headers = (), session: bytes = OWN) -> str:
        """Return lost (the session), away (the backend), or fine."""
        link, doubts, post = self.world(session)
        if trouble == "stream":
            doubts.stream_broke(post, "it broke")
        elif trouble == "listening":
            doubts.listening_broke()
        else:
            doubts.message_refused(post, Refusal(int(trouble), "no"))
        link.answer(status, headers)
        if not link.losses:
            self.assertEqual((link.fates, link.listening_again), ([], 1) if trouble == "listening" else ([post], 0))
            return "fine"
        [loss] = link.losses
        self.assertEqual(loss.unseen, (post.outgoing,) if loss.reachable and trouble == "400" else ())
        return "lost" if loss.reachable else "away"

    def test_gateway(self) -> None:
        """A gateway's own answer means that nobody is behind it, whatever was in doubt."""
        for trouble in ("stream", "listening", "400", "502", "503", "504"):
            for status in AWAY:
                self.assertEqual(self.verdict(trouble, status), "away", (trouble, status))

    def test_unknown(self) -> None:
        """A ping that is refused for its session means that this is lost; without one, what is no endpoint does."""
        for trouble in ("stream", "listening", "400", "503"):
            for status in FOREIGN:
                self.assertEqual(self.verdict(trouble, status), "lost", (trouble, status))
            self.assertEqual(self.verdict(trouble, 400, session=b""), "fine")
            self.assertEqual(self.verdict(trouble, 404, session=b""), "lost")

    def test_another(self) -> None:
        """A ping that is answered in another session has found a backend that begins one by itself."""
        other: Headers = ((b"mcp-session-id", b"other"),)
        same: Headers = ((b"mcp-session-id", OWN),)
        self.assertEqual(self.verdict("stream", 200, other), "lost")
        self.assertEqual(self.verdict("stream", 200, same), "fine")
        self.assertEqual(self.verdict("503", 200, other, session=b""), "fine")

    def test_starting(self) -> None:
        """A fault or a page says that a server is only just starting if something has ended that does not by itself."""
        for status, headers in (*((status, ()) for status in STARTING), (200, HTML)):
            for trouble, verdict in (("stream", "away"), ("listening", "away"), ("400", "fine"), ("503", "fine")):
                self.assertEqual(self.verdict(trouble, status, headers), verdict, (trouble, status))

    def test_fine(self) -> None:
        """Anything else comes from what knows the session."""
        for trouble in ("stream", "listening", "400"):
            for status in FINE:
                self.assertEqual(self.verdict(trouble, status), "fine", (trouble, status))

    def test_only_a_ping_tells(self) -> None:
        """That somebody listens does not count any more once it is known to be a gateway."""
        link, doubts, post = self.world(b"")
        doubts.stream_broke(post, "it broke")
        doubts.message_refused(Post(link, Outgoing(b"", ()), "", ()), Refusal(503, "no"))  # type: ignore[arg-type]
        link.answer(None)
        self.assertEqual((link.for_gateways, link.fates), ([False, True], []))
        link.answer(503)
        self.assertEqual([each.reachable for each in link.losses], [False])
