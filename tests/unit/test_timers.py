"""Timers: a name has at most one call ahead of it, and nothing that was forgotten ever happens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.timers import Timers

NAMES = st.sampled_from(("a", "b", "c"))
MOVES = st.lists(
    st.tuples(st.sampled_from(("set", "keep", "cancel", "advance")), NAMES, st.integers(0, 5)), max_size=40
)


class Firing(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.timers = Timers(self.clock)
        self.fired: list[object] = []

    def tearDown(self) -> None:
        self.timers.cancel_all()
        self.assertEqual(self.clock.getDelayedCalls(), [], "a timer outlived its owner")

    def test_fires_once(self) -> None:
        """A timer fires when its time has come, with its arguments, and never again."""
        self.timers.set("a", 2, lambda *args: self.fired.append(args), 1, "x")
        self.clock.advance(1)
        self.assertEqual((self.fired, "a" in self.timers), ([], True))
        self.clock.advance(1)
        self.clock.advance(10)
        self.assertEqual((self.fired, "a" in self.timers), ([(1, "x")], False))

    def test_set_replaces(self) -> None:
        """Setting a name anew forgets what it stood for, whether that was earlier or later."""
        for first, second in ((1, 3), (3, 1)):
            self.timers.set("a", first, self.fired.append, "old")
            self.timers.set("a", second, self.fired.append, "new")
            self.clock.advance(5)
        self.assertEqual(self.fired, ["new", "new"])

    def test_keep(self) -> None:
        """A name that is to be kept is left alone; once it has fired it can be kept again."""
        for value in ("first", "second"):
            self.timers.keep("a", 1, self.fired.append, value)
            self.timers.keep("a", 0, self.fired.append, "late")
            self.clock.advance(1)
        self.assertEqual(self.fired, ["first", "second"])

    def test_cancel(self) -> None:
        """The timers that are named are forgotten, the others are not; a name that is not set does no harm."""
        for name in ("a", "b", "c"):
            self.timers.set(name, 1, self.fired.append, name)
        self.timers.cancel("a", "c", "never set")
        self.assertEqual([name in self.timers for name in ("a", "b", "c")], [False, True, False])
        self.clock.advance(1)
        self.assertEqual(self.fired, ["b"])

    def test_from_within(self) -> None:
        """What a timer calls may set that name again, and may forget the timers that are due at the same time."""

        def again() -> None:
            self.fired.append("a" in self.timers)
            self.timers.cancel_all()
            self.timers.keep("a", 1, self.fired.append, "again")

        self.timers.set("a", 1, again)
        self.timers.set("b", 1, self.fired.append, "forgotten")
        self.clock.advance(1)
        self.clock.advance(1)
        self.assertEqual(self.fired, [False, "again"])

    def test_failure(self) -> None:
        """A timer whose function fails is over like any other."""
        self.timers.set("a", 1, lambda: 1 // 0)
        self.assertRaises(ZeroDivisionError, self.clock.advance, 1)
        self.assertNotIn("a", self.timers)
        self.timers.keep("a", 1, self.fired.append, "next")
        self.clock.advance(1)
        self.assertEqual(self.fired, ["next"])

    @settings(max_examples=200, deadline=None)
    @given(MOVES)
    def test_model(self, moves: list[tuple[str, str, int]]) -> None:
        """However timers are set and forgotten, what fires, and when, is what a plain table of names says."""
        clock, fired = Clock(), list[tuple[str, int]]()
        timers = Timers(clock)
        table: dict[str, tuple[float, int]] = {}  # name: when, which move
        expected: list[tuple[str, int]] = []
        for number, (move, name, amount) in enumerate(moves):
            if move == "advance":
                due = sorted((*table[each], each) for each in table if table[each][0] <= clock.seconds() + amount)
                expected += [(each, which) for _, which, each in due]
                table = {each: entry for each, entry in table.items() if entry[0] > clock.seconds() + amount}
                clock.advance(amount)
            elif move == "cancel":
                timers.cancel(name)
                table.pop(name, None)
            elif move == "set" or name not in table:
                getattr(timers, move)(name, amount, lambda *args: fired.append(args), name, number)
                table[name] = clock.seconds() + amount, number
            else:
                timers.keep(name, amount, lambda *args: fired.append(args), name, number)
            self.assertEqual(fired, expected)
            self.assertEqual({each for each in "abc" if each in timers}, set(table))
            self.assertEqual(len(clock.getDelayedCalls()), len(table))
