"""What becomes of a message that was given to the link: taken, refused, or nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.session import truth
from mcp_proxy.session.exchanges import Delivery, Exchange, Exchanges
from mcp_proxy.session.interfaces import Outgoing, Refusal
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.meter import NO_METER, Meter
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.route import IRoute
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import BackendRefused, ProxyError

log = Logger()


class ICourier(Protocol):
    """Who carries messages."""

    def own_id(self) -> bytes:
        """A new id for a request of our own."""

    def hold(self, exchange: Exchange) -> None:
        """Keep a message until there is a link."""

    def fail(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer a request with an error."""

    def answer_refused(self, outgoing: Outgoing, reason: str) -> None:
        """An answer of the client's did not reach the backend."""

    def answer_taken(self, outgoing: Outgoing) -> None:
        """It did."""


class Deliveries:
    """See the module."""

    __slots__ = ("_clock", "_courier", "_exchanges", "_meter", "_policy", "_probing", "_route")

    def __init__(
        self,
        courier: ICourier,
        exchanges: Exchanges,
        route: IRoute,
        clock: IReactorTime,
        policy: Policy,
        meter: Meter = NO_METER,
    ) -> None:
        self._courier = courier
        self._exchanges = exchanges
        self._route = route
        self._clock = clock
        self._policy = policy
        self._meter = meter
        self._probing: dict[bytes, tuple[Exchange, Refusal]] = {}  # by the id of our ping

    def forget_probes(self) -> None:
        """The link is gone, and with it what was asked on it."""
        self._probing.clear()

    def is_repeatable(self, exchange: Exchange) -> bool:
        """Whether a request whose outcome is unknown may be sent again."""
        message = exchange.message
        if exchange.is_safe:
            return True
        if message.method == revisions.CALL_TOOL and self._policy.retry_annotated_tools:
            return self._route.memory.tools.get(str(message.params().get("name")), False)
        return False

    def accepted(self, outgoing: Outgoing) -> None:
        """The backend took a message."""
        exchange = outgoing.exchange
        if exchange is not None:
            exchange.delivery = Delivery.ACCEPTED
            exchange.deadline = 0.0  # whatever becomes of it now, its time begins anew
            if not self.is_repeatable(exchange):
                exchange.forget_text()
        elif not outgoing.method:
            self._courier.answer_taken(outgoing)
        if not self._probing:
            return
        probed, refusal = self._probing.pop(outgoing.own_id, (None, None))
        if probed is not None and refusal is not None and self._exchanges.answered(probed.backend_id) is probed:
            # the backend knows the session, so its 400 was meant for that very message
            self._refuse(probed, refusal)

    def refused(self, outgoing: Outgoing, refusal: Refusal) -> None:
        """A message was not taken, or nobody knows."""
        exchange = outgoing.exchange
        if exchange is not None and exchange.is_request and not self._exchanges.is_in_flight(exchange):
            return  # it was answered before its POST was
        method = exchange.message.method if exchange is not None else ""
        log.debug("message not taken: {reason}", reason=refusal.reason, session=self._route.label, method=method)
        is_stale = refusal.status in (404, 410) and self._route.outlet.needs_handshake
        if is_stale or outgoing.own_id in self._probing:
            if exchange is not None:
                self._rejected(exchange)
            self._route.lost(f"the backend does not know the session any more ({refusal.reason})")
        elif exchange is None or not exchange.is_request:
            self._unheard(outgoing, refusal)
        elif refusal.status == 0 or refusal.status >= 502:
            self._undelivered(exchange, refusal)
        elif refusal.status == 400 and self._route.memory.initialize and not (exchange.rejected or refusal.is_genuine):
            self._probe(exchange, refusal)
        else:
            self._exchanges.drop(exchange)
            if refusal.status < 500:
                exchange.delivery = Delivery.NOT_SENT
            self._refuse(exchange, refusal)

    def _unheard(self, outgoing: Outgoing, refusal: Refusal) -> None:
        """Something that has no answer was not taken."""
        exchange = outgoing.exchange
        if self._route.phase is Phase.HANDSHAKING and exchange is None:
            self._route.lost(refusal.reason, refusal.challenge, is_away=refusal.status >= 502)
        elif 0 < refusal.status < 502:
            return
        elif not outgoing.method:
            self._courier.answer_refused(outgoing, refusal.reason)
        elif exchange is not None and not exchange.is_on_link and outgoing.method != revisions.PROGRESS:
            self._courier.hold(exchange)
            self._route.lost(refusal.reason, is_away=True)

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Tell the client what the backend said, as it said it where there is a way."""
        if exchange.cancelled:
            return
        if refusal.answer is not None and self._route.outlet.refuse(exchange, refusal.answer):
            self._meter.refused(exchange)
            return
        if refusal.challenge is not None:
            self._route.credentials.challenged(refusal.challenge)
        own = None if refusal.answer is None else jsonrpc.error_under(exchange.message.id or b"", refusal.answer.body)
        if own is not None:
            self._meter.refused(exchange)
            self._route.outlet.answer(exchange, own)
        else:
            self._courier.fail(exchange, truth.refused(refusal))

    def unseen(self, outgoings: Iterable[Outgoing]) -> None:
        """Messages that the backend refused because it does not know the session."""
        for outgoing in outgoings:
            if outgoing.exchange is not None and self._exchanges.is_in_flight(outgoing.exchange):
                self._rejected(outgoing.exchange)

    def _rejected(self, exchange: Exchange) -> None:
        """Refused before it was looked at: it may be sent once more, whatever it is."""
        exchange.delivery = Delivery.NOT_SENT
        exchange.deadline = 0.0
        if exchange.rejected and exchange.is_request:
            self._exchanges.drop(exchange)
            self._courier.fail(exchange, BackendRefused("The backend refused the request twice as unknown to it."))
        exchange.rejected = True

    def _undelivered(self, exchange: Exchange, refusal: Refusal) -> None:
        """No answer to the POST, or a gateway's: how far it got is known by its delivery."""
        self._exchanges.drop(exchange)
        if not exchange.is_on_link:
            # nobody listens although the stream lives: the backend is about to go
            self._courier.hold(exchange)
            self._route.lost(refusal.reason, is_away=True)
        elif self.is_repeatable(exchange) and exchange.resends == 0:
            exchange.resends += 1
            exchange.not_before = self._clock.seconds() + self._policy.jitter(self._policy.reconnect_delay) / 4
            self._courier.hold(exchange)
        else:
            self._courier.fail(exchange, truth.outcome_unknown(exchange, refusal.reason))

    def _probe(self, exchange: Exchange, refusal: Refusal) -> None:
        """Does 400 mean this message, or the session? A ping, which cannot be wrong, tells."""
        identity = self._courier.own_id()
        self._probing[identity] = exchange, refusal
        exchange.rejected = True
        exchange.delivery = Delivery.NOT_SENT
        if self._route.link is not None:
            ping = jsonrpc.request(identity, revisions.PING)
            headers = self._route.headers
            self._route.link.send(Outgoing(ping, headers, revisions.PING, barrier=False, own_id=identity))
