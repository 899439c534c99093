"""The one view of the backend that all sessions share: is it there, whose turn is it to connect, when to give up.

Much like Twisted's ReconnectingClientFactory, for many connections at once: attempts come at RECONNECT_DELAY, with
jitter, and are counted; between them a cheap watch of the port notices a backend that listens again at once. After
the last attempt only the counting ends, never the watch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import REFUSED, RequestFailed
from mcp_proxy.backend.response import GATEWAY
from mcp_proxy.session.interfaces import ILink, ILinkHolder, ISeeker, Loss
from mcp_proxy.session.meter import NO_METER, Meter
from mcp_proxy.timers import Timers
from mcp_proxy.wire.headers import Headers

log = Logger()

#: How many sessions may be connecting or handshaking at the same time.
MAX_TURNS = 16
#: The port watch starts at this pace, in seconds, and slows down to RECONNECT_DELAY: whoever has waited for long can
#: wait for this part of that time more.
FIRST_WATCH, WATCH_SHARE = 0.03, 0.02
#: How often, in seconds, a backend is asked that takes no new requests while its links live.
DOUBT_PACE = 0.25
#: How often in a row nobody must answer before links that still live are taken to be in the way of a restart.
STRIKES = 3
#: How long, in seconds, an answer may take then.
ANSWER_WAIT = 1.0


class MakeLink(Protocol):
    """Makes a link for a session; see :meth:`IBackend.make_link`."""

    def __call__(self, owner: ILinkHolder, headers: Headers, *, stateless: bool) -> ILink:
        """Make it."""


class ISentinel(Protocol):
    """A connection that notices when the backend closes it."""

    def close(self) -> None:
        """End it."""


class IPort(Protocol):
    """What can be tried without a session; see ``port.Port``."""

    def try_connect(self) -> Deferred[None]:
        """Fails if nobody listens."""

    def stand_watch(self, closed: Callable[[], None]) -> Deferred[Any]:
        """Fires with an :class:`ISentinel`; fails if nobody listens."""

    def ask(self, timeout: float) -> Deferred[int]:
        """Fails if nobody answers."""


class Backend:
    """See the module. Callers: sessions (:class:`IBackend`), the health check, the status pages.

    :param clock: keeps time.
    :param port: what can be tried without a session.
    :param make_link: makes a link for a session.
    :param max_attempts: the attempts of one outage before whoever waits is answered; 0 is no limit.
    :param delay: seconds between two attempts.
    :param jitter: spreads a delay.
    :param on_trouble: called when it goes away or takes no link; what was known of it may not be true any more.
    :param meter: counts what happens.
    """

    def __init__(
        self,
        clock: IReactorTime,
        port: IPort,
        make_link: MakeLink,
        *,
        max_attempts: int,
        delay: float,
        jitter: Callable[[float], float] = lambda delay: delay,
        on_trouble: Callable[[], object] = lambda: None,
        meter: Meter = NO_METER,
    ) -> None:
        self.make_link = make_link
        self.attempts = 0
        self.outages = 0
        self.spent = False
        self.is_ending = self.is_doubted = False
        self._clock = clock
        self._port = port
        self._max_attempts = max_attempts
        self._delay = delay
        self._jitter = jitter
        self._on_trouble = on_trouble
        self._meter = meter
        self._waiting: dict[ISeeker, None] = {}
        self._turns: set[ISeeker] = set()
        self._live: set[ISeeker] = set()
        self._lost_at: float | None = None
        self._is_down = False
        self._was_gone = False  # nobody listened when it was last asked whether it still answers
        self._strikes = 0
        self._timers = Timers(clock)
        self._probing: Deferred[Any] | None = None
        self._sentinel: ISentinel | None = None
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
        self._not_live(seeker)
        self._waiting[seeker] = None
        if not self._is_down:
            self._give_turns()

    def withdraw(self, seeker: ISeeker) -> None:
        """A session wants nothing any more."""
        self._waiting.pop(seeker, None)
        self._not_live(seeker)
        if seeker in self._turns:
            self._turns.discard(seeker)
            self._turn_over()

    def succeeded(self, seeker: ISeeker) -> None:
        """A turn led to a live link."""
        self._turns.discard(seeker)
        self._came_back()
        self._live.add(seeker)
        if self.is_doubted:
            seeker.backend_doubted()
            self._doubt()  # nobody may be asking any more, if all that were live have left
        self._turn_over()
        self._stand_watch()

    def _not_live(self, seeker: ISeeker) -> None:
        self._live.discard(seeker)
        if not self._live:
            self._end_watch()

    def failed(self, seeker: ISeeker, loss: Loss) -> None:
        """A turn led to nothing; if the backend answered, it is there for others."""
        self._turns.discard(seeker)
        self._on_trouble()
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
            self._on_trouble()
            log.warn("connection lost (reconnect #{count}): {reason}", count=self.outages, reason=reason)

    def _went_down(self, reason: str) -> None:
        self._begin_outage(reason)
        if self._is_down or self._stopped:
            return
        self._is_down = True
        self._end_watch()
        self.attempts = 1
        self._meter.attempted()
        log.warn(
            "backend is down: {reason}; attempting to reconnect every {delay:g} s",
            reason=reason,
            delay=self._delay,
            attempt=self.attempts,
        )
        self._schedule("attempt", self._jitter(self._delay), self._attempt)
        self._schedule("watch", min(FIRST_WATCH, self._delay), self._watch)
        self._schedule("live", STRIKES * min(DOUBT_PACE, self._delay), self._outlived)

    def _outlived(self) -> None:
        """Links still live though nobody listens: those of a backend that stops, and waits for them with its port."""
        if self._live:
            self._let_go()
            self._schedule("live", min(DOUBT_PACE, self._delay), self._outlived)

    def _came_back(self) -> None:
        outage, attempts = self.outage, self.attempts
        was_away, was_gone = self._lost_at is not None, self._is_down or self._was_gone
        if self.is_doubted and not was_away:
            return  # a link for a single request opens without asking anybody
        self._lost_at = None
        self._is_down = self._was_gone = self.spent = False
        self.attempts = self._strikes = 0
        self._timers.cancel("attempt", "watch")
        self._stop_trying()
        if was_away:
            self._timers.cancel("live")
            self._meter.outage_over(outage)
            log.info(
                "reconnected after {seconds:.1f} s",
                seconds=outage,
                attempt=attempts or None,
                outage_ms=int(outage * 1000),
            )
        self.is_ending = self.is_doubted = False
        if was_away:
            for seeker in list(self._live):  # a link without a stream has not noticed that it was doubted for a reason
                seeker.backend_not_ending(was_gone=was_gone)
            self._stand_watch()

    def _attempt(self) -> None:
        """One counted attempt; the next is due whatever comes of it."""
        if 0 < self._max_attempts <= self.attempts:
            self._give_up()
            return
        self.attempts += 1
        self._meter.attempted()
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
        self._try(self._port.try_connect, self._port_open, self._port_closed)

    def _try(
        self,
        tried: Callable[[], Deferred[Any]],
        opened: Callable[[Any], None],
        closed: Callable[[Failure], None],
    ) -> None:
        """Try something, unless that is being done."""
        if self._probing is not None or self._stopped:
            return

        def over(result: object) -> object:
            self._probing = None
            return result

        probing = self._probing = tried()
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
            self._try(lambda: self._port.ask(ANSWER_WAIT), self._page_shown, self._port_closed)

    def _page_shown(self, status: int) -> None:
        """Nobody of ours would find out whether there is more than a port."""
        if status < GATEWAY:
            self._came_back()
            self._turn_over()
        else:
            self._schedule("watch", self._jitter(self._delay), self._watch)

    def _port_closed(self, _: Failure) -> None:
        if self._is_down and not self._stopped:
            pace = max(FIRST_WATCH, self.outage * WATCH_SHARE)
            self._schedule("watch", min(pace, self._delay), self._watch)

    # -- while it is up ----------------------------------------------------------------------------------------

    def _stand_watch(self) -> None:
        """Have a connection that a backend which wants to stop closes first, while it waits for its streams."""
        if self._stopped or self._is_down or not self._live or self._sentinel is not None:
            return
        self._try(lambda: self._port.stand_watch(self._watch_ended), self._watch_stands, lambda _: self._doubt())

    def _watch_stands(self, sentinel: Any) -> None:
        self._sentinel = sentinel
        if self._stopped or not self._live:
            self._end_watch()
        elif self.is_doubted:
            self._doubt()

    def _watch_ended(self) -> None:
        self._sentinel = None
        self.connection_broke()

    def connection_broke(self) -> None:
        """A connection has ended in the middle of something; those of a dying process end one after the other.

        Nothing more is sent until somebody is known to answer.
        """
        if self._stopped or self._is_down or self.is_doubted:
            return  # of a thousand connections that end at once, each may be a session's
        self.is_doubted = True
        for seeker in list(self._live):
            seeker.backend_doubted()
        self._doubt()

    def _end_watch(self) -> None:
        self._timers.cancel("live")
        sentinel, self._sentinel = self._sentinel, None
        if sentinel is not None:
            sentinel.close()

    def _doubt(self) -> None:
        """Links live, but does anybody still answer new requests?"""
        if self._live and not self._is_down:
            self._try(lambda: self._port.ask(ANSWER_WAIT), self._answered, self._unanswered)

    def _answered(self, _: object) -> None:
        self._strikes = 0
        was_gone, self._was_gone = self._was_gone, False
        self.is_ending = self.is_doubted = False
        for seeker in list(self._live):
            seeker.backend_not_ending(was_gone=was_gone)
        self._schedule("live", self._delay, self._stand_watch)

    def _unanswered(self, failure: Failure) -> None:
        self._strikes += 1
        error = failure.value
        self._was_gone = self._was_gone or (isinstance(error, RequestFailed) and error.reason == REFUSED)
        if self._strikes >= STRIKES:
            self._let_go()
        self._schedule("live", min(DOUBT_PACE, self._delay), self._doubt)

    def _let_go(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            log.warn("backend answers no new requests; its streams are closed so that it can stop or restart")
        for seeker in list(self._live):
            seeker.backend_doubted()
            seeker.backend_ending()

    def _stop_trying(self) -> None:
        probing, self._probing = self._probing, None
        if probing is not None:
            probing.cancel()

    # -- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped = True
        self._end_watch()
        self._timers.cancel_all()
        self._stop_trying()

    def _schedule(self, name: str, delay: float, function: Callable[[], None]) -> None:
        if not self._stopped:
            self._timers.set(name, delay, function)
