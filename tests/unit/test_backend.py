"""The shared view of the backend: turns, outages, attempts, the port watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client.core import HistogramMetricFamily
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.backend import DOUBT_PACE, MAX_TURNS, STRIKES, Backend
from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.metrics import Tally
from mcp_proxy.session.interfaces import Loss

REFUSED = Loss("connection refused", reachable=False)
ANSWERED = Loss("the backend answered 404", reachable=True)


class Seeker:
    """Who wants to connect; keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def backend_turn(self) -> None:
        """Try now."""
        self.told.append("turn")

    def backend_gave_up(self) -> None:
        """No hope."""
        self.told.append("gave up")

    def backend_doubted(self) -> None:
        """It may want to stop."""
        self.told.append("doubted")

    def backend_ending(self) -> None:
        """It wants to stop."""
        self.told.append("ending")

    def backend_not_ending(self, *, was_gone: bool) -> None:
        """It does not."""
        self.told.append("was gone" if was_gone else "not ending")


class Watch:
    """A connection that stays."""

    def __init__(self, closed: Callable[[], None]) -> None:
        self.closed = closed
        self.is_over = False

    def close(self) -> None:
        """The proxy ends it."""
        self.is_over = True


class BackendCase(SynchronousTestCase):
    """A backend with a port that is open or not."""

    max_attempts = 3

    def setUp(self) -> None:
        self.clock = Clock()
        self.is_open = False
        self.answers = True
        self.page = 404
        self.asked = self.tried = 0
        self.watch: Watch | None = None
        self.tally = Tally()
        self.backend = Backend(
            self.clock,
            self,
            self.make_link,
            max_attempts=self.max_attempts,
            delay=2.0,
            jitter=lambda delay: delay,
            meter=self.tally,
        )

    def try_connect(self) -> Deferred[None]:
        """Try the port."""
        self.tried += 1
        return succeed(None) if self.is_open else fail(ConnectionRefusedError())

    def stand_watch(self, closed: Callable[[], None]) -> Deferred[Any]:
        """Connect and stay."""
        if not self.is_open:
            return fail(ConnectionRefusedError())
        self.watch = Watch(closed)
        return succeed(self.watch)

    def ask(self, timeout: float) -> Deferred[int]:
        """Get the health page."""
        self.asked += 1
        if not self.is_open:
            return fail(RequestFailed("connection refused", sent=False))
        return succeed(self.page) if self.answers else fail(RequestFailed("no answer in time", sent=True))

    def make_link(self, owner: Any, headers: Any) -> Any:
        """Not asked for here."""

    def live(self) -> Seeker:
        """A session with a live link."""
        self.is_open = True
        seeker = Seeker()
        self.backend.seek(seeker)
        self.backend.succeeded(seeker)
        seeker.told.clear()
        return seeker

    def down(self) -> Seeker:
        """A session whose try has just been refused, and which asks again."""
        self.is_open = False
        seeker = Seeker()
        self.backend.seek(seeker)
        self.backend.failed(seeker, REFUSED)
        seeker.told.clear()
        self.backend.seek(seeker)
        return seeker

    def advance(self, seconds: float) -> None:
        """Time passes in small steps."""
        self.clock.pump([0.05] * round(seconds / 0.05))


class Counted(BackendCase):
    def test_outage(self) -> None:
        """Each attempt is counted when it is made, and an outage, with its length, once."""
        seeker = self.live()
        self.backend.lost(REFUSED)
        self.down()
        self.advance(5.0)
        self.assertEqual((self.backend.outages, self.tally.attempts), (1, 3))
        self.backend.succeeded(seeker)
        self.backend.succeeded(seeker)
        times = HistogramMetricFamily("x", "", labels=())
        self.tally.outage_times.add_to(times)
        values = {each.name: each.value for each in times.samples}
        self.assertEqual(values["x_count"], 1)
        self.assertAlmostEqual(values["x_sum"], 5.0, places=2)


class Turns(BackendCase):
    def test_at_once(self) -> None:
        """While nothing speaks against it a turn comes at once."""
        seeker = Seeker()
        self.backend.seek(seeker)
        self.assertEqual(seeker.told, ["turn"])

    def test_bounded(self) -> None:
        """Only so many connect at the same time; each that is done makes room for the next."""
        seekers = [Seeker() for _ in range(MAX_TURNS + 3)]
        for seeker in seekers:
            self.backend.seek(seeker)
        self.assertEqual(sum(len(seeker.told) for seeker in seekers), MAX_TURNS)
        self.backend.succeeded(seekers[0])
        self.backend.withdraw(seekers[1])
        self.backend.failed(seekers[2], ANSWERED)
        self.assertEqual(sum(len(seeker.told) for seeker in seekers), MAX_TURNS + 3)

    def test_withdrawn(self) -> None:
        """Who has withdrawn gets no turn."""
        seeker = self.down()
        self.backend.withdraw(seeker)
        self.is_open = True
        self.advance(5)
        self.assertEqual(seeker.told, [])


