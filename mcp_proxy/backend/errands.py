"""A link's own requests, which carry no message: each has a deadline, and no consequences once the link is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.response import Response

log = Logger()


class Errands:
    """What one link waits for.

    :param timeout: for how many seconds each is waited for.
    """

    __slots__ = ("_clock", "_is_over", "_pending", "_timeout")

    def __init__(self, clock: IReactorTime, timeout: float) -> None:
        self._clock = clock
        self._timeout = timeout
        self._pending: dict[Deferred[Any], None] = {}
        self._is_over = False

    def run(self, asked: Deferred[Any], answered: Callable[[Any], None], failed: Callable[[Failure], None]) -> None:
        """Wait for an answer."""
        self._pending[asked] = None
        deadline = self._clock.callLater(self._timeout, asked.cancel)

        def over(result: Any) -> Any:
            self._pending.pop(asked, None)
            self._pending = self._pending or {}  # an emptied one is large
            if deadline.active():
                deadline.cancel()
            return result

        def succeeded(result: Any) -> None:
            if not self._is_over:
                answered(result)
            elif isinstance(result, Response):
                result.abort()

        def broke(failure: Failure) -> None:
            if not self._is_over:
                failed(failure)

        asked.addBoth(over).addCallbacks(succeeded, broke)
        asked.addErrback(lambda failure: log.failure("an answer of the backend's could not be handled", failure))

    def close(self) -> None:
        """Wait no longer."""
        self._is_over = True
        for pending in list(self._pending):
            pending.cancel()
