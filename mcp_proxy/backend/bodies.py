"""Who receives the body of an answer."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred


class IBodyReceiver(Protocol):
    """Whom the body of an answer is told to."""

    def body_received(self, data: bytes) -> None:
        """More of it."""

    def body_ended(self, reason: str) -> None:
        """No more of it."""


class Nobody:
    """Wants nothing."""

    def body_received(self, data: bytes) -> None:
        """More of it."""

    def body_ended(self, reason: str) -> None:
        """No more of it."""


class Collector:
    """Keeps the first so many bytes; ``done`` fires with them when there are no more."""

    def __init__(self, limit: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: None)
        self._limit = limit
        self._data = b""

    def body_received(self, data: bytes) -> None:
        """More of it."""
        self._data = (self._data + data)[: self._limit]
        if len(self._data) == self._limit:
            self.body_ended("long enough")

    def body_ended(self, reason: str) -> None:
        """No more of it."""
        if not self.done.called:
            self.done.callback(self._data)
