"""The event log: a client that comes back is told all that is kept, and what is kept has bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.eventlog import EventLog

SIZES = st.lists(st.integers(0, 12), max_size=30)


def filled(sizes: list[int], max_events: int, max_bytes: int) -> EventLog:
    """A log of events of these sizes; each consists of its own number."""
    log = EventLog(max_events, max_bytes)
    for number, size in enumerate(sizes, start=1):
        log.append(bytes([number]) * size)
    return log


class Log(SynchronousTestCase):
    def test_empty(self) -> None:
        """A new log has nothing to tell."""
        log = EventLog(10, 100)
        self.assertEqual((len(log), log.size, log.last, log.since(0)), (0, 0, 0, []))

    def test_since(self) -> None:
        """Events are numbered from 1, and those after a number are told in order; after the last there are none."""
        log = EventLog(10, 100)
        self.assertEqual([log.append(event) for event in (b"a", b"b", b"c")], [1, 2, 3])
        self.assertEqual(log.since(0), [(1, b"a"), (2, b"b"), (3, b"c")])
        self.assertEqual(log.since(2), [(3, b"c")])
        self.assertEqual([log.since(3), log.since(99)], [[], []])

    def test_telling_changes_nothing(self) -> None:
        """What was told once can be told again: the client may lose that connection, too."""
        log = filled([1, 1], 10, 100)
        log.since(0).clear()
        self.assertEqual([number for number, _ in log.since(0)], [1, 2])

    def test_oldest_go(self) -> None:
        """One event too many, or one byte, costs the oldest; numbers go on as if all were there."""
        self.assertEqual(filled([1, 1, 1, 1], 3, 100).since(0), [(2, b"\2"), (3, b"\3"), (4, b"\4")])
        self.assertEqual([number for number, _ in filled([4, 4, 2], 9, 10).since(0)], [1, 2, 3])
        self.assertEqual([number for number, _ in filled([4, 4, 3], 9, 10).since(0)], [2, 3])
        self.assertEqual(filled([4, 4, 3], 9, 10).last, 3)

    def test_huge_event(self) -> None:
        """The newest event is kept whatever its size, at the cost of all others; with the next one it goes."""
        log = filled([1, 1, 50], 9, 10)
        self.assertEqual((log.since(0), log.size), ([(3, b"\3" * 50)], 50))
        log.append(b"x")
        self.assertEqual((log.since(0), log.size), ([(4, b"x")], 1))

    @settings(max_examples=200, deadline=None)
    @given(SIZES, st.integers(1, 8), st.integers(0, 30), st.integers(0, 35))
    def test_bounds(self, sizes: list[int], max_events: int, max_bytes: int, since: int) -> None:
        """Kept are the newest events, as many as the bounds allow and never more, however they came."""
        log = filled(sizes, max_events, max_bytes)
        self.assertEqual(log.last, len(sizes))
        kept = log.since(0)
        self.assertEqual(kept, [(n, bytes([n]) * sizes[n - 1]) for n in range(log.last - len(kept) + 1, log.last + 1)])
        self.assertEqual((len(log), log.size), (len(kept), sum(len(event) for _, event in kept)))
        self.assertLessEqual(len(log), max_events)
        self.assertTrue(log.size <= max_bytes or len(log) == 1)
        self.assertEqual(log.since(since), [each for each in kept if each[0] > since])

    @settings(max_examples=200, deadline=None)
    @given(SIZES, st.integers(1, 8), st.integers(0, 30))
    def test_nothing_goes_early(self, sizes: list[int], max_events: int, max_bytes: int) -> None:
        """No event makes room before there is need of it."""
        log = EventLog(max_events, max_bytes)
        for size in sizes:
            before = log.size, len(log)
            log.append(b"x" * size)
            is_room = before[0] + size <= max_bytes and before[1] < max_events
            self.assertEqual(len(log) == before[1] + 1, is_room or before[1] == 0)
