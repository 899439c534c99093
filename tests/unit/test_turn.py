"""The end of a turn: what is put off to it, and when nothing is."""

from __future__ import annotations

from functools import partial

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.turn import DIRECT_SENDS, MAX_TOGETHER, QUIET_TURNS, Turn


class TurnCase(SynchronousTestCase):
    """A turn, and what it has done."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turn = Turn(self.clock)
        self.done: list[int] = []

    def soon(self, *numbers: int) -> None:
        """Ask for all of these."""
        for number in numbers:
            self.turn.soon(partial(self.done.append, number))

    def spend_direct(self) -> None:
        """Use up what is done at once."""
        self.soon(*range(DIRECT_SENDS))
        self.done.clear()

    def test_at_once(self) -> None:
        """As long as nothing speaks for putting it off, it is done at once."""
        self.soon(*range(DIRECT_SENDS))
        self.assertEqual(self.done, [*range(DIRECT_SENDS)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_at_end(self) -> None:
        """What is put off is done when the turn is over, in order, and what follows it is put off as well."""
        self.turn.at_end(partial(self.done.append, 1))
        self.soon(2)
        self.turn.at_end(partial(self.done.append, 3))
        self.assertEqual(self.done, [])
        self.clock.advance(0)
        self.assertEqual(self.done, [1, 2, 3])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many(self) -> None:
        """What is put off by a turn with much to do is not put off for long, and keeps its order."""
        for number in range(2 * MAX_TOGETHER + 3):
            self.turn.at_end(partial(self.done.append, number))
            self.assertEqual(len(self.done), (number + 1) // MAX_TOGETHER * MAX_TOGETHER)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.assertEqual(self.done, [*range(2 * MAX_TOGETHER + 3)])
        self.spend_direct()
        for _ in range(2 * QUIET_TURNS):  # such a turn has not had one thing to do, though it ends with one
            self.soon(*range(MAX_TOGETHER + 1))
            self.assertEqual(self.done, [*range(MAX_TOGETHER)])
            self.clock.advance(0)
            self.done.clear()

    def test_together(self) -> None:
        """After some at once it is looked how many a turn has; as long as there are several they are put off."""
        self.spend_direct()
        for _ in range(3 * QUIET_TURNS):
            self.soon(1, 2)
            self.assertEqual(self.done, [])
            self.clock.advance(0)
            self.assertEqual(self.done, [1, 2])
            self.done.clear()

    def test_alone(self) -> None:
        """When there is one only, turn after turn, it is done at once again."""
        self.spend_direct()
        for _ in range(QUIET_TURNS):
            self.soon(1)
            self.assertEqual(self.done, [])
            self.clock.advance(0)
            self.done.clear()
        self.soon(2)
        self.assertEqual(self.done, [2])

    def test_from_within(self) -> None:
        """What is asked for at the end of a turn is not forgotten."""
        self.turn.at_end(lambda: self.turn.at_end(partial(self.done.append, 1)))
        self.clock.advance(0)
        self.assertEqual(self.done, [1])

    def test_failure(self) -> None:
        """A failure is told, and harms nothing else."""
        self.turn.at_end(lambda: self.done[0])  # type: ignore[arg-type,return-value]
        self.turn.at_end(partial(self.done.append, 1))
        self.clock.advance(0)
        self.assertEqual(self.done, [1])
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)
