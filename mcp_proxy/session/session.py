"""One client's session.

Towards the client it has an outlet, towards the backend an uplink, and between them a courier. Streams and links come
and go; the session stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.session import truth
from mcp_proxy.session.courier import Courier
from mcp_proxy.session.credentials import Credentials
from mcp_proxy.session.handshake import Memory
from mcp_proxy.session.interfaces import HTTPAnswer, IBackend, IClientStream, ILink, IOutlet
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.meter import NO_METER, Meter
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.uplink import Uplink
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import UnknownSession
from mcp_proxy.wire.headers import Headers, end_to_end
from mcp_proxy.wire.jsonrpc import Kind, Message

log = Logger()


class Session:
    """One client session. Callers: the registry, the fronts (client side), links and the backend's view.

    :param token: the session's id, known to its client.
    :param owner: digest of the credential that it belongs to.
    :param headers: the headers of the client's first request.
    :param outlet: where messages for the client go.
    :param forget: called once, when the session is over.
    :param remember: called when the client has initialized.
    :param recall: finds what another stream of the same client initialized with.
    :param meter: counts what happens.
    """

    __slots__ = (
        "_clock",
        "_courier",
        "_forget",
        "_is_draining",
        "_last_seen",
        "_meter",
        "_policy",
        "_recall",
        "_remember",
        "_timers",
        "_verdicts",
        "credentials",
        "ending",
        "id",
        "label",
        "memory",
        "outlet",
        "uplink",
    )

    def __init__(
        self,
        token: str,
        owner: bytes,
        headers: Headers,
        outlet: IOutlet,
        *,
        backend: IBackend,
        clock: IReactorTime,
        policy: Policy,
        forget: Callable[[Session], None],
        remember: Callable[[Session], None],
        recall: Callable[[Session], Memory | None],
        meter: Meter = NO_METER,
    ) -> None:
        self.id = token
        self.credentials = Credentials(owner, headers)
        self.label = hashlib.sha256(token.encode()).hexdigest()[:8]
        self.memory = Memory()
        self.outlet = outlet
        self.ending = ""
        self._last_seen = clock.seconds()
        self._clock = clock
        self._policy = policy
        self._meter = meter
        self._forget, self._remember, self._recall = forget, remember, recall
        self._timers = Timers(clock)
        self._courier = Courier(self, clock, policy, meter)
        self._is_draining = False
        self._verdicts: tuple[Deferred[HTTPAnswer | None], ...] = ()
        self.uplink = Uplink(self, self._courier, backend, clock, policy, meter)

    # -- what others may know ----------------------------------------------------------------------------------

    @property
    def owner(self) -> bytes:
        """Digest of the credential that it belongs to."""
        return self.credentials.owner

    @property
    def headers(self) -> Headers:
        """The standing headers of its client."""
        return self.credentials.headers

    @property
    def attached(self) -> bool:
        """Whether a client is connected."""
        return self.outlet.attached

    @property
    def idle_since(self) -> float | None:
        """When its client was last heard of; None while it is connected."""
        return None if self.outlet.attached else self._last_seen

    @property
    def held(self) -> int:
        """How many messages of the client's wait for a link."""
        return self._courier.held

    @property
    def in_flight(self) -> int:
        """How many requests of the client's wait for the backend's answer."""
        return self._courier.in_flight

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self.uplink.phase

    @property
    def generation(self) -> int:
        """The number of its link."""
        return self.uplink.generation

    @property
    def link(self) -> ILink | None:
        """Its link, if there is one."""
        return self.uplink.link

    @property
    def outage(self) -> float:
        """For how many seconds the backend has been away."""
        return self.uplink.outage

    @property
    def trouble(self) -> str:
        """Why there is no link, in words."""
        return self.uplink.trouble

    # -- the client's side -------------------------------------------------------------------------------------

    def first_verdict(self) -> Deferred[HTTPAnswer | None]:
        """Start connecting; fires when it is known whether the backend would have this client.

        With a challenge if it would not; with None if it would, or if it cannot be reached now.
        """
        verdict: Deferred[HTTPAnswer | None] = Deferred()
        self._verdicts += (verdict,)
        self.uplink.lifecycle.wake()
        if self.outage:
            self.judged(None)
        return verdict

    def attach(self, stream: IClientStream, since: int | None) -> None:
        """The client listens on this stream from now on.

        :param since: the number of the last event that it has seen; None if it does not say.
        """
        self._timers.cancel("linger")
        self.replayed(self.outlet.attach(stream, since))
        if self.link is not None and not stream.paused:
            self.link.resume(None)
        self.uplink.lifecycle.wake()

    def detach(self, stream: IClientStream) -> None:
        """The client has left this stream."""
        if not self.outlet.detach(stream):
            return
        if self.link is not None:
            self.link.resume(None)
        log.info("client disconnected", session=self.label, generation=self.generation)
        self._await_client()

    def replayed(self, events: int) -> None:
        """The client was sent events that it had missed."""
        if events:
            self._meter.replayed(events)

    def stream_paused(self, source: object = None) -> None:
        """The client is slow: stop what feeds this stream, and nobody else's."""
        self._meter.stalled()
        if self.link is not None:
            self.link.pause(source)

    def stream_resumed(self, source: object = None) -> None:
        """The client reads again."""
        if self.link is not None:
            self.link.resume(source)

    def reply_over(self) -> None:
        """The client has got its reply, or has left it."""
        self._last_seen = self._clock.seconds()

    def receive(self, message: Message, headers: Headers, reply: object = None) -> None:
        """The client sent a message with these headers; whatever comes of it goes to the outlet.

        :param reply: where the answer to it goes, if it has a place of its own.
        :raises UnknownSession: the session is over.
        :raises NotJSONRPC: a request under the id of another one that is not answered yet.
        """
        if self.uplink.phase is Phase.CLOSED:
            raise UnknownSession()
        headers = end_to_end(headers)
        self.credentials.seen(headers)
        if reply is None and not self.attached:
            self._await_client()
        if message.kind is Kind.REQUEST:
            self._ask(message, headers, reply)
        elif message.kind is Kind.RESPONSE:
            self._courier.take_answer(message, headers)
        elif message.method == revisions.CANCELLED:
            self._courier.take_cancellation(message, headers)
        elif message.method == revisions.INITIALIZED:
            self.memory.initialized = True
            self.uplink.tell_initialized()
        else:
            self._courier.take_notification(message, headers)

    def drain(self) -> None:
        """The proxy stops: nothing waits for a backend that is away, but what can be answered now still is."""
        self._is_draining = True
        self._courier.refuse_held(truth.stopping())

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer that may still come."""
        return not self._courier.is_awaited

    def farewell(self) -> None:
        """The proxy stops, and nothing keeps the client any more: it may come back to the next one."""
        self.outlet.say_retry()
        self.close(truth.STOPPED)

    def cancel(self) -> None:
        """Nobody waits for an answer any more, and nobody will come back."""
        self._courier.cancel_all()
        self.close()

    def close(self, why: str = truth.ENDED) -> None:
        """The session is over for good: whoever waits is answered, everything is freed.

        :param why: what they are told, as the beginning of a sentence.
        """
        self.ending = self.ending or why
        self.uplink.lifecycle.close()

    def _ask(self, message: Message, headers: Headers, reply: object) -> None:
        exchange = self._courier.take_request(message, headers, reply)
        if exchange is None:
            return
        if self.uplink.phase is Phase.LIVE and self.memory.initialize:
            self._courier.send(exchange)
        elif message.method == revisions.PING and self.phase is not Phase.LIVE and self.outlet.needs_handshake:
            self._meter.answered_here(exchange)
            self.outlet.answer(exchange, jsonrpc.result(message.id or b"", {}))
        elif not self._is_initialized(message) and not self._borrow_handshake():
            self._courier.fail(exchange, truth.never_initialized())
        elif self.phase is Phase.LIVE:
            self._courier.send(exchange)
        elif self.uplink.is_hopeless and not (self.outlet.patient and message.method == revisions.INITIALIZE):
            self._courier.fail(exchange, truth.not_delivered(self.outage, self.trouble))
        elif self._is_draining:
            self._courier.fail(exchange, truth.stopping())
        else:
            self._courier.hold(exchange)
            self.uplink.lifecycle.wake()

    def _is_initialized(self, message: Message) -> bool:
        """Whether the backend may see this message: in a handshake, or after one."""
        if not self.outlet.needs_handshake:
            return True
        is_early = message.method in (revisions.INITIALIZE, revisions.PING)
        return is_early or bool(self.memory.initialize) or self._courier.awaits_initialize()

    def _borrow_handshake(self) -> bool:
        """A client that came back without initialize: start from what it said the last time."""
        memory = self._recall(self)
        if memory is None:
            return False
        self.memory = memory
        log.info("client did not initialize; its last handshake is used", session=self.label)
        self.uplink.lifecycle.known()
        return True

    def _await_client(self) -> None:
        """No client: keep the link a little for one that is only reconnecting, longer if it awaits answers."""
        self._last_seen = self._clock.seconds()
        if self.phase is not Phase.CLOSED and not self.outlet.outlives_streams:
            self._timers.set("linger", self._policy.linger, self._linger_over, self._policy.hold_timeout)

    def _linger_over(self, patience: float) -> None:
        if self._courier.in_flight and patience > 0:
            wait = min(self._policy.linger, patience)
            self._timers.set("linger", wait, self._linger_over, patience - wait)
            return
        self.uplink.lifecycle.client_gone()
        if not self.memory.initialize:
            self.close()  # there is nothing in it that a client could come back for

    # -- what the courier and the uplink ask for ---------------------------------------------------------------

    def lost(self, reason: str, challenge: HTTPAnswer | None = None, *, is_away: bool = False) -> None:
        """The link has turned out to be of no use."""
        self.uplink.lost(reason, challenge, is_away=is_away)

    def initialized(self) -> None:
        """The client's own initialize was answered."""
        self._remember(self)

    def judged(self, challenge: HTTPAnswer | None) -> bool:
        """The backend's first word on this client, or that there is none; tells whether somebody waited for it."""
        verdicts, self._verdicts = self._verdicts, ()
        for verdict in verdicts:
            verdict.callback(challenge)
        return bool(verdicts)

    def renewed(self) -> None:
        """The client's new token counts."""
        log.info("client has renewed its token", session=self.label)
        if self.memory.initialize:
            self._remember(self)

    def disposed(self) -> None:
        """It is over."""
        self._courier.stop()
        self.judged(None)
        self.outlet.close()
        self._timers.cancel_all()
        self._forget(self)
