"""Staying awake for a moment when the next event is about to come.

A reactor sleeps between two events, however soon the next one comes: to fall asleep and wake up takes longer than a
quick backend does. So for a moment it only looks, as long as that is not in vain. What is there already, as always when
there is much to do, is no reason to look: nobody would have slept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

#: For how many seconds at most it is only looked for the next event, and how often in a row in vain.
AWAKE = 100e-6
IN_VAIN = 3
#: Who slept for less than this has not slept: the next event was there.
AT_ONCE = 20e-6

_let_others = getattr(os, "sched_yield", lambda: None)


class EpollWatch:
    """Waits for what is ready.

    :param poll: that of an epoll object.
    """

    __slots__ = ("_left", "_poll")

    def __init__(self, poll: Callable[[float, int], list[tuple[int, int]]]) -> None:
        self._poll = poll
        self._left = 0  # how often it may yet be looked in vain

    def next(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """What is ready, as soon as something is, or nothing after so many seconds (-1: never)."""
        poll = self._poll
        if self._left:
            ready = poll(0, most)
            if ready:
                return ready
            end = monotonic() + AWAKE
            while monotonic() < end:
                _let_others()  # who may have to run here before anything can come
                ready = poll(0, most)
                if ready:
                    self._left = IN_VAIN
                    return ready
            self._left -= 1
        began = monotonic()
        ready = poll(timeout, most)
        if ready and AT_ONCE < monotonic() - began < AWAKE:
            self._left = IN_VAIN
        return ready


class LoopWatch:
    """The same for a loop that waits by itself: it does not sleep while there is something to be called.

    :param call_soon: that of an event loop of asyncio's.
    """

    __slots__ = ("_call_soon", "_end", "_has_waited", "_is_awake", "_left", "_slept")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._left = 0  # how often it may yet be looked in vain
        self._is_awake = False
        self._end = 0.0  # of looking, as soon as what came has been handled
        self._has_waited = False  # it was looked in vain before
        self._slept = 0.0  # since when, if it is not awake

    def came(self) -> None:
        """Something has come, and is about to be handled."""
        if self._is_awake:
            if self._has_waited:
                self._left = IN_VAIN
            self._end, self._has_waited = 0.0, False
            return
        if AT_ONCE < monotonic() - self._slept < AWAKE:
            self._left = IN_VAIN
        self._is_awake = True
        self._call_soon(self._look)

    def _look(self) -> None:
        """Called when what came has been handled, before the loop looks for more."""
        now = monotonic()
        if self._left and not self._end:
            self._end = now + AWAKE
        elif now < self._end:
            self._has_waited = True
            _let_others()  # who may have to run here before anything can come
        else:
            if self._left:
                self._left -= 1
            self._is_awake, self._end, self._has_waited, self._slept = False, 0.0, False, now
            return
        self._call_soon(self._look)
