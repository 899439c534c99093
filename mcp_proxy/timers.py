"""Named timers: each name has at most one, and setting it anew replaces it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timers:
    """The timers of one object.

    :param clock: keeps time.
    """

    __slots__ = ("_calls", "_clock")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._calls: dict[str, IDelayedCall] | None = None  # an empty one is large, and most stay empty

    def __contains__(self, name: str) -> bool:
        return self._calls is not None and name in self._calls

    def set(self, name: str, delay: float, function: Callable[..., object], *args: Any) -> None:
        """Call the function after ``delay`` seconds."""
        self.cancel(name)
        if self._calls is None:
            self._calls = {}
        self._calls[name] = self._clock.callLater(delay, self._fire, name, function, args)

    def keep(self, name: str, delay: float, function: Callable[..., object], *args: Any) -> None:
        """The same, unless there is a timer of that name already."""
        if self._calls is None or name not in self._calls:
            self.set(name, delay, function, *args)

    def cancel(self, *names: str) -> None:
        """Forget these timers, if they are set."""
        if not self._calls:
            return
        for name in names:
            call = self._calls.pop(name, None)
            if call is not None:
                call.cancel()
        self._calls = self._calls or None

    def cancel_all(self) -> None:
        """Forget all."""
        self.cancel(*list(self._calls or ()))

    def _fire(self, name: str, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self._calls is not None:
            del self._calls[name]
            self._calls = self._calls or None
        function(*args)