class Outages(BackendCase):
    def test_none(self) -> None:
        """At the start there is no outage."""
        self.assertEqual((self.backend.outage, self.backend.is_down), (0.0, False))

    def test_port_watch(self) -> None:
        """A backend that listens again is used at once, long before the next attempt is due."""
        seeker = self.down()
        self.advance(0.3)
        self.is_open = True
        self.advance(0.5)
        self.assertEqual(seeker.told, ["turn"])
        self.backend.succeeded(seeker)
        self.assertEqual((self.backend.outage, self.backend.is_down), (0.0, False))

    def test_pace_of_the_watch(self) -> None:
        """Whoever waits for a backend that listens again waits for a small part of the outage more, or very shortly."""
        for outage, most in ((0.2, 0.06), (1.5, 0.07), (3.0, 0.15), (5.5, 0.25)):
            self.setUp()
            seeker = self.down()
            self.clock.pump([0.01] * round(outage * 100))
            self.is_open = True
            self.clock.pump([0.01] * round(most * 100))
            self.assertEqual(seeker.told, ["turn"], outage)

    def test_watch_is_not_hurried(self) -> None:
        """However long it takes, the port is tried at least at the pace of attempts, and no faster than is of use."""
        self.down()
        before = self.tried
        self.advance(1.0)
        self.assertLessEqual(self.tried - before, 21)
        self.advance(600)
        before = self.tried
        self.advance(20)
        self.assertGreaterEqual(self.tried - before, 9)
        self.assertLessEqual(self.tried - before, 30)

    def test_nobody_waits(self) -> None:
        """The end of an outage is noticed also when no session waits for it."""
        self.backend.withdraw(self.down())
        self.assertTrue(self.backend.is_down)
        self.is_open = True
        self.advance(1)
        self.assertFalse(self.backend.is_down)

    def test_nobody_waits_for_a_gateway(self) -> None:
        """That a gateway listens is no end of an outage; whoever comes then waits for the next try."""
        for page, answers in ((502, True), (504, True), (404, False)):
            self.setUp()
            self.backend.withdraw(self.down())
            self.is_open, self.page, self.answers = True, page, answers
            self.advance(30)
            self.assertTrue(self.backend.is_down)
            seeker = Seeker()
            self.backend.seek(seeker)
            self.assertEqual(seeker.told, [])
            self.advance(2)
            self.assertEqual(seeker.told, ["turn"])
            self.backend.failed(seeker, REFUSED)
            self.page, self.answers = 404, True
            self.advance(2)
            self.assertFalse(self.backend.is_down)

    def test_comes_while_it_is_asked(self) -> None:
        """A session that comes while nobody knows yet whether it is a gateway gets its turn when that is known."""
        page: Deferred[int] = Deferred()
        self.patch(self, "ask", lambda timeout: page)
        self.backend.withdraw(self.down())
        self.is_open = True
        self.advance(0.5)
        seeker = Seeker()
        self.backend.seek(seeker)
        self.assertEqual((seeker.told, self.backend.is_down), ([], True))
        page.callback(200)
        self.assertEqual((seeker.told, self.backend.is_down), (["turn"], False))

    def test_gave_up(self) -> None:
        """After the last attempt those who wait are told, once, and a later recovery is still noticed."""
        seeker = self.down()
        self.advance(5.9)
        self.assertEqual((seeker.told, self.backend.spent), ([], False))
        self.advance(0.2)
        self.assertEqual((seeker.told, self.backend.spent), (["gave up"], True))
        self.advance(600)
        self.assertEqual(seeker.told, ["gave up"])
        self.is_open = True
        self.advance(4)
        self.assertEqual(seeker.told, ["gave up", "turn"])
        self.backend.succeeded(seeker)
        self.assertFalse(self.backend.spent)

    def test_open_port_is_not_enough(self) -> None:
        """Behind a gateway whose port is always open the tries come at the pace of attempts, not of the watch."""
        seeker = self.down()
        self.is_open = True
        tries = 0
        for _ in range(200):
            self.advance(0.1)
            if "turn" in seeker.told:
                seeker.told.remove("turn")
                tries += 1
                self.backend.failed(seeker, Loss("the backend answered 502", reachable=False))
                self.backend.seek(seeker)
        self.assertTrue(self.backend.spent)
        self.assertTrue(8 <= tries <= 14, tries)

    def test_answer_is_no_outage(self) -> None:
        """A backend that refuses one session is there for the others."""
        first, second = self.down(), Seeker()
        self.backend.seek(second)
        self.is_open = True
        self.advance(0.5)
        self.backend.failed(first, ANSWERED)
        self.assertFalse(self.backend.is_down)
        self.assertEqual(second.told, ["turn"])

    def test_outage_begins_with_the_loss(self) -> None:
        """The length of an outage counts from the loss of the link, not from the first refused try."""
        seeker = self.live()
        self.is_open = False
        self.backend.lost(Loss("the stream ended", reachable=False))
        self.backend.seek(seeker)
        self.clock.advance(1.0)
        self.backend.failed(seeker, REFUSED)
        self.clock.advance(1.0)
        self.assertAlmostEqual(self.backend.outage, 2.0)
        self.assertEqual(self.backend.outages, 1)

    def test_many_fail_together(self) -> None:
        """However many sessions are refused at once, that is one outage and one attempt."""
        seekers = [Seeker() for _ in range(5)]
        for seeker in seekers:
            self.backend.seek(seeker)
        for seeker in seekers:
            self.backend.failed(seeker, REFUSED)
            self.backend.seek(seeker)
        self.assertEqual((self.backend.outages, self.backend.attempts), (1, 1))

    def test_stop(self) -> None:
        """When stopped it leaves no timer."""
        self.down()
        self.backend.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class NoLimit(BackendCase):
    max_attempts = 0

    def test_never_gives_up(self) -> None:
        """With no limit nobody is ever told to give up."""
        seeker = self.down()
        self.advance(300)
        self.assertEqual((seeker.told, self.backend.spent), ([], False))
        self.assertTrue(100 < self.backend.attempts <= 151, self.backend.attempts)


