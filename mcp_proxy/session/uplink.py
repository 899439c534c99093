"""The backend's side of a session: when it seeks a link, what it has of one, and the handshake on it.

It owns the lifecycle machine: what the link and the shared view of the backend tell goes in, and what the machine
decides is performed here.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.session import truth
from mcp_proxy.session.courier import Courier
from mcp_proxy.session.credentials import Credentials
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.handshake import HandshakeFailed, Memory, Replay, Step
from mcp_proxy.session.interfaces import HTTPAnswer, IBackend, ILink, IOutlet, Loss, Outgoing, Refusal
from mcp_proxy.session.lifecycle import Phase, machine
from mcp_proxy.session.meter import NO_METER, Meter
from mcp_proxy.session.policy import Policy
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Kind, Message
from mcp_proxy.wire.sse import Oversized

log = Logger()

#: What a session that the backend keeps refusing waits for at most, in seconds, before it tries again.
MAX_REFUSAL_DELAY = 30.0


class IHost(Protocol):
    """What the uplink sees of its session."""

    label: str
    memory: Memory
    credentials: Credentials

    outlet: IOutlet

    def judged(self, challenge: HTTPAnswer | None) -> bool:
        """The backend's first word on this client, or that there is none; tells whether somebody waited for it."""

    def renewed(self) -> None:
        """The client's new token counts."""

    def disposed(self) -> None:
        """The session is over."""


