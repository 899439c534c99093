"""One client's session: it feeds the lifecycle machine and performs what that decides.

It is the only place that knows both sides. Towards the client it has an outlet, towards the backend at most one
link, and between them a courier. Streams and links come and go; the session stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.session import truth
from mcp_proxy.session.courier import Courier, Policy
from mcp_proxy.session.credentials import Credentials
from mcp_proxy.session.handshake import HandshakeFailed, Memory, Replay, Step
from mcp_proxy.session.interfaces import Challenge, IBackend, IClientStream, ILink, Loss, Outgoing, Refusal
from mcp_proxy.session.lifecycle import Phase, machine
from mcp_proxy.session.outlet import Outlet
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import UnknownSession
from mcp_proxy.wire.headers import Headers, end_to_end
from mcp_proxy.wire.jsonrpc import Kind, Message
from mcp_proxy.wire.sse import Oversized

log = Logger()

#: What a session that the backend keeps refusing waits for at most, in seconds, before it tries again.
MAX_REFUSAL_DELAY = 30.0


class Session:
    """One client session. Callers: the registry, the fronts (client side), links and the backend's view.

    :param token: the session's id, known to its client.
    :param owner: digest of the credential that it belongs to.
    :param headers: the headers of the client's first request.
    :param forget: called once, when the session is over.
    :param remember: called when the client has initialized.
    :param recall: finds what another stream of the same client initialized with.
    """

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
        self.credentials = Credentials(owner, headers)
        self.label = hashlib.sha256(token.encode()).hexdigest()[:8]
        self.memory = Memory()
        self.phase = Phase.DORMANT
        self.generation = 0
        self.link: ILink | None = None
        self.idle_since: float | None = None
        self._backend = backend
        self._clock = clock
        self._policy = policy
        self._forget, self._remember, self._recall = forget, remember, recall
        self._timers = Timers(clock)
        self._outlet = Outlet(token)
        self._courier = Courier(self, clock, policy)
        self._replay: Replay | None = None
        self._told_initialized = False
        self._link_headers: Headers = ()
        self._verdicts: list[Deferred[Challenge | None]] = []
        self._loss: Loss | None = None
        self._live_since: float | None = None
        self._refusals = 0
        self._lifecycle = machine(self)

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
        return self._outlet.stream is not None

    @property
    def last_event(self) -> int:
        """The number of the newest event."""
        return self._outlet.last_event

    @property
    def outage(self) -> float:
        """For how many seconds the backend has been away."""
        return self._backend.outage

    @property
    def trouble(self) -> str:
        """Why there is no link, in words."""
        return self._loss.reason if self._loss is not None else "it has not been reached yet"

    # -- the client's side -------------------------------------------------------------------------------------

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
        self.idle_since = None
        self._timers.cancel("linger")
        self._outlet.attach(stream, since)
        if self.link is not None and not stream.paused:
            self.link.resume()
        self._lifecycle.wake()

    def detach(self, stream: IClientStream) -> None:
        """The client has left this stream."""
        if stream is not self._outlet.stream:
            return
        self._outlet.stream = None
        if self.link is not None:
            self.link.resume()
        log.info("client disconnected", session=self.label, generation=self.generation)
        self._await_client()

    def stream_paused(self) -> None:
        """The client is slow: stop its backend stream, and nobody else's."""
        if self.link is not None:
            self.link.pause()

    def stream_resumed(self) -> None:
        """The client reads again."""
        if self.link is not None:
            self.link.resume()

    def receive(self, message: Message, headers: Headers) -> None:
        """The client sent a message with these headers; whatever comes of it comes on its stream.

        :raises UnknownSession: the session is over.
        :raises NotJSONRPC: a request under the id of another one that is not answered yet.
        """
        if self.phase is Phase.CLOSED:
            raise UnknownSession()
        headers = end_to_end(headers)
        self.credentials.seen(headers)
        if not self.attached:
            self._await_client()
        if message.kind is Kind.RESPONSE:
            self._courier.take_answer(message, headers)
        elif message.kind is Kind.REQUEST:
            self._ask(message, headers)
        elif message.method == revisions.CANCELLED:
            self._courier.take_cancellation(message, headers)
        elif message.method == revisions.INITIALIZED:
            self.memory.initialized = True
            self._tell_initialized()
        else:
            self._courier.take_notification(message, headers)

    def close(self) -> None:
        """The session is over for good: whoever waits is answered, everything is freed."""
        self._lifecycle.close()

    def _ask(self, message: Message, headers: Headers) -> None:
        exchange = self._courier.take_request(message, headers)
        if exchange is None:
            return
        if message.method == revisions.PING and self.phase is not Phase.LIVE:
            self.emit(jsonrpc.result(message.id or b"", {}))
        elif not self._is_initialized(message) and not self._borrow_handshake():
            self._courier.fail(exchange, truth.never_initialized())
        elif self.phase is Phase.LIVE:
            self._courier.send(exchange)
        elif self._is_hopeless() and message.method != revisions.INITIALIZE:
            self._courier.fail(exchange, truth.not_delivered(self.outage, self.trouble))
        else:
            self._courier.hold(exchange)
            self._lifecycle.wake()

    def _is_initialized(self, message: Message) -> bool:
        """Whether the backend may see this message: in a handshake, or after one."""
        is_early = message.method in (revisions.INITIALIZE, revisions.PING)
        return is_early or bool(self.memory.initialize) or self._courier.awaits_initialize()

    def _borrow_handshake(self) -> bool:
        """A client that came back without initialize: start from what it said the last time."""
        memory = self._recall(self)
        if memory is None:
            return False
        self.memory = memory
        log.info("client did not initialize; its last handshake is used", session=self.label)
        self._lifecycle.known()
        return True

    def _is_hopeless(self) -> bool:
        """Whether the backend has been away for longer than anybody should wait."""
        return self.phase in (Phase.PARKED, Phase.DOWN) and self._backend.spent

    def _tell_initialized(self) -> None:
        if self.phase is Phase.LIVE and not self._told_initialized and self.link is not None:
            self._told_initialized = True
            self.link.send(Outgoing(jsonrpc.notification(revisions.INITIALIZED), self.headers))

    def _await_client(self) -> None:
        """No client: keep the link a little for one that is only reconnecting, longer if it awaits answers."""
        self.idle_since = self._clock.seconds()
        if self.phase is not Phase.CLOSED:
            self._timers.set("linger", self._policy.linger, self._linger_over, self._policy.hold_timeout)

    def _linger_over(self, patience: float) -> None:
        if self._courier.in_flight and patience > 0:
            wait = min(self._policy.linger, patience)
            self._timers.set("linger", wait, self._linger_over, patience - wait)
            return
        self._lifecycle.client_gone()
        if not self.memory.initialize:
            self.close()  # there is nothing in it that a client could come back for

    def _judge(self, challenge: Challenge | None) -> None:
        verdicts, self._verdicts = self._verdicts, []
        for verdict in verdicts:
            verdict.callback(challenge)

    # -- what the courier asks for -----------------------------------------------------------------------------

    def emit(self, raw: bytes) -> None:
        """Send a message to the client."""
        self._outlet.emit(raw)

    def lost(self, reason: str, challenge: Challenge | None = None) -> None:
        """The link has turned out to be of no use."""
        if self.link is not None:
            self.link_lost(self.link, Loss(reason, reachable=self._live_since is None, challenge=challenge))

    def challenged(self, challenge: Challenge) -> None:
        """The backend wants to see other credentials: the client's next message is answered with that."""
        self.credentials.challenged(challenge)

    def initialized(self) -> None:
        """The client's own initialize was answered."""
        self._remember(self)

    def settled(self) -> None:
        """A request was answered."""
        if self.phase is Phase.DRAINING:
            self.drain_if_idle()

    # -- what the link tells -----------------------------------------------------------------------------------

    def link_opened(self, link: ILink) -> None:
        """The link is open."""
        if link is not self.link:
            return
        log.info("connected to backend", session=self.label, generation=self.generation)
        self._token_accepted(self._link_headers)
        self._judge(None)
        if self._outlet.is_paused:
            link.pause()
        if self.memory.initialize:
            self._lifecycle.opened_known()
        else:
            self._lifecycle.opened_new()

    def link_received(self, link: ILink, message: Message) -> None:
        """A message of the backend's: it goes to the client, unless it is about something of ours."""
        if link is not self.link:
            return
        if message.kind is Kind.REQUEST:
            self._courier.deliver_request(message)
        elif message.kind is Kind.NOTIFICATION:
            if message.method == revisions.CANCELLED:
                self._courier.deliver_cancellation(message)
            else:
                self.emit(message.raw)
        elif self._replay is not None and self._replay.is_own(message.id):
            self._continue_replay(self._replay, message)
        else:
            self._courier.deliver_answer(message)

    def link_oversized(self, link: ILink, event: Oversized) -> None:
        """An event over the bound; the rest of the stream is unharmed."""
        if link is self.link:
            self._courier.deliver_oversized(event)

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """A message is being handed to the network."""
        if outgoing.exchange is not None:
            outgoing.exchange.was_sent()

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """The backend took a message."""
        if link is self.link:
            self._token_accepted(outgoing.headers)
            self._courier.accepted(outgoing)

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """A message was not taken, or nobody knows."""
        if link is self.link:
            self._courier.refused(outgoing, refusal)

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """There is no link any more, or none yet."""
        if link is not self.link:
            return
        self._loss = loss
        if self._live_since is not None:
            log.info(
                "backend stream ended: {reason}",
                reason=loss.reason,
                session=self.label,
                generation=self.generation,
            )
            self._backend.lost(loss)
        else:
            log.debug("no link: {reason}", reason=loss.reason, session=self.label, generation=self.generation)
            self._backend.failed(self, loss)
            if loss.challenge is not None and not self._verdicts:
                self.credentials.challenged(loss.challenge)
            self._judge(loss.challenge)
        self._lifecycle.lost()

    # -- what the backend's view tells -------------------------------------------------------------------------

    def backend_turn(self) -> None:
        """It is our turn to connect."""
        self._lifecycle.turn()

    def backend_gave_up(self) -> None:
        """Nothing will be delivered soon."""
        self._judge(None)
        self._lifecycle.give_up()

    def backend_doubted(self) -> None:
        """The backend may be about to stop."""
        self._lifecycle.doubted()

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
            self._timers.cancel("handshake")

    def seek(self) -> None:
        """Ask for a turn: at once, or after a while if links to this backend lead to nothing for this session."""
        loss, was_live = self._loss, self._live_since is not None
        if self._lived() >= self._policy.reconnect_delay:
            self._refusals = 0
        self._live_since = None
        if loss is None or not (loss.reachable or was_live):
            self._backend.seek(self)
            return
        self._refusals += 1
        if was_live and self._refusals == 1:
            self._backend.seek(self)
            return
        if loss.challenge is not None or 0 < self._policy.max_attempts <= self._refusals:
            self._lifecycle.give_up()
        if loss.challenge is None:  # waiting does not change a credential
            delay = self._policy.reconnect_delay * max(1, self._refusals - self._policy.max_attempts)
            self._timers.set("refused", self._policy.jitter(min(delay, MAX_REFUSAL_DELAY)), self._backend.seek, self)

    def seek_anew(self) -> None:
        """Somebody asks again: whatever spoke against another try is forgotten for once."""
        self._loss = None
        self._timers.cancel("refused")
        self._backend.seek(self)

    def _lived(self) -> float:
        return 0.0 if self._live_since is None else self._clock.seconds() - self._live_since

    def withdraw(self) -> None:
        """Ask for no turn any more."""
        self._timers.cancel("refused")
        self._backend.withdraw(self)

    def open_link(self) -> None:
        """The next generation begins."""
        self._timers.cancel("refused")
        self.generation += 1
        self._told_initialized = False
        self._link_headers = self.credentials.for_link
        self.link = self._backend.make_link(self, self._link_headers)
        self.link.open()

    def _token_accepted(self, headers: Headers) -> None:
        """The backend has accepted something with these headers."""
        if self.credentials.accepted(headers):
            log.info("client has renewed its token", session=self.label)
            if self.memory.initialize:
                self._remember(self)

    def close_link(self) -> None:
        """End the link; nothing is heard of it any more."""
        link, self.link = self.link, None
        self._replay = None
        if link is not None:
            link.close()

    def restore(self) -> None:
        """Teach the new link what the session is."""
        self._replay = Replay(self.memory, self._courier.own_id)
        self._timers.set("handshake", self._policy.handshake_timeout, self._handshake_timed_out)
        self._send_steps(self._replay.begin())

    def _send_steps(self, steps: list[Step]) -> None:
        for step in steps:
            if self.link is not None:
                self._told_initialized = self._told_initialized or step.barrier
                self.link.send(Outgoing(step.raw, self.headers, repeatable=not step.barrier, barrier=step.barrier))

    def _continue_replay(self, replay: Replay, message: Message) -> None:
        try:
            steps = replay.answer(message)
        except HandshakeFailed as failure:
            self.lost(str(failure))
            return
        self._send_steps(steps)
        if replay.done:
            self._restored(replay)

    def _handshake_timed_out(self) -> None:
        if self._replay is not None and self._told_initialized:
            self._restored(self._replay)  # it is restored but for a list that the backend does not give
        else:
            self.lost("the backend did not answer initialize in time")

    def _restored(self, replay: Replay) -> None:
        self._replay = None
        for dropped in replay.dropped:
            log.warn("backend refused to restore {what}", what=dropped, session=self.label)
        log.info("session restored", session=self.label, generation=self.generation)
        for method in replay.changed:
            self.emit(jsonrpc.notification(method))
        for uri in self.memory.subscriptions:
            self.emit(jsonrpc.notification(revisions.RESOURCE_UPDATED, {"uri": uri}))
        self._lifecycle.restored()

    def release(self) -> None:
        """The link is live: what was held goes."""
        self._live_since = self._clock.seconds()
        self._loss = None
        self._backend.succeeded(self)
        if self.memory.initialized:
            self._tell_initialized()
        self._courier.release()

    def settle(self) -> None:
        """The link is gone: what was on it gets its fate."""
        self._courier.settle()

    def drain_if_idle(self) -> None:
        """Nothing is awaited: let the backend go."""
        if not self._courier.in_flight:
            self._lifecycle.drained()

    def answer_held(self) -> None:
        """The budget is spent."""
        self._courier.answer_held(but_initialize=True)

    def dispose(self) -> None:
        """The end."""
        self._courier.stop()
        self._judge(None)
        self._outlet.close()
        self._timers.cancel_all()
        self._forget(self)