class Ending(BackendCase):
    def close_watch(self) -> None:
        """The backend closes its idle connections."""
        assert self.watch is not None
        self.watch.closed()

    def test_three_strikes(self) -> None:
        """A backend that closes idle connections and answers nobody three times wants to stop."""
        seeker = self.live()
        self.answers = False
        self.close_watch()
        self.advance(0.25 * (STRIKES - 2))
        self.assertEqual(seeker.told, ["doubted"])
        self.advance(0.3)
        self.assertEqual(seeker.told, ["doubted", "doubted", "ending"])
        self.answers = True
        self.advance(0.5)
        self.assertEqual(seeker.told[-1], "not ending")

    def test_broken_connection(self) -> None:
        """When a connection breaks nothing more is sent, until somebody is known to answer."""
        seeker, other = self.live(), self.live()
        self.answers = False
        self.backend.connection_broke()
        self.assertEqual([seeker.told, other.told], [["doubted"], ["doubted"]])
        self.answers = True
        self.advance(DOUBT_PACE)
        self.assertEqual([seeker.told, other.told], [["doubted", "not ending"]] * 2)

    def test_many_broken(self) -> None:
        """Of a thousand connections that end at once each one may be a session's: nobody is told more than once."""
        seekers = [self.live() for _ in range(10)]
        self.answers = False
        for seeker in seekers:
            seeker.told.clear()
        for _ in range(10):
            self.backend.connection_broke()
        self.assertEqual([seeker.told for seeker in seekers], [["doubted"]] * 10)

    def test_doubted_with_nobody_left(self) -> None:
        """Whoever comes while it is doubted, after all others have left, does not wait for somebody else to ask."""
        seeker = self.live()
        self.answers = False
        self.backend.connection_broke()
        self.backend.withdraw(seeker)
        self.advance(3 * DOUBT_PACE)
        self.answers = True
        newcomer = Seeker()
        self.backend.seek(newcomer)
        self.backend.succeeded(newcomer)
        self.advance(DOUBT_PACE)
        self.assertEqual(newcomer.told[-1], "not ending")
        self.assertFalse(self.backend.is_doubted)

    def test_broken_while_trying(self) -> None:
        """It is asked as well if something else is being tried at that moment."""
        seeker = self.live()
        self.close_watch()
        standing: Deferred[Any] = Deferred()
        self.patch(self, "stand_watch", lambda closed: standing)
        self.advance(2.1)
        seeker.told.clear()
        self.backend.connection_broke()
        self.assertEqual(seeker.told, ["doubted"])
        standing.callback(Watch(lambda: None))
        self.assertEqual(seeker.told, ["doubted", "not ending"])

    def test_others_in_doubt(self) -> None:
        """A session that connects meanwhile is in doubt as well, and clears nobody's: it has asked nobody."""
        seeker, other = self.live(), Seeker()
        asked: Deferred[Any] = Deferred()
        self.patch(self, "ask", lambda timeout: asked)
        self.backend.connection_broke()
        self.backend.seek(other)
        self.backend.succeeded(other)
        self.assertEqual([seeker.told, other.told], [["doubted"], ["turn", "doubted"]])
        asked.callback(200)
        self.assertEqual([seeker.told[-1], other.told[-1]], ["not ending", "not ending"])
        self.backend.seek(other)
        self.backend.succeeded(other)
        self.assertEqual(other.told[-1], "turn")

    def test_doubt_outlasts(self) -> None:
        """A doubt is not forgotten when somebody connects, nor while a connection is made to watch by."""
        seeker, other = self.live(), Seeker()
        self.answers = False
        self.close_watch()
        self.answers = True
        standing: Deferred[Any] = Deferred()
        self.patch(self, "stand_watch", lambda closed: standing)
        self.backend.seek(other)
        self.backend.succeeded(other)
        self.advance(DOUBT_PACE)
        standing.callback(Watch(lambda: None))
        self.assertEqual([seeker.told[-1], other.told[-1]], ["not ending", "not ending"])

    def test_broken_while_away(self) -> None:
        """Of what is known to be away, a broken connection says nothing new."""
        seeker = self.live()
        self.backend.lost(Loss("gone", reachable=False))
        self.is_open = False
        self.backend.seek(seeker)
        self.backend.failed(seeker, Loss("gone", reachable=False))
        seeker.told.clear()
        asked = self.asked
        self.backend.connection_broke()
        self.assertEqual((seeker.told, self.asked), ([], asked))

    def test_port_closed(self) -> None:
        """The same if it does not even listen any more."""
        seeker = self.live()
        self.is_open = False
        self.close_watch()
        self.advance(0.6)
        self.assertEqual(seeker.told[-1], "ending")

    def test_refused_while_it_stops(self) -> None:
        """A backend can stop listening and wait for its streams: who else is refused meanwhile must not hide that."""
        seeker = self.live()
        self.down()
        self.advance(DOUBT_PACE)
        self.assertEqual(seeker.told, [])
        self.advance(DOUBT_PACE * STRIKES)
        self.assertEqual(seeker.told[:2], ["doubted", "ending"])

    def test_refused_once(self) -> None:
        """Being refused for a moment ends nobody's link, but it is told; and it is watched again."""
        seeker, other = self.live(), self.down()
        first = self.watch
        self.backend.withdraw(other)
        self.is_open = True
        self.advance(0.1)
        self.assertEqual(seeker.told, ["was gone"])
        self.assertIsNot(self.watch, first)
        self.advance(60)
        self.assertEqual(seeker.told, ["was gone"])
        self.answers = False
        self.close_watch()
        self.advance(DOUBT_PACE * STRIKES)
        self.assertEqual(seeker.told[-1], "ending")

    def test_gone_for_a_moment(self) -> None:
        """A backend that does not listen for a moment may be another one then; one that is slow is not."""
        for is_slow in (True, False):
            self.setUp()
            seeker = self.live()
            self.is_open, self.answers = is_slow, False
            self.close_watch()
            self.is_open = self.answers = True
            for told in ("not ending" if is_slow else "was gone", "not ending"):
                self.advance(DOUBT_PACE)
                self.assertEqual(seeker.told, ["doubted", told])
                seeker.told.clear()
                self.advance(2.1)
                self.close_watch()

    def test_back_unnoticed(self) -> None:
        """A link without a stream does not notice an outage that others do; when they are back, it is told of it."""
        seeker, other = self.live(), self.live()
        self.answers = self.is_open = False
        self.close_watch()
        self.backend.lost(Loss("gone", reachable=False))
        self.backend.seek(other)
        self.backend.failed(other, Loss("gone", reachable=False))
        self.advance(DOUBT_PACE)
        self.assertEqual(seeker.told[-1], "doubted")
        self.answers = self.is_open = True
        self.advance(3)
        self.assertEqual(other.told[-1], "turn")
        self.backend.succeeded(other)
        self.assertEqual((seeker.told[-1], other.told[-1]), ("was gone", "turn"), "the other one knows")

    def test_idle_timeout(self) -> None:
        """A backend that only closes idle connections means nothing by it; they are opened anew, but not at once."""
        seeker = self.live()
        before = self.watch
        self.close_watch()
        self.assertIs(self.watch, before)
        self.advance(2.1)
        self.assertIsNot(self.watch, before)
        self.assertEqual((seeker.told, self.asked), (["doubted", "not ending"], 1))

    def test_slow_is_not_gone(self) -> None:
        """A backend that answers slowly but keeps its connections is not asked at all."""
        seeker = self.live()
        self.answers = False
        self.advance(60)
        self.assertEqual((seeker.told, self.asked), ([], 0))

    def test_quiet_without_links(self) -> None:
        """Without links there is no connection to watch."""
        seeker = self.live()
        self.backend.withdraw(seeker)
        assert self.watch is not None
        self.assertTrue(self.watch.is_over)
        self.assertEqual(self.clock.getDelayedCalls(), [])
