"""What was sent to a client, kept for a while, so that one who lost the connection can be told again."""

from __future__ import annotations

from collections import deque


class EventLog:
    """A bounded log of numbered events; the oldest make room for new ones.

    :param max_events: how many events are kept.
    :param max_bytes: how many bytes they may have in all; the newest event is kept even if it has more.
    """

    __slots__ = ("_events", "_max_bytes", "_max_events", "last", "size")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[tuple[int, bytes]] | None = None  # an empty one is large, and many stay empty
        self.size = 0
        self.last = 0

    def __len__(self) -> int:
        return 0 if self._events is None else len(self._events)

    def append(self, event: bytes) -> int:
        """Keep an event; return its number (1, 2, ...)."""
        self.last += 1
        if self._events is None:
            self._events = deque()
        self._events.append((self.last, event))
        self.size += len(event)
        while len(self._events) > self._max_events or (self.size > self._max_bytes and len(self._events) > 1):
            self.size -= len(self._events.popleft()[1])
        return self.last

    def clear(self) -> None:
        """Keep none of them any more."""
        self._events = None
        self.size = 0

    def since(self, number: int) -> list[tuple[int, bytes]]:
        """The events after this number that are still kept, in order."""
        return [(own, event) for own, event in self._events or () if own > number]
