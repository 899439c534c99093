"""The shared view of the backend: turns, outages, attempts, the port watch."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, TimeoutError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.backend import MAX_TURNS, STRIKES, Backend
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

    def backend_ending(self) -> None:
        """It wants to stop."""
        self.told.append("ending")

    def backend_not_ending(self) -> None:
        """It does not."""
        self.told.append("not ending")


class BackendCase(SynchronousTestCase):
    """A backend with a port that is open or not."""

    max_attempts = 3

    def setUp(self) -> None:
        self.clock = Clock()
        self.is_open = False
        self.refusal: Exception = ConnectionRefusedError()
        self.probes = 0
        self.backend = Backend(
            self.clock, self.probe, self.make_link, max_attempts=self.max_attempts, delay=2.0, jitter=lambda delay: delay
        )

    def probe(self) -> Deferred[Any]:
        """Try the port."""
        self.probes += 1
        tried: Deferred[Any] = Deferred()
        if self.is_open:
            tried.callback(None)
        else:
            tried.errback(Failure(self.refusal))
        return tried

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

    def test_nobody_waits(self) -> None:
        """The end of an outage is noticed also when no session waits for it."""
        self.backend.withdraw(self.down())
        self.assertTrue(self.backend.is_down)
        self.is_open = True
        self.advance(1)
        self.assertFalse(self.backend.is_down)

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
    def test_three_strikes(self) -> None:
        """Links that live while the port refuses three times in a row are told that the backend wants to stop."""
        seeker = self.live()
        self.is_open = False
        self.advance(2.0 + 0.25 * (STRIKES - 2))
        self.assertEqual(seeker.told, [])
        self.advance(0.5)
        self.assertEqual(seeker.told, ["ending"])
        self.is_open = True
        self.advance(0.5)
        self.assertEqual(seeker.told, ["ending", "not ending"])

    def test_two_are_none(self) -> None:
        """A port that refuses twice and then accepts means nothing."""
        seeker = self.live()
        self.is_open = False
        self.advance(2.3)
        self.is_open = True
        self.advance(10)
        self.assertEqual(seeker.told, [])

    def test_busy_is_not_gone(self) -> None:
        """A port that does not answer in time has not stopped listening."""
        seeker = self.live()
        self.is_open, self.refusal = False, TimeoutError()
        self.advance(60)
        self.assertEqual(seeker.told, [])

    def test_quiet_without_links(self) -> None:
        """Without links nothing is probed."""
        self.backend.withdraw(self.live())
        before = self.probes
        self.advance(60)
        self.assertLessEqual(self.probes - before, 1)
