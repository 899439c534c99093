"""Carries the messages of one session between its client and whatever link it has at the moment.

It knows which requests are outstanding both ways and gives each its fate: sent, held, sent again, answered with the
truth. When there is a link, and when there is none, is the session's business.
"""

from __future__ import annotations

import math

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.session import truth
from mcp_proxy.session.answers import Answers
from mcp_proxy.session.deliveries import Deliveries
from mcp_proxy.session.exchanges import Delivery, Exchange, Exchanges
from mcp_proxy.session.interfaces import Outgoing
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.meter import NO_METER, Meter
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.questions import Questions
from mcp_proxy.session.route import IRoute
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, modern, revisions
from mcp_proxy.wire.errors import (
    EventTooLarge,
    NotDelivered,
    NotJSONRPC,
    Overloaded,
    ProxyError,
    TooManyInFlight,
    TooManyQuestions,
)
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message
from mcp_proxy.wire.sse import Oversized

log = Logger()

#: A held request with a progress token hears of it after this many seconds, and then again and again.
FIRST_BEAT, NEXT_BEAT = 5.0, 10.0
#: The namespace of our own request ids.
OWN_PREFIX = b'"mcp-proxy/'


class Courier:
    """See the module. Callers: the session, which passes on what its client and its link say."""

    __slots__ = (
        "_answers",
        "_clock",
        "_count",
        "_exchanges",
        "_meter",
        "_policy",
        "_questions",
        "_route",
        "_timers",
        "deliveries",
    )

    def __init__(self, route: IRoute, clock: IReactorTime, policy: Policy, meter: Meter = NO_METER) -> None:
        self._route = route
        self._clock = clock
        self._policy = policy
        self._meter = meter
        self._timers = Timers(clock)
        self._exchanges = Exchanges(policy.max_held, policy.max_held_bytes, policy.room)
        self._questions = Questions()
        self.deliveries = Deliveries(self, self._exchanges, route, clock, policy, meter)
        self._count = 0
        self._answers: Answers | None = None  # most sessions are never asked anything

    @property
    def in_flight(self) -> int:
        """How many requests wait for the backend's answer; whoever has cancelled does not."""
        return sum(not exchange.cancelled for exchange in self._exchanges.in_flight.values())

    @property
    def is_awaited(self) -> bool:
        """Whether an answer is awaited that is not to last."""
        return any(not (exchange.cancelled or exchange.is_lasting) for exchange in self._exchanges)

    @property
    def held(self) -> int:
        """How many messages wait for a link."""
        return len(self._exchanges.held)

    def own_id(self) -> bytes:
        """A new id for a request of our own."""
        self._count += 1
        return OWN_PREFIX + b'%d"' % self._count

    def awaits_initialize(self) -> bool:
        """Whether an initialize of the client's is on its way."""
        return any(exchange.message.method == revisions.INITIALIZE for exchange in self._exchanges)

    # -- from the client ---------------------------------------------------------------------------------------

    def take_request(self, message: Message, headers: Headers, reply: object = None) -> Exchange | None:
        """A request of the client's; None if it is one that is on its way already.

        :param reply: where its answer goes, if it has a place of its own.

        :raises NotJSONRPC: its id is that of another request.
        """
        identity = message.id or b""
        known = self._exchanges.find(identity)
        if known is not None:
            if reply is None and known.fingerprint == hash(message.raw):
                return None  # the client did not hear our 202
            raise NotJSONRPC("Another request with this id is not answered yet. Use a new id.")
        is_unfit = jsonrpc.is_fragile(identity) or identity.startswith(OWN_PREFIX)
        is_unfit = is_unfit and self._route.outlet.needs_handshake  # else it is the only one, and names a subscription
        backend_id = self.own_id() if is_unfit else identity
        exchange = Exchange(message, headers, arrived=self._clock.seconds(), backend_id=backend_id, reply=reply)
        self._meter.began(exchange, self._route.label)
        return exchange

    def take_notification(self, message: Message, headers: Headers) -> None:
        """A notification of the client's, but neither ``initialized`` nor ``cancelled``."""
        exchange = Exchange(message, headers, arrived=self._clock.seconds())
        if self._route.phase is Phase.LIVE:
            self.send(exchange)
        elif message.method != revisions.PROGRESS:  # progress is about a request that died with its link
            self.hold(exchange)

    def take_answer(self, message: Message, headers: Headers) -> None:
        """The client answers a request of the backend's; nobody waits for answers to an earlier backend."""
        raw, is_waited_for = self._questions.answered(message)
        if raw is None or self._route.link is None:
            log.debug("answer to a request of an earlier backend dropped", session=self._route.label)
        elif is_waited_for:
            self._answers = self._answers or Answers(self._route, self._clock, self._policy)
            self._answers.send(raw, headers)
        else:
            self._route.link.send(Outgoing(raw, headers))

    def answer_refused(self, outgoing: Outgoing, reason: str) -> None:
        """The backend was not reached with an answer."""
        if self._answers is not None:
            self._answers.refused(outgoing, reason, self.in_flight)

    def answer_taken(self, outgoing: Outgoing) -> None:
        """The backend has it."""
        if self._answers is not None:
            self._answers.taken(outgoing)

    def take_cancellation(self, message: Message, headers: Headers) -> None:
        """The client does not want an answer any more."""
        identity = jsonrpc.cancelled_id(message)
        exchange = None if identity is None else self._exchanges.find(identity)
        if exchange is None or identity is None or exchange.cancelled:
            return
        exchange.cancelled = True
        self._meter.cancelled(exchange)
        self._route.outlet.abandon(exchange)
        if exchange in self._exchanges.held:
            self._exchanges.drop(exchange)
            self._unheld(exchange)
            return
        if self._route.link is not None:
            raw = message.raw
            if exchange.backend_id != identity:
                raw = jsonrpc.with_cancelled_id(raw, exchange.backend_id)
            self._route.link.send(Outgoing(raw, headers, revisions.CANCELLED))

    # -- towards the backend -----------------------------------------------------------------------------------

    def send(self, exchange: Exchange) -> None:
        """Give a message to the link."""
        message, link = exchange.message, self._route.link
        if link is None:
            return
        if exchange.is_request:
            try:
                self._exchanges.dispatch(exchange)
            except TooManyInFlight as error:
                self.fail(exchange, error)
                return
            if exchange.progress is not None:
                exchange.floor = _number(exchange.progress)
            if message.method == revisions.INITIALIZE:
                self._timers.set("initialize", self._policy.hold_timeout, self._not_initialized, exchange)
        raw = message.raw
        if exchange.is_request and exchange.backend_id != message.id:
            raw = jsonrpc.with_id(raw, exchange.backend_id)
        link.send(
            Outgoing(raw, exchange.headers, message.method, exchange, exchange.is_safe, barrier=not exchange.is_request)
        )

    def _not_initialized(self, exchange: Exchange) -> None:
        """A backend that takes connections says nothing: nobody waits for it longer than for one that is away."""
        reason = "the backend did not answer initialize in time"
        if not self._route.outlet.patient and self._exchanges.is_in_flight(exchange):
            self._exchanges.drop(exchange)
            self.fail(exchange, NotDelivered(f"{reason.capitalize()}. It is safe to repeat."))
        self._route.lost(reason)

    def hold(self, exchange: Exchange) -> None:
        """Keep a message until there is a link, or until its time is up."""
        now = self._clock.seconds()
        try:
            self._exchanges.hold(exchange, now + self._policy.hold_timeout)
        except Overloaded as error:
            self.fail(exchange, error)
            return
        exchange.held_since = now
        exchange.beat = now + FIRST_BEAT
        self._arm()

    def release(self) -> None:
        """There is a live link: what was held goes, in the order in which it came."""
        for exchange in self._exchanges.ready(self._clock.seconds()):
            self._unheld(exchange)
            self.send(exchange)
        self._arm()

    def settle(self) -> None:
        """The link is gone: every message that was on it gets its fate."""
        self.deliveries.forget_probes()
        if self._answers is not None:
            self._answers.forget()
        self._timers.cancel("initialize")
        for cancellation, about in self._questions.lost():
            self._route.outlet.emit(cancellation, about)
        now = self._clock.seconds()
        waiting = set(self._exchanges.held)
        for exchange in self._exchanges.lose(self.deliveries.is_repeatable, now + self._policy.hold_timeout):
            if exchange.delivery is Delivery.NOT_SENT:
                self.fail(exchange, self._exchanges.refusal(exchange) or Overloaded())  # there is no room to hold it
            else:
                self.fail(exchange, self._unknown(exchange))
        for exchange in self._exchanges.held:
            exchange.beat = max(exchange.beat, now + FIRST_BEAT)
            if exchange not in waiting:
                exchange.held_since = now
        self._arm()

    def answer_held(self, *, but_initialize: bool) -> None:
        """Nobody is to wait any more; an initialize may be excepted, for a client gives up on an error there."""
        for exchange in self._exchanges.take_held(
            lambda exchange: but_initialize and exchange.message.method == revisions.INITIALIZE
        ):
            self._give_up_on(exchange)
        self._arm()

    def cancel_all(self) -> None:
        """Nobody waits for any answer."""
        for exchange in self._exchanges:
            if not exchange.cancelled:
                exchange.cancelled = True
                self._meter.cancelled(exchange)

    def refuse_held(self, error: ProxyError) -> None:
        """What is held will never be delivered."""
        for exchange in self._exchanges.take_held(lambda _: False):
            self._unheld(exchange)
            self.fail(exchange, error)
        self._arm()

    def stop(self) -> None:
        """The session is over."""
        self.answer_held(but_initialize=False)
        for exchange in self._exchanges.leave_room():
            if exchange.is_lasting and not exchange.cancelled:
                self._meter.answered_here(exchange)
                self._route.outlet.answer(exchange, modern.end_of_listen(exchange.message.id or b"null"))
        if self._answers is not None:
            self._answers.forget()
        self._timers.cancel_all()

    # -- from the backend --------------------------------------------------------------------------------------

    def deliver_answer(self, message: Message) -> None:
        """The backend answered a request of the client's."""
        now = self._clock.seconds()
        exchange = self._exchanges.answered(message.id)
        if exchange is None:
            log.debug("answer that nobody waits for dropped", session=self._route.label)
            return
        if exchange.is_lasting and self._is_to_last(exchange, message, now):
            self._ask_again(exchange)
            return
        raw = self._route.memory.answered(exchange.message, message)
        if exchange.backend_id != exchange.message.id:
            raw = jsonrpc.with_id(raw, exchange.message.id or b"null")
        if not (exchange.cancelled and message.is_error):
            self._route.outlet.answer(exchange, raw)
        if not exchange.cancelled:
            self._meter.answered(exchange, now, self._clock.seconds(), is_error=message.is_error)
        if exchange.message.method == revisions.INITIALIZE:
            self._timers.cancel("initialize")
            if not message.is_error:
                self._route.initialized()

    def _is_to_last(self, exchange: Exchange, message: Message, now: float) -> bool:
        """Whether the backend ends what is meant to last, perhaps because it stops; not if it does so at once."""
        lasted = now - max(exchange.arrived, exchange.not_before)
        return not message.is_error and lasted >= self._policy.reconnect_delay

    def _ask_again(self, exchange: Exchange) -> None:
        """A backend that stops has the time to be gone before it is asked."""
        exchange.not_before = self._clock.seconds() + self._policy.jitter(self._policy.reconnect_delay)
        exchange.delivery = Delivery.NOT_SENT
        self.hold(exchange)

    def find_request(self, message: Message) -> Exchange | None:
        """Which request a message is about that came on a stream for all: the one with its token, or the only one."""
        if message.method == revisions.PROGRESS:
            token = message.params().get("progressToken")
            return next((each for each in self._exchanges.in_flight.values() if each.token == token), None)
        in_flight = self._exchanges.in_flight
        return next(iter(in_flight.values())) if len(in_flight) == 1 else None

    def deliver_request(self, message: Message, about: Exchange | None) -> None:
        """The backend asks; its request gets an id of ours, for a restarted backend counts from the start again."""
        route = self._route
        if message.method == revisions.PING and not route.outlet.attached:
            if route.link is not None:
                route.link.send(Outgoing(jsonrpc.result(message.id or b"", {}), route.headers))
            return
        raw = self._questions.asked(message, route.generation, about)
        if raw is None:
            self._meter.limited(TooManyQuestions())
            log.warn("backend request dropped: too many are unanswered", session=route.label)
        else:
            self._meter.relayed()
            route.outlet.emit(raw, about)

    def deliver_notification(self, message: Message, about: Exchange | None) -> None:
        """The backend tells something; where it cancels a request of its own, that has another id here."""
        if message.method != revisions.CANCELLED:
            if about is not None and message.method == revisions.PROGRESS:
                if about.floor is not None and _number(message) <= about.floor:
                    return  # it has begun anew
                about.progress, about.floor = message, None
            self._meter.relayed()
            self._route.outlet.emit(message.raw, about)
            return
        withdrawn = self._questions.withdrawn(message)
        if withdrawn is not None:
            self._meter.relayed()
            self._route.outlet.emit(*withdrawn)

    def deliver_oversized(self, event: Oversized, about: Exchange | None) -> None:
        """The backend sent more than we take: whoever waits for it is told."""
        identity = jsonrpc.answered_id(event.head, event.tail) if about is None else about.backend_id
        exchange = self._exchanges.answered(identity)
        if exchange is None:
            self._meter.limited(EventTooLarge())
            log.warn("event of {size} bytes dropped", size=event.size, session=self._route.label)
            return
        exchange.delivery = Delivery.ACCEPTED
        self.fail(exchange, truth.answer_too_large(event.size))

    # -- answers of our own ------------------------------------------------------------------------------------

    def fail(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer a request with an error that tells the truth; for anything else nobody waits."""
        if not exchange.is_request or exchange.cancelled:
            return
        log.warn(
            "request answered by the proxy: {error}",
            error=type(error).__name__,
            session=self._route.label,
            generation=self._route.generation,
            method=exchange.message.method,
            delivery=exchange.delivery.value,
            outage_ms=int(self._route.outage * 1000),
        )
        self._meter.failed(exchange, error)
        raw = truth.error_answer(exchange, error, self._route.outage, self._policy.reconnect_delay)
        self._route.outlet.answer(exchange, raw, error)

    def _give_up_on(self, exchange: Exchange) -> None:
        self._unheld(exchange)
        challenge = self._route.credentials.challenge
        if challenge is not None and self._route.outlet.refuse(exchange, challenge):
            self._route.credentials.take_challenge()
            self._meter.refused(exchange)
            return
        if self._route.ending:
            self.fail(exchange, truth.cut_short(exchange, self._route.ending))
        else:
            self.fail(exchange, truth.given_up(exchange, self._route.outage, self._route.trouble))

    def _unknown(self, exchange: Exchange) -> ProxyError:
        if self._route.ending:
            return truth.cut_short(exchange, self._route.ending)
        return truth.outcome_unknown(exchange, self._route.trouble)

    def _unheld(self, exchange: Exchange) -> None:
        if exchange.held_since is not None:
            self._meter.held(self._clock.seconds() - exchange.held_since)

    # -- the time that a message may be held -------------------------------------------------------------------

    def _arm(self) -> None:
        """One timer for all that is held."""
        held = self._exchanges.held
        if not held:
            self._timers.cancel("hold")
            return
        now = self._clock.seconds()
        is_live = self._route.phase is Phase.LIVE
        due = min(
            min(
                exchange.beat,
                exchange.beat if exchange.is_lasting else exchange.deadline,
                exchange.not_before if is_live else exchange.beat,
            )
            for exchange in held
        )
        self._timers.set("hold", max(0.0, due - now), self._due)

    def _due(self) -> None:
        now = self._clock.seconds()
        for exchange in self._exchanges.expired(now):
            self._give_up_on(exchange)
        for exchange in self._exchanges.held:
            if exchange.beat <= now:
                exchange.beat = now + NEXT_BEAT
                self._route.outlet.begin_stream(exchange)
                sign_of_life = truth.still_held(exchange)
                if sign_of_life is not None:
                    self._route.outlet.emit(sign_of_life, exchange)
        if self._route.phase is Phase.LIVE:
            self.release()
        self._arm()


def _number(progress: Message) -> float:
    """How far a report of progress says that something is; one that does not say it is further than any."""
    number = progress.params().get("progress")
    return number if isinstance(number, (int, float)) else math.inf
