"""One client's session: it feeds the machines of this package and performs what they decide.

It is the only place that knows both sides. Towards the client it has at most one stream and an event log; towards
the backend at most one link. Both come and go; the session stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mcp_proxy.session.eventlog import EventLog
from mcp_proxy.session.exchanges import MAX_IN_FLIGHT, BackendRequest, Delivery, Exchange, Exchanges, Full
from mcp_proxy.session.handshake import HandshakeFailed, Memory, Replay, Step
from mcp_proxy.session.interfaces import (
    Challenge,
    IBackend,
    IClientStream,
    ILink,
    Loss,
    Outgoing,
    Refusal,
)
from mcp_proxy.session.lifecycle import Phase, machine
from mcp_proxy.wire import jsonrpc, revisions, sse
from mcp_proxy.wire.errors import (
    BackendRefused,
    NotDelivered,
    NotJSONRPC,
    NotRestorable,
    OutcomeUnknown,
    Overloaded,
    ProxyError,
    UnknownSession,
)
from mcp_proxy.wire.headers import Headers, end_to_end, standing
from mcp_proxy.wire.jsonrpc import Kind, Message

#: What the event log of a session may keep.
MAX_LOGGED_EVENTS = 256
MAX_LOGGED_BYTES = 1024 * 1024
#: A held request with a progress token hears of it after this many seconds, and then again and again.
FIRST_BEAT, NEXT_BEAT = 5.0, 10.0
#: The namespace of our own request ids.
OWN_PREFIX = b'"mcp-proxy/'
#: What a session that the backend keeps refusing waits for at most, in seconds, before it tries again.
MAX_REFUSAL_DELAY = 30.0


@frozen
class Policy:
    """What the operator decided. Times in seconds.

    ``max_attempts`` 0 is no limit. ``linger`` is how long the link outlives the client's stream.
    """

    hold_timeout: float = 45.0
    max_held: int = 100
    max_held_bytes: int = 8 * 1024 * 1024
    max_attempts: int = 10
    reconnect_delay: float = 2.0
    handshake_timeout: float = 10.0
    linger: float = 5.0
    retry_annotated_tools: bool = False
    jitter: Callable[[float], float] = lambda delay: delay


class Session:
    """One client session. Callers: ``registry``, the fronts (client side), links (backend side).

    :param token: the session's id, known to its client.
    :param owner: digest of the credential that it belongs to.
    :param headers: the end-to-end headers of the client's first request.
    :param forget: called once, when the session is over.
    :param remember: called when the client has initialized.
    :param recall: finds what another stream of the same client initialized with.
    """

    log = Logger()

    def __init__(
        self,
        token: str,
        owner: bytes,
        headers: Headers,
        *,
        backend: IBackend,
        clock: IReactorTime,
        policy: Policy,
        forget: Callable[[Session], None],
        remember: Callable[[Session], None],
        recall: Callable[[Session], Memory | None],
    ) -> None:
        self.id = token
        self.owner = owner
        self.headers = standing(end_to_end(headers))
        self.label = hashlib.sha256(token.encode()).hexdigest()[:8]
        self.memory = Memory()
        self.phase = Phase.DORMANT
        self.generation = 0
        self.idle_since: float | None = clock.seconds()
        self.challenge: Challenge | None = None
        self._backend = backend
        self._clock = clock
        self._policy = policy
        self._forget, self._remember, self._recall = forget, remember, recall
        self._log = EventLog(MAX_LOGGED_EVENTS, MAX_LOGGED_BYTES)
        self._exchanges = Exchanges(policy.max_held, policy.max_held_bytes)
        self._backend_requests: dict[bytes, BackendRequest] = {}
        self._stream: IClientStream | None = None
        self._link: ILink | None = None
        self._replay: Replay | None = None
        self._probing: dict[bytes, Exchange] = {}
        self._told_initialized = False
        self._count = 0
        self._loss: Loss | None = None
        self._live_since: float | None = None
        self._refusals = 0
        self._timers: dict[str, IDelayedCall] = {}
        self._verdicts: list[Deferred[Challenge | None]] = []
        self._lifecycle = machine(self)

    # -- the client's side -------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a client is connected."""
        return self._stream is not None

    @property
    def last_event(self) -> int:
        """The number of the newest event."""
        return self._log.last

    def first_verdict(self) -> Deferred[Challenge | None]:
        """Start connecting; fires when it is known whether the backend would have this client.

        With a challenge if it would not; with None if it would, or if it cannot be reached now.
        """
        verdict: Deferred[Challenge | None] = Deferred()
        self._verdicts.append(verdict)
        self._lifecycle.wake()
        if self._backend.outage:
            self._judge(None)
        return verdict

    def attach(self, stream: IClientStream, since: int) -> None:
        """The client listens on this stream from now on; it has seen the events up to number ``since``."""
        superseded, self._stream = self._stream, stream
        if superseded is not None:
            superseded.close()
        self.idle_since = None
        self._cancel("linger")
        for number, event in self._log.since(since):
            stream.write(self._encoded(number, event))
        self._lifecycle.wake()

    def detach(self, stream: IClientStream) -> None:
        """The client has left this stream."""
        if stream is not self._stream:
            return
        self._stream = None
        self.idle_since = self._clock.seconds()
        if self._link is not None:
            self._link.resume()
        self.log.info(
            "client disconnected, its session is kept", session=self.label, generation=self.generation
        )
        self._await_client()

    def stream_paused(self) -> None:
        """The client is slow: stop its backend stream, and nobody else's."""
        if self._link is not None:
            self._link.pause()

    def stream_resumed(self) -> None:
        """The client reads again."""
        if self._link is not None:
            self._link.resume()

    def receive(self, message: Message, headers: Headers) -> None:
        """The client sent a message with these headers; whatever comes of it comes on its stream.

        :raises UnknownSession: the session is over.
        :raises NotJSONRPC: a request under the id of another one that is not answered yet.
        """
        if self.phase is Phase.CLOSED:
            raise UnknownSession()
        headers = end_to_end(headers)
        self.headers = standing(headers)
        if self._stream is None:
            self.idle_since = self._clock.seconds()
            self._await_client()
        if message.kind is Kind.RESPONSE:
            self._answer_backend(message, headers)
        elif message.kind is Kind.NOTIFICATION:
            self._notify_backend(message, headers)
        else:
            self._ask_backend(message, headers)

    def take_challenge(self) -> Challenge | None:
        """A refusal of the backend's that the client has not seen yet; it is shown once."""
        challenge, self.challenge = self.challenge, None
        return challenge

    def close(self) -> None:
        """The session is over for good: whoever waits is answered, everything is freed."""
        self._lifecycle.close()

    # -- messages from the client ------------------------------------------------------------------------------

    def _ask_backend(self, message: Message, headers: Headers) -> None:
        now = self._clock.seconds()
        known = self._exchanges.find(message.id or b"")
        if known is not None:
            if known.fingerprint == hash(message.raw):
                return  # the client did not hear our 202; the request is on its way
            raise NotJSONRPC("Another request with this id is not answered yet. Use a new id.")
        exchange = Exchange(message, headers, arrived=now, backend_id=self._id_for_backend(message))
        if message.method == revisions.PING and self.phase is not Phase.LIVE:
            self._emit(jsonrpc.result(message.id or b"", {}))
        elif not self._is_initialized(message) and not self._borrow_handshake():
            self._fail(
                exchange,
                NotRestorable(
                    "This stream has not been initialized, and nothing is known of an earlier one with the same "
                    "credential. The request was not delivered. Send initialize first, or reconnect the server "
                    "in your client (toggle it off and on)."
                ),
            )
        elif self.phase is Phase.LIVE:
            self._send_exchange(exchange)
        elif self._is_hopeless() and message.method != revisions.INITIALIZE:
            self._fail(exchange, self._not_delivered())
        else:
            self._hold(exchange)
            self._lifecycle.wake()

    def _is_hopeless(self) -> bool:
        """Whether the backend has been away for longer than anybody should wait."""
        return self.phase in (Phase.PARKED, Phase.DOWN) and self._backend.spent

    def _is_initialized(self, message: Message) -> bool:
        """Whether the backend may see this message: after, or in, a handshake."""
        if self.memory.initialize or message.method in (revisions.INITIALIZE, revisions.PING):
            return True
        return any(exchange.message.method == revisions.INITIALIZE for exchange in self._exchanges)

    def _borrow_handshake(self) -> bool:
        """A client that came back without initialize: start from what it said the last time."""
        memory = self._recall(self)
        if memory is None:
            return False
        self.memory = memory
        self.log.info("client did not initialize; its last handshake is used", session=self.label)
        self._lifecycle.known()
        return True

    def _id_for_backend(self, message: Message) -> bytes:
        """The client's own id, unless it would not come back unharmed or could be taken for one of ours."""
        identity = message.id or b""
        if message.kind is Kind.REQUEST and (jsonrpc.is_fragile(identity) or identity.startswith(OWN_PREFIX)):
            return self._own_id()
        return identity

    def _own_id(self) -> bytes:
        self._count += 1
        return OWN_PREFIX + b'%d"' % self._count

    def _notify_backend(self, message: Message, headers: Headers) -> None:
        if message.method == revisions.CANCELLED:
            self._cancel_exchange(message, headers)
            return
        if message.method == revisions.INITIALIZED:
            self.memory.initialized = True
            if self.phase is Phase.LIVE:
                self._tell_initialized()
            return
        exchange = Exchange(message, headers, arrived=self._clock.seconds())
        if self.phase is Phase.LIVE:
            self._send_exchange(exchange)
        elif message.method != revisions.PROGRESS:  # progress is about a request that died with its link
            self._hold(exchange)

    def _cancel_exchange(self, message: Message, headers: Headers) -> None:
        identity = jsonrpc.cancelled_id(message)
        exchange = None if identity is None else self._exchanges.find(identity)
        if exchange is None:
            return
        if exchange in self._exchanges.held:
            self._exchanges.drop(exchange)
            return
        exchange.cancelled = True
        if self.phase in (Phase.LIVE, Phase.DRAINING) and self._link is not None:
            raw = message.raw
            if exchange.backend_id != identity:
                raw = jsonrpc.with_cancelled_id(raw, exchange.backend_id)
            self._link.send(Outgoing(raw, headers))

    def _answer_backend(self, message: Message, headers: Headers) -> None:
        request = self._backend_requests.pop(message.id or b"", None)
        if request is None or self._link is None:
            self.log.debug("answer to a request of an earlier backend dropped", session=self.label)
            return
        self._link.send(Outgoing(jsonrpc.with_id(message.raw, request.backend_id), headers))

    # -- towards the backend -----------------------------------------------------------------------------------

    def _send_exchange(self, exchange: Exchange) -> None:
        message = exchange.message
        if self._link is None:
            return
        if exchange.is_request:
            try:
                self._exchanges.dispatch(exchange)
            except Full:
                self._fail(exchange, Overloaded("Too many requests are in flight; this one was not delivered."))
                return
        raw = message.raw
        if exchange.backend_id and exchange.backend_id != message.id:
            raw = jsonrpc.with_id(raw, exchange.backend_id)
        self._link.send(
            Outgoing(
                raw,
                exchange.headers,
                exchange,
                repeatable=exchange.is_request and revisions.is_safe(message),
                barrier=not exchange.is_request,
            )
        )

    def _tell_initialized(self) -> None:
        if not self._told_initialized and self._link is not None:
            self._told_initialized = True
            self._link.send(Outgoing(jsonrpc.notification(revisions.INITIALIZED), self.headers))

    def _send_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if self._link is not None:
                self._link.send(Outgoing(step.raw, self.headers, repeatable=not step.barrier, barrier=step.barrier))

    def _hold(self, exchange: Exchange) -> None:
        now = self._clock.seconds()
        try:
            self._exchanges.hold(exchange, now + self._policy.hold_timeout)
        except Full:
            if exchange.is_request:
                self._fail(exchange, Overloaded())
            return
        exchange.beat = now + FIRST_BEAT
        self._arm()

    def _is_repeatable(self, message: Message) -> bool:
        """Whether a request whose outcome is unknown may be sent again."""
        if revisions.is_safe(message):
            return True
        if message.method == revisions.CALL_TOOL and self._policy.retry_annotated_tools:
            return self.memory.tools.get(str(message.params().get("name")), False)
        return False

    # -- what the link tells -----------------------------------------------------------------------------------

    def link_opened(self, link: ILink) -> None:
        """The link is open."""
        if link is not self._link:
            return
        self.log.info("connected to backend", session=self.label, generation=self.generation)
        self._judge(None)
        if self._stream is not None and self._stream.paused:
            link.pause()
        if self.memory.initialize:
            self._lifecycle.opened_known()
        else:
            self._lifecycle.opened_new()

    def link_received(self, link: ILink, message: Message) -> None:
        """A message of the backend's: it goes to the client, unless it is about something of ours."""
        if link is not self._link:
            return
        if message.kind is Kind.RESPONSE:
            self._answered(message)
        elif message.kind is Kind.REQUEST:
            self._asked(message)
        elif message.method == revisions.CANCELLED:
            self._backend_cancelled(message)
        else:
            self._emit(message.raw)

    def link_oversized(self, link: ILink, event: sse.Oversized) -> None:
        """An event over the bound: whoever waits for it is told; the rest of the stream is unharmed."""
        if link is not self._link:
            return
        exchange = self._exchanges.answered(jsonrpc.answered_id(event.head, event.tail))
        if exchange is None:
            self.log.warn("event of {size} bytes dropped: over MAX_EVENT_BYTES", size=event.size, session=self.label)
            return
        exchange.delivery = Delivery.ACCEPTED
        self._fail(
            exchange,
            OutcomeUnknown(
                f"The backend carried out the request, but its answer of {event.size} bytes is over the proxy's "
                "limit (MAX_EVENT_BYTES) and was dropped. Do not repeat it if it changes anything."
            ),
        )
        self._after_answer()

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """A message is being handed to the network."""
        if outgoing.exchange is not None:
            outgoing.exchange.delivery = Delivery.SENT

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """The backend took a message."""
        exchange = outgoing.exchange
        if exchange is not None:
            exchange.delivery = Delivery.ACCEPTED
        probed = self._probing.pop(outgoing.own_id, None)
        if probed is not None and self._exchanges.answered(probed.backend_id) is probed:
            # the backend knows the session, so its 400 was meant for that very message
            self._fail(probed, BackendRefused("The backend refused the message with HTTP status 400.", status=400))

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """A message was not taken, or nobody knows."""
        if link is not self._link:
            return
        exchange = outgoing.exchange
        self.log.debug(
            "backend did not take a message: {reason}", reason=refusal.reason, session=self.label,
            method=exchange.message.method if exchange else "",
        )  # fmt: skip
        if refusal.status in (404, 410) or outgoing.own_id in self._probing:
            if exchange is not None:
                self._rejected(exchange)
            self._lost(f"backend does not know the session any more ({refusal.reason})")
        elif exchange is None and self._replay is not None:
            self._lost(refusal.reason, refusal.challenge)
        elif exchange is None or not exchange.is_request:
            pass  # nobody waits for more
        elif refusal.challenge is not None:
            self._exchanges.drop(exchange)
            exchange.delivery = Delivery.NOT_SENT
            self.challenge = refusal.challenge
            self._fail(exchange, _refused(refusal))
        elif refusal.status == 0 or refusal.status >= 502:
            self._undelivered(exchange, refusal)
        elif refusal.status == 400 and self.memory.initialize and not exchange.rejected:
            self._probe(exchange)
        else:
            self._exchanges.drop(exchange)
            if refusal.status < 500:
                exchange.delivery = Delivery.NOT_SENT
            self._fail(exchange, _refused(refusal))

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """There is no link any more, or none yet."""
        if link is not self._link:
            return
        self._loss = loss
        if self._live_since is not None:
            self.log.info(
                "backend stream ended: {reason}", reason=loss.reason, session=self.label, generation=self.generation
            )
            self._backend.lost(loss)
        else:
            self.log.debug("no link: {reason}", reason=loss.reason, session=self.label, generation=self.generation)
            self._backend.failed(self, loss)
            if loss.challenge is not None:
                self.challenge = None if self._verdicts else loss.challenge
            self._judge(loss.challenge)
        self._lifecycle.lost()

    # -- messages from the backend -----------------------------------------------------------------------------

    def _answered(self, message: Message) -> None:
        if self._replay is not None and self._replay.is_own(message.id):
            self._continue_replay(message)
            return
        exchange = self._exchanges.answered(message.id)
        if exchange is None:
            self.log.debug("answer that nobody waits for dropped", session=self.label)
            return
        if exchange.cancelled and message.is_error:
            self._after_answer()
            return
        raw = self.memory.answered(exchange.message, message)
        if exchange.backend_id != exchange.message.id:
            raw = jsonrpc.with_id(raw, exchange.message.id or b"null")
        if exchange.message.method == revisions.INITIALIZE and not message.is_error:
            self._remember(self)
        self._emit(raw)
        self._after_answer()

    def _after_answer(self) -> None:
        if self.phase is Phase.DRAINING:
            self.drain_if_idle()

    def _asked(self, message: Message) -> None:
        """A request of the backend's gets an id of ours: a restarted backend counts from the start again."""
        if message.method == revisions.PING and self._stream is None:
            if self._link is not None:
                self._link.send(Outgoing(jsonrpc.result(message.id or b"", {}), self.headers))
            return
        if len(self._backend_requests) >= MAX_IN_FLIGHT:
            self.log.warn("backend request dropped: too many are unanswered", session=self.label)
            return
        identity = b'"%d.%d"' % (self.generation, self._count)
        self._count += 1
        self._backend_requests[identity] = BackendRequest(message.id or b"", message.method)
        self._emit(jsonrpc.with_id(message.raw, identity))

    def _backend_cancelled(self, message: Message) -> None:
        cancelled = jsonrpc.cancelled_id(message)
        for identity, request in list(self._backend_requests.items()):
            if request.backend_id == cancelled:
                del self._backend_requests[identity]
                self._emit(jsonrpc.with_cancelled_id(message.raw, identity))

    # -- trouble with one message ------------------------------------------------------------------------------

    def _rejected(self, exchange: Exchange) -> None:
        """Refused before it was looked at: it may be sent once more, whatever it is."""
        if not exchange.rejected:
            exchange.rejected = True
            exchange.delivery = Delivery.NOT_SENT
            return
        self._exchanges.drop(exchange)
        self._fail(exchange, BackendRefused("The backend refused the request twice as unknown to it."))

    def _undelivered(self, exchange: Exchange, refusal: Refusal) -> None:
        """No answer to the POST, or a gateway's: how far it got is in ``exchange.delivery``."""
        self._exchanges.drop(exchange)
        now = self._clock.seconds()
        if exchange.delivery is Delivery.NOT_SENT:
            # nobody listens although the stream lives: the backend is about to go
            self._hold(exchange)
            self._lost(refusal.reason)
        elif self._is_repeatable(exchange.message) and exchange.resends == 0:
            exchange.resends += 1
            exchange.not_before = now + self._policy.jitter(self._policy.reconnect_delay) / 4
            self._hold(exchange)
        else:
            self._fail(exchange, self._outcome_unknown(exchange, refusal.reason))

    def _probe(self, exchange: Exchange) -> None:
        """Does 400 mean this message, or the session? A ping, which cannot be wrong, tells."""
        identity = self._own_id()
        self._probing[identity] = exchange
        exchange.rejected = True
        exchange.delivery = Delivery.NOT_SENT
        if self._link is not None:
            ping = jsonrpc.request(identity, revisions.PING)
            self._link.send(Outgoing(ping, self.headers, barrier=False, own_id=identity))

    def _lost(self, reason: str, challenge: Challenge | None = None) -> None:
        """We have found out by ourselves that the link is of no use."""
        link = self._link
        if link is not None:
            self.link_lost(link, Loss(reason, reachable=self._live_since is None, challenge=challenge))

    # -- towards the client ------------------------------------------------------------------------------------

    def _emit(self, raw: bytes) -> None:
        number = self._log.append(raw)
        if self._stream is not None:
            self._stream.write(self._encoded(number, raw))

    def _encoded(self, number: int, raw: bytes) -> bytes:
        return sse.encode(raw, identity=f"{self.id}.{number}".encode())

    def _fail(self, exchange: Exchange, error: ProxyError) -> None:
        """Answer a request with an error that tells the truth."""
        if not exchange.is_request or exchange.cancelled:
            return
        safe = exchange.delivery is Delivery.NOT_SENT or revisions.is_safe(exchange.message)
        data: dict[str, Any] = {
            "source": "proxy",
            "delivered": exchange.delivery.value,
            "retrySafe": safe,
            "retryAfterMs": int(self._policy.reconnect_delay * 1000),
            "method": exchange.message.method,
            "outageMs": int(self._backend.outage * 1000),
            **error.data,
        }
        self.log.warn(
            "request answered by the proxy: {error}",
            error=type(error).__name__,
            session=self.label,
            generation=self.generation,
            method=exchange.message.method,
            delivery=exchange.delivery.value,
            outage_ms=data["outageMs"],
        )
        self._emit(jsonrpc.error(exchange.message.id, error.answer.code, error.message, data))

    def _not_delivered(self) -> NotDelivered:
        why = self._loss.reason if self._loss is not None else "it has not been reached yet"
        seconds = self._backend.outage
        since = f" for {seconds:.0f} s" if seconds >= 1 else ""
        return NotDelivered(
            f"Backend unavailable{since} ({why}). The request was not delivered, so it is safe to send it again "
            "when the backend is back; the proxy reconnects by itself."
        )

    def _outcome_unknown(self, exchange: Exchange, why: str) -> OutcomeUnknown:
        took = "had accepted" if exchange.delivery is Delivery.ACCEPTED else "may have received"
        advice = (
            "It is safe to repeat."
            if revisions.is_safe(exchange.message)
            else "Check whether it took effect before you repeat it."
        )
        return OutcomeUnknown(
            f"The backend {took} the request and was lost before it answered ({why}). Whether it was carried out "
            f"is unknown. {advice}"
        )

    # -- timers ------------------------------------------------------------------------------------------------

    def _await_client(self) -> None:
        """No client: keep the link a little for one that is only reconnecting, longer if it awaits answers."""
        if self.phase is not Phase.CLOSED:
            self._schedule("linger", self._policy.linger, self._linger_over, self._policy.hold_timeout)

    def _linger_over(self, patience: float) -> None:
        if self._exchanges.in_flight and patience > 0:
            wait = min(self._policy.linger, patience)
            self._schedule("linger", wait, self._linger_over, patience - wait)
            return
        self._lifecycle.client_gone()
        if not self.memory.initialize:
            self.close()  # there is nothing in it that a client could come back for

    def _arm(self) -> None:
        """One timer for all that is held."""
        held = self._exchanges.held
        if not held:
            self._cancel("hold")
            return
        now = self._clock.seconds()
        due = min(min(exchange.deadline, exchange.beat, _later(exchange.not_before, now)) for exchange in held)
        self._schedule("hold", max(0.0, due - now), self._hold_due)

    def _hold_due(self) -> None:
        now = self._clock.seconds()
        for exchange in self._exchanges.expired(now):
            self._give_up_on(exchange)
        for exchange in self._exchanges.held:
            if exchange.beat <= now:
                exchange.beat = now + NEXT_BEAT
                self._beat(exchange)
        if self.phase is Phase.LIVE:
            self._send_held(now)
        self._arm()

    def _beat(self, exchange: Exchange) -> None:
        """A held request that gave a progress token hears that it is not forgotten."""
        meta = exchange.message.params().get("_meta") if exchange.is_request else None
        token = meta.get("progressToken") if isinstance(meta, dict) else None
        if token is None:
            return
        exchange.beats += 1
        # far below what the backend will report, for progress must only ever grow
        progress = {
            "progressToken": token,
            "progress": exchange.beats / 1_000_000,
            "message": "the backend is away; the request is held until it is back",
        }
        self._emit(jsonrpc.notification(revisions.PROGRESS, progress))

    def _give_up_on(self, exchange: Exchange) -> None:
        if exchange.delivery is Delivery.NOT_SENT:
            self._fail(exchange, self._not_delivered())
        else:
            self._fail(exchange, self._outcome_unknown(exchange, "it did not come back in time"))

    def _schedule(self, name: str, delay: float, function: Callable[..., None], *args: Any) -> None:
        self._cancel(name)
        self._timers[name] = self._clock.callLater(delay, self._fire, name, function, *args)

    def _fire(self, name: str, function: Callable[..., None], *args: Any) -> None:
        del self._timers[name]
        function(*args)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _judge(self, challenge: Challenge | None) -> None:
        verdicts, self._verdicts = self._verdicts, []
        for verdict in verdicts:
            verdict.callback(challenge)

    # -- what the backend's view tells -------------------------------------------------------------------------

    def backend_turn(self) -> None:
        """It is our turn to connect."""
        self._lifecycle.turn()

    def backend_gave_up(self) -> None:
        """Nothing will be delivered soon."""
        self._judge(None)
        self._lifecycle.give_up()

    def backend_ending(self) -> None:
        """The backend waits for our stream to end before it can restart."""
        self._lifecycle.ending()

    def backend_not_ending(self) -> None:
        """It does not."""
        self._lifecycle.not_ending()

    # -- effects of the lifecycle ------------------------------------------------------------------------------

    def entered(self, phase: Phase) -> None:
        """The machine has moved."""
        self.phase = phase
        if phase is not Phase.HANDSHAKING:
            self._cancel("handshake")

    def seek(self) -> None:
        """Ask for a turn: at once, or after a while if links to this backend lead to nothing for this session."""
        loss, lived = self._loss, self._lived()
        was_live, self._live_since = self._live_since is not None, None
        if lived >= self._policy.reconnect_delay:
            self._refusals = 0
        if loss is None or not (loss.reachable or was_live):
            self._backend.seek(self)
            return
        self._refusals += 1
        if was_live and self._refusals == 1:
            self._backend.seek(self)
            return
        if loss.challenge is not None or self._is_spent():
            self._lifecycle.give_up()
        if loss.challenge is None:  # waiting does not change a credential
            delay = self._policy.reconnect_delay * max(1, self._refusals - self._policy.max_attempts)
            self._schedule("refused", self._policy.jitter(min(delay, MAX_REFUSAL_DELAY)), self._backend.seek, self)

    def seek_anew(self) -> None:
        """Somebody asks again: whatever spoke against another try is forgotten for once."""
        self._loss = None
        self._cancel("refused")
        self._backend.seek(self)

    def _lived(self) -> float:
        return 0.0 if self._live_since is None else self._clock.seconds() - self._live_since

    def _is_spent(self) -> bool:
        return 0 < self._policy.max_attempts <= self._refusals

    def withdraw(self) -> None:
        """Ask for no turn any more."""
        self._cancel("refused")
        self._backend.withdraw(self)

    def open_link(self) -> None:
        """The next generation begins."""
        self._cancel("refused")
        self.generation += 1
        self._told_initialized = False
        self._link = self._backend.make_link(self, self.headers)
        self._link.open()

    def close_link(self) -> None:
        """End the link; nothing is heard of it any more."""
        link, self._link = self._link, None
        self._replay = None
        if link is not None:
            link.close()

    def restore(self) -> None:
        """Teach the new link what the session is."""
        self._replay = Replay(self.memory, self._own_id)
        self._schedule("handshake", self._policy.handshake_timeout, self._handshake_timed_out)
        self._send_steps(self._replay.begin())

    def _continue_replay(self, message: Message) -> None:
        replay = self._replay
        if replay is None:
            return
        try:
            steps = replay.answer(message)
        except HandshakeFailed as failure:
            self._lost(str(failure))
            return
        self._told_initialized = self._told_initialized or any(step.barrier for step in steps)
        self._send_steps(steps)
        if replay.done:
            self._restored(replay)

    def _handshake_timed_out(self) -> None:
        if self._replay is not None and self._told_initialized:
            self._restored(self._replay)  # it is restored but for a list that the backend does not give
        else:
            self._lost("the backend did not answer initialize in time")

    def _restored(self, replay: Replay) -> None:
        self._replay = None
        for dropped in replay.dropped:
            self.log.warn("backend refused to restore {what}", what=dropped, session=self.label)
        self.log.info("session restored", session=self.label, generation=self.generation)
        for method in replay.changed:
            self._emit(jsonrpc.notification(method))
        for uri in self.memory.subscriptions:
            self._emit(jsonrpc.notification(revisions.RESOURCE_UPDATED, {"uri": uri}))
        self._lifecycle.restored()

    def release(self) -> None:
        """The link is live: what was held goes, in the order in which it came."""
        self._live_since = self._clock.seconds()
        self._loss = None
        self._backend.succeeded(self)
        if self.memory.initialized:
            self._tell_initialized()
        self._send_held(self._clock.seconds())
        self._arm()

    def _send_held(self, now: float) -> None:
        for exchange in self._exchanges.ready(now):
            self._send_exchange(exchange)

    def settle(self) -> None:
        """The link is gone: every message that was on it gets its fate."""
        now = self._clock.seconds()
        self._probing.clear()
        requests, self._backend_requests = self._backend_requests, {}
        for identity in requests:
            self._emit(
                jsonrpc.notification(
                    revisions.CANCELLED,
                    {"requestId": _plain(identity), "reason": "the backend that asked has gone"},
                )
            )
        reason = self._loss.reason if self._loss is not None else "the link was closed"
        for exchange in self._exchanges.lose(self._is_repeatable, now + self._policy.hold_timeout):
            self._fail(exchange, self._outcome_unknown(exchange, reason))
        for exchange in self._exchanges.held:
            exchange.beat = exchange.beat or now + FIRST_BEAT
        self._arm()

    def drain_if_idle(self) -> None:
        """Nothing is awaited: let the backend go."""
        if not self._exchanges.in_flight:
            self._lifecycle.drained()

    def answer_held(self) -> None:
        """The budget is spent. An initialize is still held for its own time: a client gives up on an error there."""
        for exchange in self._exchanges.take_held(_is_initialize):
            self._give_up_on(exchange)
        self._arm()

    def dispose(self) -> None:
        """The end."""
        for exchange in self._exchanges.take_held(lambda exchange: False):
            self._give_up_on(exchange)
        self._judge(None)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        for name in list(self._timers):
            self._cancel(name)
        self._forget(self)


def _is_initialize(exchange: Exchange) -> bool:
    return exchange.message.method == revisions.INITIALIZE


def _refused(refusal: Refusal) -> BackendRefused:
    return BackendRefused(
        f"The backend refused the message with HTTP status {refusal.status}.", status=refusal.status
    )


def _later(moment: float, now: float) -> float:
    """A moment to wait for; one that is past is none."""
    return moment if moment > now else float("inf")


def _plain(identity: bytes) -> str:
    return identity.decode().strip('"')