class Uplink:
    """See the module. Callers: the session, links, the backend's view, the machine."""

    __slots__ = (
        "_backend",
        "_clock",
        "_courier",
        "_host",
        "_link_headers",
        "_live_since",
        "_loss",
        "_meter",
        "_policy",
        "_refusals",
        "_replay",
        "_short_lives",
        "_timers",
        "_told_initialized",
        "generation",
        "lifecycle",
        "link",
        "phase",
    )

    def __init__(
        self,
        host: IHost,
        courier: Courier,
        backend: IBackend,
        clock: IReactorTime,
        policy: Policy,
        meter: Meter = NO_METER,
    ) -> None:
        self.phase = Phase.DORMANT
        self.generation = 0
        self.link: ILink | None = None
        self._host = host
        self._courier = courier
        self._backend = backend
        self._clock = clock
        self._policy = policy
        self._meter = meter
        self._timers = Timers(clock)
        self._replay: Replay | None = None
        self._told_initialized = False
        self._link_headers: Headers = ()
        self._loss: Loss | None = None
        self._live_since: float | None = None
        self._refusals = 0
        self._short_lives = 0
        self.lifecycle = machine(self)

    @property
    def outage(self) -> float:
        """For how many seconds the backend has been away."""
        return self._backend.outage

    @property
    def is_hopeless(self) -> bool:
        """Whether the backend has been away for longer than anybody should wait."""
        return self.phase in (Phase.PARKED, Phase.DOWN, Phase.DORMANT) and self._backend.spent

    @property
    def trouble(self) -> str:
        """Why there is no link, in words."""
        return self._loss.reason if self._loss is not None else "it has not been reached yet"

    def lost(self, reason: str, challenge: HTTPAnswer | None = None, *, is_away: bool = False) -> None:
        """The link has turned out to be of no use.

        :param is_away: nobody else would have more luck with another.
        """
        if self.link is not None:
            self.link_lost(self.link, Loss(reason, not is_away, challenge))

    def tell_initialized(self) -> None:
        """The client has initialized: say so to the backend, once on each link."""
        if self.phase is Phase.LIVE and not self._told_initialized and self.link is not None:
            self._told_initialized = True
            text = jsonrpc.notification(revisions.INITIALIZED)
            self.link.send(Outgoing(text, self._host.credentials.headers, revisions.INITIALIZED))

    # -- what the link tells -----------------------------------------------------------------------------------

    def link_opened(self, link: ILink) -> None:
        """The link is open."""
        if link is not self.link:
            return
        if self._host.outlet.needs_handshake:
            log.info("connected to backend", session=self._host.label, generation=self.generation)
        if link.is_judged:
            self._token_accepted(self._link_headers)
        self._link_headers = ()
        self._host.judged(None)
        for source in self._host.outlet.paused:
            link.pause(source)
        if self._host.memory.initialize:
            self.lifecycle.opened_known()
        else:
            self.lifecycle.opened_new()

    def link_settled(self, link: ILink, settled: ILink) -> None:
        """The link that this one has found out to be is the link from now on."""
        if link is self.link:
            self.link = settled

    def link_received(self, link: ILink, message: Message, about: Exchange | None = None) -> None:
        """A message of the backend's: it goes to the client, unless it is about something of ours."""
        if link is not self.link:
            return
        if message.kind is Kind.RESPONSE:
            if self._replay is not None and self._replay.is_own(message.id):
                self._continue_replay(self._replay, message)
            else:
                self._courier.deliver_answer(message)
        else:
            if about is None and not link.correlates:
                about = self._courier.find_request(message)
            if message.kind is Kind.REQUEST:
                self._courier.deliver_request(message, about)
            else:
                self._courier.deliver_notification(message, about)
        if self.phase is Phase.DRAINING:
            self.drain_if_idle()

    def link_streaming(self, link: ILink, about: Exchange) -> None:
        """The backend answers with a stream, so the client gets one as well."""
        if link is self.link:
            self._host.outlet.begin_stream(about)

    def link_polling(self, link: ILink, about: Exchange, delay: float) -> None:
        """The backend wants no stream for an answer that takes so long."""
        if link is self.link:
            self._host.outlet.pause_stream(about, delay)

    def link_oversized(self, link: ILink, event: Oversized, about: Exchange | None = None) -> None:
        """An event over the bound; the rest of the stream is unharmed."""
        if link is self.link:
            self._courier.deliver_oversized(event, about)
            if self.phase is Phase.DRAINING:
                self.drain_if_idle()

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """A message is being handed to the network."""
        if outgoing.exchange is not None:
            outgoing.exchange.was_sent(self._clock.seconds())

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """The backend took a message."""
        if link is self.link:
            self._token_accepted(outgoing.headers)
            self._courier.deliveries.accepted(outgoing)

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """A message was not taken, or nobody knows."""
        if link is self.link:
            self._courier.deliveries.refused(outgoing, refusal)

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """There is no link any more, or none yet."""
        if link is not self.link:
            return
        self._loss = loss
        self._courier.deliveries.unseen(loss.unseen)
        label, reason = self._host.label, loss.reason
        if self._live_since is not None and loss.reachable:
            log.info("backend lost the session: {reason}", reason=reason, session=label, generation=self.generation)
        elif self._live_since is not None:
            log.info("backend stream ended: {reason}", reason=reason, session=label, generation=self.generation)
            self._backend.lost(loss)
        else:
            log.debug("no link: {reason}", reason=reason, session=label, generation=self.generation)
            self._backend.failed(self, loss)
        if not self._host.judged(loss.challenge) and loss.challenge is not None:
            self._host.credentials.challenged(loss.challenge)
        self.lifecycle.lost()

    def _token_accepted(self, headers: Headers) -> None:
        """The backend has accepted something with these headers."""
        if self._host.credentials.accepted(headers):
            self._host.renewed()

    # -- what the backend's view tells -------------------------------------------------------------------------

    def backend_turn(self) -> None:
        """It is our turn to connect."""
        self.lifecycle.turn()

    def backend_gave_up(self) -> None:
        """Nothing will be delivered soon."""
        self._host.judged(None)
        self.lifecycle.give_up()

    def backend_doubted(self) -> None:
        """The backend may be about to stop."""
        self.lifecycle.doubted()

    def backend_ending(self) -> None:
        """The backend waits for our stream to end before it can restart."""
        self.lifecycle.ending()

    def backend_not_ending(self, *, was_gone: bool) -> None:
        """It does not; but a link that cannot notice whether it is another one now is made anew."""
        link = self.link if was_gone and self._host.outlet.needs_handshake else None
        if link is not None and link.is_blind and self.phase in (Phase.LIVE, Phase.DOUBTED):
            self.lost("it was away for a moment")
        else:
            self.lifecycle.not_ending()

    # -- effects: seeking --------------------------------------------------------------------------------------

    def entered(self, phase: Phase) -> None:
        """The machine has moved."""
        self.phase = phase
        if phase is not Phase.HANDSHAKING:
            self._timers.cancel("handshake")

    def seek(self) -> None:
        """Ask for a turn: at once, or after a while if links to this backend lead to nothing for this session."""
        loss, since, was_live = self._loss, self._live_since, self._live_since is not None
        self._live_since = None
        if since is not None:
            # The session was taken, so nobody refuses it; but a backend that dies again and again is not overrun.
            self._refusals = 0
            is_long = self._clock.seconds() - since >= self._policy.reconnect_delay
            self._short_lives = 0 if is_long else self._short_lives + 1
        if loss is None or (self._short_lives <= 1 if was_live else not loss.reachable):
            self._backend.seek(self)
            return
        self._refusals += not was_live
        if loss.challenge is not None or 0 < self._policy.max_attempts <= self._refusals:
            self.lifecycle.give_up()
        if loss.challenge is None:  # waiting does not change a credential
            delay = self._policy.reconnect_delay * max(1, self._refusals - self._policy.max_attempts)
            self._timers.set("refused", self._policy.jitter(min(delay, MAX_REFUSAL_DELAY)), self._backend.seek, self)

    def seek_anew(self) -> None:
        """Somebody asks again: whatever spoke against another try is forgotten for once."""
        self._loss = None
        self._timers.cancel("refused")
        self._backend.seek(self)

    def withdraw(self) -> None:
        """Ask for no turn any more."""
        self._timers.cancel("refused")
        self._backend.withdraw(self)

    # -- effects: the link -------------------------------------------------------------------------------------

    def open_link(self) -> None:
        """The next generation begins."""
        self._timers.cancel("refused")
        self.generation += 1
        self._told_initialized = False
        self._link_headers = self._host.credentials.for_link
        stateless = not self._host.outlet.needs_handshake
        self.link = self._backend.make_link(self, self._link_headers, stateless=stateless)
        self.link.open()

    def close_link(self) -> None:
        """End the link; nothing is heard of it any more."""
        self._drop_link(done=False)

    def end_link(self) -> None:
        """End the link, and the backend's session with it."""
        self._drop_link(done=True)

    def _drop_link(self, *, done: bool) -> None:
        link, self.link = self.link, None
        self._replay = None
        if link is not None:
            link.close(done=done)

    def release(self) -> None:
        """The link is live: what was held goes."""
        self._live_since = self._clock.seconds()
        self._loss = None
        self._backend.succeeded(self)
        if self._host.memory.initialized:
            self.tell_initialized()
        if not self._backend.is_doubted:
            self._courier.release()

    def settle(self) -> None:
        """The link is gone: what was on it gets its fate."""
        self._courier.settle()

    def drain_if_idle(self) -> None:
        """Nothing is awaited of the backend: let it go."""
        if not self._courier.in_flight or not (self.link is None or self.link.is_owed):
            self.lifecycle.drained()

    def answer_held(self) -> None:
        """The budget is spent."""
        self._courier.answer_held(but_initialize=self._host.outlet.patient)

    def dispose(self) -> None:
        """The end."""
        self._timers.cancel_all()
        self._host.disposed()

    # -- effects: the handshake --------------------------------------------------------------------------------

    def restore(self) -> None:
        """Teach the new link what the session is."""
        self._replay = Replay(self._host.memory, self._courier.own_id)
        self._timers.set("handshake", self._policy.handshake_timeout, self._handshake_timed_out)
        self._send_steps(self._replay.begin())

    def _send_steps(self, steps: list[Step]) -> None:
        headers = self._host.credentials.headers
        for step in steps:
            if self.link is not None:
                is_initialized = step.method == revisions.INITIALIZED
                self._told_initialized = self._told_initialized or is_initialized
                self.link.send(
                    Outgoing(step.raw, headers, step.method, repeatable=not is_initialized, barrier=step.barrier)
                )

    def _continue_replay(self, replay: Replay, message: Message) -> None:
        try:
            steps = replay.answer(message)
        except HandshakeFailed as failure:
            if failure.final:
                log.error("session ended: {reason}", reason=str(failure), session=self._host.label)
                self._courier.refuse_held(truth.not_restorable(str(failure)))
                self.lifecycle.close()
            else:
                self.lost(str(failure))
            return
        self._send_steps(steps)
        if replay.done and self._replay is replay:  # a link may answer before it has returned
            self._restored(replay)

    def _handshake_timed_out(self) -> None:
        if self._replay is not None and self._told_initialized:
            self._restored(self._replay)  # it is restored but for a list that the backend does not give
        else:
            self.lost("the backend did not answer initialize in time")

    def _restored(self, replay: Replay) -> None:
        self._replay = None
        for refused in replay.refused:
            log.warn("backend refused to restore {what}", what=refused, session=self._host.label)
        self._host.outlet.restored(replay.initialized)
        self._meter.restored()
        log.info("session restored", session=self._host.label, generation=self.generation)
        for method in replay.changed:
            self._host.outlet.emit(jsonrpc.notification(method))
        for uri in self._host.memory.subscriptions:
            self._host.outlet.emit(jsonrpc.notification(revisions.RESOURCE_UPDATED, {"uri": uri}))
        self.lifecycle.restored()
