"""When it is looked for the next event, and when it is slept until it comes; by both ways of waiting alike."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy import awake
from mcp_proxy.awake import AT_ONCE, AWAKE, IN_VAIN, EpollWatch, LoopWatch

LOOK = AWAKE / 20
SOON = AWAKE / 2
LATE = AWAKE * 50


class OnEpoll(SynchronousTestCase):
    """Time goes on when it is waited, and a little with each look."""

    def setUp(self) -> None:
        """Nothing has come yet."""
        self.now = 1.0
        self.others = 0
        self.due = 0.0  # when the next event is there
        self.patch(awake, "monotonic", lambda: self.now)
        self.patch(awake, "_let_others", self.let_others)
        self.start()

    def let_others(self) -> None:
        """Somebody else has the core for a moment."""
        self.others += 1

    def start(self) -> None:
        """Make what waits."""
        self.watch = EpollWatch(self.poll)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """What is there; who does not only look gets something in the end."""
        self.looks += timeout == 0
        self.slept = timeout != 0
        self.now = max(self.now, self.due) if timeout else self.now + LOOK
        return [(3, 1)] if self.now >= self.due else []

    def until_next(self, delay: float) -> bool:
        """Wait for an event that comes so much later; tells whether it was slept for."""
        self.due = self.now + delay
        self.looks = self.others = 0
        self.slept = False
        self.assertEqual(self.watch.next(7.0, 1), [(3, 1)])
        return self.slept

    def test_soon(self) -> None:
        """After one that came soon it is looked for the next, and not slept if that comes; others may run meanwhile."""
        self.assertTrue(self.until_next(SOON))
        for _ in range(3 * IN_VAIN):
            self.assertFalse(self.until_next(SOON))
            self.assertGreater(self.others, 2)

    def test_late(self) -> None:
        """What comes late is slept for; what was looked for in vain is not looked for again and again."""
        self.until_next(SOON)
        for _ in range(IN_VAIN):
            self.assertTrue(self.until_next(LATE))
            self.assertGreater(self.looks, 2)
            self.assertLess(self.looks, AWAKE / LOOK + 3)
        for _ in range(3):
            self.assertTrue(self.until_next(LATE))
            self.assertEqual((self.looks, self.others), (0, 0))
        self.until_next(SOON)
        self.assertFalse(self.until_next(SOON))

    def test_renewed(self) -> None:
        """One that comes soon makes up for those that did not."""
        self.until_next(SOON)
        for _ in range(3 * IN_VAIN):
            self.assertTrue(self.until_next(LATE))
            self.assertFalse(self.until_next(SOON))

    def test_there(self) -> None:
        """What is there already says nothing about what follows: it makes nobody stay awake, and is not held up."""
        for _ in range(3 * IN_VAIN):
            self.until_next(0.0)
        self.assertTrue(self.until_next(SOON))
        for _ in range(IN_VAIN):
            self.until_next(0.0)
            self.assertEqual(self.others, 0)
            self.assertTrue(self.until_next(LATE))
            self.assertGreater(self.others, 0)
        self.until_next(0.0)
        self.assertTrue(self.until_next(LATE))
        self.assertEqual(self.others, 0)

    def test_figures(self) -> None:
        """These tests have the right idea of what is soon, and of what is there."""
        self.assertTrue(AT_ONCE < SOON < AWAKE < LATE)
        self.assertLess(2 * LOOK, AT_ONCE)


class OnLoop(OnEpoll):
    """The same for a loop, which calls what is to be called soon and then waits, or only looks if there is more."""

    def start(self) -> None:
        """Make the loop; something has come before."""
        self.soon: list[Callable[[], None]] = []
        self.watch_loop = LoopWatch(self.soon.append)
        self.watch_loop.came()

    def until_next(self, delay: float) -> bool:
        """Wait for an event that comes so much later, as a loop does it; tells whether it was slept for."""
        self.due = self.now + delay
        self.looks = self.others = 0
        while True:
            due, self.soon[:] = self.soon[:], []
            for work in due:
                work()
            if self.poll(0 if self.soon else 7.0, 1):
                self.watch_loop.came()
                return self.slept

    def test_many(self) -> None:
        """However much comes at once, there is one look for it."""
        for _ in range(5):
            self.watch_loop.came()
            self.assertEqual(len(self.soon), 1)
