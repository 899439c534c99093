"""The one view of the backend that all sessions share: is it there, whose turn is it to connect, when to give up.

Much like Twisted's ReconnectingClientFactory, for many connections at once: attempts come at RECONNECT_DELAY, with
jitter, and are counted; between them a cheap watch of the port notices a backend that listens again at once. After
the last attempt only the counting ends, never the watch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.session.interfaces import ILink, ILinkOwner, ISeeker, Loss
from mcp_proxy.timers import Timers
from mcp_proxy.wire.headers import Headers

log = Logger()

#: How many sessions may be connecting or handshaking at the same time.
MAX_TURNS = 16
#: The port watch starts at this pace, in seconds, and slows down to RECONNECT_DELAY.
FIRST_WATCH, WATCH_GROWTH = 0.25, 1.5
#: How often in a row the port must refuse before links that still live are taken to be in the way of a restart.
STRIKES = 3

Probe = Callable[[], "Deferred[Any]"]
MakeLink = Callable[[ILinkOwner, Headers], ILink]


class Backend:
    """See the module. Callers: sessions (:class:`IBackend`), the health check, the status pages.

    :param clock: keeps time.
    :param probe: tries the port; its Deferred fails if nobody listens.
    :param make_link: makes a link for a session.
    :param max_attempts: the attempts of one outage before whoever waits is answered; 0 is no limit.
    :param delay: seconds between two attempts.
    :param jitter: spreads a delay.
    """

    def __init__(
        self,
        clock: IReactorTime,
        probe: Probe,
        make_link: MakeLink,
        *,
        max_attempts: int,
        delay: float,
        jitter: Callable[[float], float] = lambda delay: delay,
    ) -> None:
        self.make_link = make_link
        self.attempts = 0
        self.outages = 0
        self.spent = False
        self.is_ending = False
        self._clock = clock
        self._probe = probe
        self._max_attempts = max_attempts
        self._delay = delay
        self._jitter = jitter
        self._waiting: dict[ISeeker, None] = {}
        self._turns: set[ISeeker] = set()
        self._live: set[ISeeker] = set()
        self._lost_at: float | None = None
        self._is_down = False
        self._pace = FIRST_WATCH
        self._strikes = 0
        self._timers = Timers(clock)
        self._probing: Deferred[Any] | None = None
        self._stopped = False

    # -- what others may know ----------------------------------------------------------------------------------

    @property
    def is_down(self) -> bool:
        """Whether it is known that nobody can connect."""
        return self._is_down

    @property
    def outage(self) -> float:
        """For how many seconds it has been away; 0 when it is not."""
        return 0.0 if self._lost_at is None else max(self._clock.seconds() - self._lost_at, 1e-3)

    @property
    def links(self) -> int:
        """How many sessions have a live link."""
        return len(self._live)

    # -- sessions ----------------------------------------------------------------------------------------------

    def seek(self, seeker: ISeeker) -> None:
        """A session wants to connect; it gets its turn when the backend is there and few others are at it."""
        self._turns.discard(seeker)
        self._live.discard(seeker)
        self._waiting[seeker] = None
        if not self._is_down:
            self._give_turns()

    def withdraw(self, seeker: ISeeker) -> None:
        """A session wants nothing any more."""
        self._waiting.pop(seeker, None)
        self._live.discard(seeker)
        if seeker in self._turns:
            self._turns.discard(seeker)
            self._turn_over()

    def succeeded(self, seeker: ISeeker) -> None:
        """A turn led to a live link."""
        self._turns.discard(seeker)
        self._live.add(seeker)
        self._came_back()
        self._turn_over()
        if not self._stopped:
            self._timers.keep("live", self._watch_pace(), self._watch_live)

    def failed(self, seeker: ISeeker, loss: Loss) -> None:
        """A turn led to nothing; if the backend answered, it is there for others."""
        self._turns.discard(seeker)
        if loss.reachable:
            self._came_back()
            self._turn_over()
        else:
            self._went_down(loss.reason)

    def lost(self, loss: Loss) -> None:
        """A live link broke. That alone is no outage, but an outage that follows began here."""
        self._begin_outage(loss.reason)

    def _give_turns(self) -> None:
        while self._waiting and len(self._turns) < MAX_TURNS:
            seeker = next(iter(self._waiting))
            del self._waiting[seeker]
            self._turns.add(seeker)
            seeker.backend_turn()

    def _turn_over(self) -> None:
        if not self._is_down:
            self._give_turns()

    # -- outages -----------------------------------------------------------------------------------------------

    def _begin_outage(self, reason: str) -> None:
        if self._lost_at is None:
            self._lost_at = self._clock.seconds()
            self.outages += 1
            log.warn("connection lost (reconnect #{count}): {reason}", count=self.outages, reason=reason)

    def _went_down(self, reason: str) -> None:
        self._begin_outage(reason)
        if self._is_down or self._stopped:
            return
        self._is_down = True
        self._timers.cancel("live")
        self.attempts = 1
        self._pace = min(FIRST_WATCH, self._delay)
        log.warn(
            "backend is down: {reason}; attempting to reconnect every {delay:g} s",
            reason=reason,
            delay=self._delay,
            attempt=self.attempts,
        )
        self._schedule("attempt", self._jitter(self._delay), self._attempt)
        self._schedule("watch", self._pace, self._watch)

    def _came_back(self) -> None:
        outage, attempts = self.outage, self.attempts
        was_away = self._lost_at is not None
        self._lost_at = None
        self._is_down = self.spent = False
        self.attempts = self._strikes = 0
        self._timers.cancel("attempt", "watch")
        if was_away:
            log.info(
                "reconnected after {seconds:.1f} s",
                seconds=outage,
                attempt=attempts or None,
                outage_ms=int(outage * 1000),
            )
        self._set_ending(False)

    def _attempt(self) -> None:
        """One counted attempt; the next is due whatever comes of it."""
        if 0 < self._max_attempts <= self.attempts:
            self._give_up()
            return
        self.attempts += 1
        log.info(
            "attempting to reconnect (attempt {attempt}{of})",
            attempt=self.attempts,
            of=f" of {self._max_attempts}" if self._max_attempts else "",
            outage_ms=int(self.outage * 1000),
        )
        self._schedule("attempt", self._jitter(self._delay), self._attempt)
        self._timers.cancel("watch")
        self._watch()

    def _give_up(self) -> None:
        self.spent = True
        log.error(
            "gave up after {attempt} attempts; whoever waits is answered, the port is still watched",
            attempt=self.attempts,
            outage_ms=int(self.outage * 1000),
        )
        for seeker in (*self._waiting, *self._turns):
            seeker.backend_gave_up()
        self._timers.keep("watch", self._jitter(self._delay), self._watch)

    def _watch(self) -> None:
        """Is the port open again?"""
        self._try_port(self._port_open, self._port_closed)

    def _try_port(self, opened: Callable[[object], None], closed: Callable[[Failure], None]) -> None:
        """Try the port, unless that is being done."""
        if self._probing is not None or self._stopped:
            return

        def over(result: object) -> object:
            self._probing = None
            return result

        probing = self._probing = self._probe()
        probing.addBoth(over).addCallbacks(opened, closed)
        probing.addErrback(lambda failure: log.failure("port watch failed", failure))

    def _port_open(self, _: object) -> None:
        if self._waiting:
            # Whoever gets a turn finds out whether more than the port is there. Until the next attempt nobody
            # else does: a gateway in front of a dead backend has its port open all the time.
            if self.spent:
                self._schedule("watch", self._jitter(self._delay), self._watch)
            self._give_turns()
        elif not self._turns:
            self._came_back()

    def _port_closed(self, _: Failure) -> None:
        self._pace = min(self._pace * WATCH_GROWTH, max(self._delay, FIRST_WATCH))
        if self._is_down and not self._stopped:
            self._schedule("watch", self._pace, self._watch)

    # -- while it is up ----------------------------------------------------------------------------------------

    def _watch_pace(self) -> float:
        return min(FIRST_WATCH, self._delay) if self._strikes else self._delay

    def _watch_live(self) -> None:
        """A backend that has stopped listening while links live waits for them to end (uvicorn --reload does)."""
        if self._stopped or self._is_down or not self._live:
            return
        self._schedule("live", self._watch_pace(), self._watch_live)
        self._try_port(self._still_listening, self._not_listening)

    def _still_listening(self, _: object) -> None:
        self._strikes = 0
        self._set_ending(False)

    def _not_listening(self, failure: Failure) -> None:
        if not failure.check(ConnectionRefusedError):
            return  # too busy to accept is not gone
        self._strikes += 1
        if self._strikes >= STRIKES:
            self._set_ending(True)
        else:
            self._schedule("live", self._watch_pace(), self._watch_live)

    def _set_ending(self, ending: bool) -> None:
        if ending is self.is_ending:
            return
        self.is_ending = ending
        if ending:
            log.warn("backend has stopped listening; its streams are closed so that it can restart")
        for seeker in list(self._live):
            if ending:
                seeker.backend_ending()
            else:
                seeker.backend_not_ending()

    # -- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped = True
        self._timers.cancel_all()
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()

    def _schedule(self, name: str, delay: float, function: Callable[[], None]) -> None:
        if not self._stopped:
            self._timers.set(name, delay, function)
