"""What is sent at the end of a turn of the reactor, together with what else there is to send then.

A send that wakes its reader costs several times as much as one to a reader that is awake. If a turn has brought work
for many connections, their sends in a row find one awake whom the first has woken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

log = Logger()

#: After so many turns with one send each the next sends are not put off; so many of them, then it is looked again.
QUIET_TURNS = 4
DIRECT_SENDS = 100
#: So many are done before the turn has ended: the first of them has waited for long enough.
MAX_TOGETHER = 8


class Turn:
    """Does things when the current turn of the reactor is over, in the order in which it was asked.

    :param clock: tells when that is; by its ``at_turns_end`` if it has one, which costs less than a timer.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._later: Callable[[Callable[[], None]], object]
        self._later = getattr(clock, "at_turns_end", None) or partial(clock.callLater, 0)
        self._due: list[Callable[[], None]] = []
        self._is_awaited = False  # the end of this turn
        self._was_full = False
        self._quiet = 0
        self._direct = DIRECT_SENDS

    def soon(self, work: Callable[[], None]) -> None:
        """Do this at the end of the turn; or now, as long as turns have one such thing to do each."""
        if self._direct and not self._is_awaited:
            self._direct -= 1
            work()
        else:
            self.at_end(work)

    def at_end(self, work: Callable[[], None]) -> None:
        """Do this at the end of the turn."""
        if not self._is_awaited:
            self._is_awaited = True
            self._later(self._end)
        self._due.append(work)
        if len(self._due) >= MAX_TOGETHER:
            self._was_full = True
            self._do()

    def _end(self) -> None:
        is_alone = len(self._due) == 1 and not self._was_full
        self._quiet = self._quiet + 1 if is_alone else 0
        if self._quiet >= QUIET_TURNS:
            self._quiet, self._direct = 0, DIRECT_SENDS
        self._is_awaited = self._was_full = False
        self._do()

    def _do(self) -> None:
        due, self._due = self._due, []
        for work in due:
            try:
                work()
            except Exception:
                log.failure("what was put off to the end of a turn has failed")
