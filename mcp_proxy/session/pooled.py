"""One session at a backend of an older revision, on behalf of clients of 2026-07-28 that know of no session.

To the :class:`Session` it is the client's side: it makes the handshake, and hands what comes from the backend to the
calls and the listens that it belongs to. Links, restarts, holding and delivery are the session's, as for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
from attrs import define
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.session import truth
from mcp_proxy.session.bridge import to_legacy
from mcp_proxy.session.bridge.calls import Call, lowest
from mcp_proxy.session.bridge.to_legacy import Client, Unaskable
from mcp_proxy.session.certainty import Certainty
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, IClientStream
from mcp_proxy.session.modern import ModernReply
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.room import Allowance
from mcp_proxy.session.session import Session
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import BackendRefused, NotDelivered, Overloaded, ProxyError, UnknownSession
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Kind, Message

log = Logger()

#: For how many seconds a call waits until the level of logs is set.
LEVEL_WAIT = 5.0
#: What is told to whoever listens, whichever of the sessions it comes from.
_CHANGES = frozenset((revisions.RESOURCE_UPDATED, *(changed for _, _, changed in revisions.LISTS.values())))


@define(eq=False)
class Waiting:
    """A request that waits for the handshake: what it is, and what is done then."""

    reply: ModernReply
    message: Message
    go: Callable[[], None]

    @property
    def size(self) -> int:
        """How many bytes it keeps."""
        return len(self.message.raw)


@define(eq=False)
class Own:
    """A request of ours: what is done with its answer, or with None if there is none."""

    done: Callable[[Message | None], None]


class IPooledHost(Protocol):
    """Whom a session of the pool belongs to."""

    def restored(self, pooled: Pooled, uris: set[str]) -> None:
        """Another backend knows the session, and these subscriptions of it."""

    def changed(self, message: Message) -> None:
        """The backend tells that something has changed."""

    def asked(self, pooled: Pooled, call: Call) -> None:
        """A call has questions, and its client is there: let it answer them."""

    def answered(self, pooled: Pooled, call: Call, raw: bytes, status: int) -> None:
        """A call has got its answer, whose id is still to be set."""

    def refused(self, pooled: Pooled, call: Call, answer: HTTPAnswer) -> bool:
        """The backend wants to see another credential; False if the client cannot be shown that."""

    def released(self, pooled: Pooled) -> None:
        """It has less to do."""

    def gone(self, pooled: Pooled) -> None:
        """It is over."""


class Pooled:
    """See the module. Callers: its group (client side), the session (:class:`IOutlet`).

    :param is_lease: it is for one call at a time.
    """

    needs_handshake = True
    outlives_streams = True
    patient = False
    attached = False  # so the backend's pings are answered by the courier
    last_event = 0

    def __init__(
        self, host: IPooledHost, client: Client, clock: IReactorTime, policy: Policy, *, is_lease: bool = False
    ) -> None:
        self.is_lease = is_lease
        self.initialized: dict[str, Any] | None = None
        self.is_over = False
        self.last_used = clock.seconds()
        self._certainty = Certainty()
        self.calls: dict[bytes, Call] = {}  # those in flight, or held by the session
        self._host = host
        self._client = client
        self._clock = clock
        self._policy = policy
        self._timers = Timers(clock)
        self._session: Session | None = None
        self._waiting: list[Waiting] = []
        self._room_taken = 0
        self._levelling: list[Call] = []
        self._level = ""
        self._setting: object = None
        self._failure: ProxyError | HTTPAnswer = NotDelivered()
        self._count = 0

    # -- what the group asks for -------------------------------------------------------------------------------

    @property
    def certainty(self) -> Certainty:
        """Whether it can be told which call the backend speaks of."""
        self._certainty.look(None if self._session is None else self._session.link)
        return self._certainty

    def begin(self, session: Session) -> None:
        """Make the handshake."""
        self._session = session
        self._timers.set("initialize", self._policy.hold_timeout, self._not_initialized)
        self._send(jsonrpc.parse(to_legacy.initialize(b'"initialize"', self._client)))

    @property
    def is_idle(self) -> bool:
        """Whether no call needs it."""
        return not (self.calls or self._waiting or self._levelling)

    @property
    def capabilities(self) -> dict[str, Any]:
        """What the backend declares."""
        declared = (self.initialized or {}).get("capabilities")
        return declared if isinstance(declared, dict) else {}

    def when_ready(self, waiting: Waiting) -> None:
        """Do something when there has been a handshake; at once if there has."""
        self.last_used = self._clock.seconds()
        if self.is_over:
            self._fail(waiting)
        elif self.initialized is not None:
            waiting.go()
        elif (refusal := self._refusal(waiting.size)) is not None:
            waiting.reply.refused(refusal)
            self._tell(waiting, refusal)
        else:
            self._waiting.append(waiting)
            self._use_room()
            waiting.reply.on_over = lambda: self._left_early(waiting)

    def _refusal(self, size: int) -> Overloaded | None:
        allowance = Allowance(self._policy.max_held, self._policy.max_held_bytes, self._policy.room)
        return allowance.refusal(len(self._waiting), sum(each.size for each in self._waiting), size)

    def _use_room(self) -> None:
        """What waits has changed."""
        self._room_taken = self._policy.room.change(self._room_taken, sum(each.size for each in self._waiting))

    def _left_early(self, waiting: Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self._use_room()
        self._host.released(self)

    def _fail(self, waiting: Waiting) -> None:
        """There is no session: say why."""
        if not isinstance(self._failure, HTTPAnswer):
            self._tell(waiting, self._failure)
        elif not waiting.reply.refuse(self._failure):
            self._tell(waiting, NotDelivered("The backend wants another credential. The request was not delivered."))

    def _tell(self, waiting: Waiting, error: ProxyError) -> None:
        waiting.reply.finish(self._not_delivered(waiting.message, error), status_of(waiting.reply, error))

    def take(self, call: Call) -> None:
        """Send a call; there has been a handshake."""
        self.last_used = self._clock.seconds()
        wanted = lowest([call.level, *(each.level for each in self._active())])
        if wanted and wanted != self._level and "logging" in self.capabilities and not self.is_over:
            self._levelling.append(call)
            if self._setting is None:
                self._set_level(wanted)
            return
        self._dispatch(call)

    def _active(self) -> Iterator[Call]:
        yield from self.calls.values()
        yield from self._levelling

    def _set_level(self, wanted: str) -> None:
        def done(_: Message | None = None) -> None:
            if self._setting is done:
                self._setting = None
                self._timers.cancel("level")
                self._level = wanted
                waiting, self._levelling = self._levelling, []
                for call in waiting:
                    self.take(call)

        self._setting = done
        self._timers.set("level", LEVEL_WAIT, done)  # a backend that does not answer is no reason to wait for ever
        self.own(revisions.SET_LEVEL, {"level": wanted}, done)

    def _dispatch(self, call: Call) -> None:
        message, call.message = call.message, None
        if call.is_over or message is None:
            return
        self.calls[call.identity] = call
        call.initialized = self.initialized or {}
        if not self._send(message, call.headers, call):
            del self.calls[call.identity]
            self._host.answered(self, call, self._not_delivered(message, NotDelivered()), 200)

    def _not_delivered(self, message: Message, error: ProxyError) -> bytes:
        exchange = Exchange(message, (), arrived=self._clock.seconds())
        outage = 0.0 if self._session is None else self._session.outage
        return truth.error_answer(exchange, error, outage, self._policy.reconnect_delay)

    def own(self, method: str, params: dict[str, Any], done: Callable[[Message | None], None]) -> None:
        """Ask the backend something on our own behalf."""
        self._count += 1
        raw = jsonrpc.request(b'"own %d"' % self._count, method, msgspec.json.encode(params))
        if not self._send(jsonrpc.parse(raw), reply=Own(done)):
            done(None)

    def say(self, raws: list[bytes]) -> None:
        """Send answers to questions."""
        for raw in raws:
            self._send(jsonrpc.parse(raw))

    def leave(self, call: Call) -> None:
        """Nobody waits for a call any more."""
        call.is_over = True
        if call in self._levelling:
            self._levelling.remove(call)
        elif self.calls.pop(call.identity, None) is not None:
            self.certainty.has_left = True
            about = {"requestId": jsonrpc.value_of(call.identity), "reason": "the client has left"}
            self._send(jsonrpc.parse(jsonrpc.notification(revisions.CANCELLED, about)))
            if self.is_lease:
                self.end()  # what comes of the call still could not be told from what comes of the next
        self._host.released(self)

    def pause(self, call: Call) -> None:
        """The client does not read what comes of a call."""
        if self._session is not None:
            self._session.stream_paused(call)

    def resume(self, call: Call) -> None:
        """It reads again, or has gone."""
        if self._session is not None:
            self._session.reply_over()
            self._session.stream_resumed(call)

    def end(self) -> None:
        """The session is needed no longer, or of no use; not now, for the session may be in the middle of something."""
        self.is_over = True
        self._timers.keep("end", 0, self.end_now)

    def end_now(self) -> None:
        """The same at once."""
        if self._session is not None:
            self._session.close()

    def _send(self, message: Message, headers: Headers | None = None, reply: object = None) -> bool:
        session = self._session
        if session is None:
            return False
        try:
            session.receive(message, session.headers if headers is None else headers, reply)
        except UnknownSession:
            return False
        return True

    # -- the handshake -----------------------------------------------------------------------------------------

    def _answered_initialize(self, message: Message, error: ProxyError | None) -> None:
        version = message.params().get("protocolVersion")
        if error is not None:
            self._fail_all(error)
        elif message.is_error:
            said = str(message.params().get("message", ""))[:200]
            self._fail_all(BackendRefused(f"The backend refused initialize: {said}"))
        elif version not in revisions.LEGACY:
            self._fail_all(
                BackendRefused(f"The backend speaks revision {str(version)[:40]}, which the proxy does not.")
            )
        else:
            self._timers.cancel("initialize")
            self.initialized = message.params()
            self._send(jsonrpc.parse(jsonrpc.notification(revisions.INITIALIZED)))
            waiting, self._waiting = self._waiting, []
            self._use_room()
            for each in waiting:
                if not each.reply.is_done:
                    each.go()

    def _not_initialized(self) -> None:
        text = "The backend did not answer initialize in time. The request was not delivered; it is safe to repeat."
        self._fail_all(NotDelivered(text))

    def _fail_all(self, failure: ProxyError | HTTPAnswer) -> None:
        self._timers.cancel("initialize")
        self._failure = failure
        self.end()
        waiting, self._waiting = self._waiting, []
        self._use_room()
        for each in waiting:
            each.reply.detach()
            self._fail(each)

    # -- what the session tells (IOutlet) ----------------------------------------------------------------------

    @property
    def paused(self) -> list[object]:
        """The calls whose clients do not read."""
        return [call for call in self.calls.values() if call.reply is not None and call.reply.paused]

    def attach(self, stream: IClientStream, since: int | None) -> int:
        """There are only replies."""
        return 0

    def detach(self, stream: IClientStream) -> bool:
        """There are only replies."""
        return False

    def emit(self, raw: bytes, about: Exchange | None = None) -> None:
        """A message of the backend's that is no answer."""
        message = jsonrpc.parse(raw)
        if about is not None and isinstance(about.reply, Call):
            call: Call | None = about.reply
        else:
            call = self.certainty.meant(message, self.calls, self.is_lease)
        if message.kind is Kind.REQUEST:
            self._asked(message, call)
        elif message.method in _CHANGES:
            self._host.changed(message)
        elif message.method == revisions.CANCELLED:
            for each in self.calls.values():
                each.withdrawn(jsonrpc.cancelled_id(message))
        else:
            told = None if call is None else call.told(message)
            if call is not None and call.reply is not None and told is not None:
                call.reply.tell(told)

    def _asked(self, message: Message, call: Call | None) -> None:
        try:
            if call is None or call.identity not in self.calls:
                raise Unaskable(to_legacy.METHOD_NOT_FOUND, "No call is under way that this could belong to.")
            call.asked(message)
        except Unaskable as reason:
            log.info("question of the backend's refused: {reason}", reason=str(reason), method=message.method)
            self.say([jsonrpc.error(message.id, reason.code, str(reason), {"source": "proxy"})])
            return
        if call.reply is not None:
            self._host.asked(self, call)

    def answer(self, exchange: Exchange, raw: bytes, error: ProxyError | None = None) -> None:
        """An answer of the backend's, or one of the session's own."""
        message, asker = jsonrpc.parse(raw), exchange.reply
        if isinstance(asker, Own):
            asker.done(None if message.is_error else message)
        elif isinstance(asker, Call):
            self._answered(asker, message, error)
        elif exchange.message.method == revisions.INITIALIZE:
            self._answered_initialize(message, error)

    def _answered(self, call: Call, message: Message, error: ProxyError | None) -> None:
        if self.calls.pop(call.identity, None) is None:
            return
        self.last_used = self._clock.seconds()
        if error is None and message.params().get("code") == to_legacy.URL_REQUIRED and message.is_error:
            call.refused(message)
        if call.is_refused:
            if call.reply is not None:
                self._host.asked(self, call)
        elif error is not None:
            self._host.answered(self, call, message.raw, 200)
        else:
            raw = to_legacy.error(message, call.uri)
            if not message.is_error:
                raw = to_legacy.answer(call.method, message.body, self.initialized or {})
            self._host.answered(self, call, raw, to_legacy.status_of(raw))
        self._host.released(self)

    def refuse(self, exchange: Exchange, answer: HTTPAnswer) -> bool:
        """The backend wants another credential: the client is shown what it said. Nothing else is for clients."""
        if answer.status not in (401, 403):
            return False
        call = exchange.reply
        if isinstance(call, Call):
            is_shown = self._host.refused(self, call, answer)
            if is_shown:
                self.calls.pop(call.identity, None)
                self._host.released(self)
            return is_shown
        if exchange.message.method != revisions.INITIALIZE:
            return False
        self._fail_all(answer)
        return True

    def abandon(self, exchange: Exchange) -> None:
        """The client has left; nobody is to be told."""

    def begin_stream(self, exchange: Exchange) -> None:
        """Not before there is something to tell, for an error may need the HTTP status."""

    def restored(self, initialized: dict[str, Any]) -> None:
        """The next backend may be another."""
        self.initialized = initialized
        known = {} if self._session is None else self._session.memory.subscriptions
        self._host.restored(self, {uri for uri, is_honoured in known.items() if is_honoured})

    def say_retry(self) -> None:
        """There are no streams."""

    def pause_stream(self, exchange: Exchange, delay: float) -> None:
        """In this revision nobody comes back for the rest."""

    def close(self) -> None:
        """The session is over."""
        self.is_over = True
        error = NotDelivered("The session at the backend has ended. The request was not delivered.")
        self._fail_all(error)
        self._timers.cancel_all()
        self._setting = None
        levelling, self._levelling = self._levelling, []
        for call in levelling:
            if call.message is not None:
                self._host.answered(self, call, self._not_delivered(call.message, error), 200)
        self._host.gone(self)


def status_of(reply: ModernReply, error: ProxyError) -> int:
    """The HTTP status of an error of ours: 200, but for what clients judge the revision by."""
    return 200 if reply.method != revisions.DISCOVER else max(int(error.answer.status), 503)
