"""The sessions at the backend of one client of revision 2026-07-28: one for all that it asks, and leases.

A lease is a session for one call at a time (see :mod:`mcp_proxy.session.pool`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime

from mcp_proxy.session.bridge import to_legacy
from mcp_proxy.session.bridge.calls import Call
from mcp_proxy.session.bridge.to_legacy import Client
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.session.listens import Listens
from mcp_proxy.session.modern import ModernReply
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.pooled import Pooled, Waiting
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import ProxyError, TooManyHeld
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message

#: How many calls of one client may have a session of their own.
MAX_LEASES = 16
#: For how many seconds a question waits for others, so that the client is asked them together.
ASK_WAIT = 0.05


class IPool(Protocol):
    """What a group sees of the pool."""

    clock: IReactorTime
    policy: Policy
    discovered: Callable[[bytes, bytes], None]

    def begin(self, pooled: Pooled, group: Group, headers: Headers) -> None:
        """Give it a session."""

    def gone(self, pooled: Pooled) -> None:
        """A session is over."""

    def fail(self, reply: ModernReply, error: ProxyError) -> None:
        """Answer a request with an error."""

    def park(self, group: Group, pooled: Pooled, call: Call, reply: ModernReply) -> None:
        """Answer the POST of a call with its questions."""

    def has_room(self, size: int) -> bool:
        """Whether an answer of this size can be kept for a client that comes back."""


class Group:
    """See the module. Callers: the pool (client side), its sessions (:class:`IPooledHost`).

    :param owner: digest of the principal.
    :param client: what the client says of itself.
    """

    def __init__(self, pool: IPool, owner: bytes, client: Client) -> None:
        self.owner = owner
        self.client = client
        self._pool = pool
        self._shared: Pooled | None = None
        self._leases: list[Pooled] = []
        self._queue: list[tuple[Waiting, Call]] = []  # calls that wait for a lease
        self._timers = Timers(pool.clock)
        self._listens = Listens(self._ask)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it."""
        return self._shared is None and not (self._leases or self._queue or len(self._listens))

    def needs(self, pooled: Pooled) -> bool:
        """Whether a session is in use."""
        return not pooled.is_idle or (pooled is self._shared and len(self._listens) > 0)

    # -- what clients ask for ----------------------------------------------------------------------------------

    def discover(self, reply: ModernReply, message: Message, headers: Headers) -> None:
        """Answer from what the backend has said of itself."""
        shared = self._session(headers)

        def go() -> None:
            raw = jsonrpc.with_id(to_legacy.discovered(shared.initialized or {}), reply.identity)
            self._pool.discovered(self.owner, raw)
            reply.detach()
            reply.finish(raw)

        shared.when_ready(Waiting(reply, message, go))

    def listen(self, reply: ModernReply, message: Message, headers: Headers) -> None:
        """Listen for changes."""
        shared = self._session(headers)
        shared.when_ready(Waiting(reply, message, lambda: self._listens.begin(reply, message, shared.capabilities)))

    def call(self, call: Call, reply: ModernReply, message: Message) -> None:
        """Any other request."""
        call.reply = reply
        shared = self._session(call.headers)
        waiting = Waiting(reply, message, lambda: self._place(waiting, call, shared))
        shared.when_ready(waiting)

    def resume(self, pooled: Pooled, call: Call, reply: ModernReply, given: dict[str, bytes]) -> None:
        """The client of a parked call has come back with answers."""
        call.reply = reply
        self._wire(pooled, call, reply)
        pooled.say(call.answers(given))
        if call.reply is reply and call.questions:
            self.asked(pooled, call)

    def _session(self, headers: Headers) -> Pooled:
        if self._shared is None or self._shared.is_over:
            self._shared = self._new(headers, is_lease=False)
        return self._shared

    def _new(self, headers: Headers, *, is_lease: bool) -> Pooled:
        pooled = Pooled(self, self.client, self._pool.clock, self._pool.policy, is_lease=is_lease)
        self._pool.begin(pooled, self, headers)
        return pooled

    def _place(self, waiting: Waiting, call: Call, shared: Pooled) -> None:
        """There has been a handshake, so it is known whether calls can be told apart."""
        if shared.certainty.correlates or not call.needs_certainty:
            self._hand(shared, call, waiting.reply)
            return
        try:
            self._lease(waiting, call)
        except ProxyError as error:
            self._pool.fail(waiting.reply, error)

    def _hand(self, pooled: Pooled, call: Call, reply: ModernReply) -> None:
        self._wire(pooled, call, reply)
        pooled.take(call)

    def _wire(self, pooled: Pooled, call: Call, reply: ModernReply) -> None:
        reply.on_over = lambda: self._left(pooled, call, reply)
        reply.on_pause = lambda: pooled.pause(call)
        reply.on_resume = lambda: pooled.resume(call)

    def _left(self, pooled: Pooled, call: Call, reply: ModernReply) -> None:
        if call.reply is reply:
            self._timers.cancel(f"ask {id(call)}")
            call.reply = None
            pooled.resume(call)
            pooled.leave(call)

    def give_up(self, pooled: Pooled, call: Call) -> None:
        """The client of a call will not answer the backend's questions."""
        pooled.say(call.unanswered())
        pooled.leave(call)

    # -- leases ------------------------------------------------------------------------------------------------

    def _lease(self, waiting: Waiting, call: Call) -> None:
        lease = next((each for each in self._leases if each.is_idle and not each.is_over), None)
        if lease is None and len(self._leases) < MAX_LEASES:
            lease = self._new(call.headers, is_lease=True)
            self._leases.append(lease)
        if lease is not None:
            leased = lease
            lease.when_ready(Waiting(waiting.reply, waiting.message, lambda: self._hand(leased, call, waiting.reply)))
        elif len(self._queue) >= self._pool.policy.max_held:
            raise TooManyHeld()
        else:
            entry = waiting, call
            self._queue.append(entry)
            name = f"queue {id(call)}"
            self._timers.set(name, self._pool.policy.hold_timeout, self._waited, entry)
            waiting.reply.on_over = lambda: self._unqueue(entry)

    def _unqueue(self, entry: tuple[Waiting, Call]) -> None:
        self._timers.cancel(f"queue {id(entry[1])}")
        if entry in self._queue:
            self._queue.remove(entry)

    def _waited(self, entry: tuple[Waiting, Call]) -> None:
        self._unqueue(entry)
        self._pool.fail(entry[0].reply, TooManyHeld())

    def _next(self) -> None:
        while self._queue and (
            len(self._leases) < MAX_LEASES or any(each.is_idle and not each.is_over for each in self._leases)
        ):
            entry = self._queue[0]
            self._unqueue(entry)
            entry[0].reply.detach()
            self._place_again(entry)

    def _place_again(self, entry: tuple[Waiting, Call]) -> None:
        try:
            self._lease(*entry)
        except ProxyError as error:
            self._pool.fail(entry[0].reply, error)

    # -- what the sessions tell (IPooledHost) ------------------------------------------------------------------

    def restored(self, pooled: Pooled, uris: set[str]) -> None:
        """Another backend may honour less than was promised to who listens."""
        if pooled is self._shared:
            self._listens.restored(pooled.capabilities, uris)

    def changed(self, message: Message) -> None:
        """Something has changed; it does not matter which session was told."""
        self._listens.changed(message)

    def asked(self, pooled: Pooled, call: Call) -> None:
        """A call has questions: its POST is answered with them, and those that follow at once, and it is parked."""
        self._timers.keep(f"ask {id(call)}", ASK_WAIT, self._ask_client, pooled, call)

    def _ask_client(self, pooled: Pooled, call: Call) -> None:
        reply = self._taken(pooled, call) if call.questions else None
        if reply is not None:
            try:
                self._pool.park(self, pooled, call, reply)
            except ProxyError as error:
                self._pool.fail(reply, error)
                self.give_up(pooled, call)

    def answered(self, pooled: Pooled, call: Call, raw: bytes, status: int) -> None:
        """A call has got its answer."""
        self._timers.cancel(f"ask {id(call)}")
        reply = self._taken(pooled, call)
        if reply is not None:
            reply.finish(jsonrpc.with_id(raw, reply.identity), status)
        elif self._pool.has_room(len(raw)):
            call.outcome = raw, status
        else:
            text = "The backend has answered, but the answer could not be kept until the client came back for it."
            call.outcome = jsonrpc.error(None, -31002, text, {"source": "proxy", "delivered": "yes"}), 200

    def refused(self, pooled: Pooled, call: Call, answer: HTTPAnswer) -> bool:
        """The backend wants to see another credential."""
        if call.reply is None or call.reply.is_started:
            return False
        reply = self._taken(pooled, call)
        return reply is not None and reply.refuse(answer)

    def _taken(self, pooled: Pooled, call: Call) -> ModernReply | None:
        """The reply of the POST that waits for a call, which is about to be complete."""
        reply, call.reply = call.reply, None
        if reply is not None:
            reply.detach()
            pooled.resume(call)
        return reply

    def released(self, pooled: Pooled) -> None:
        """A session has less to do."""
        if pooled.is_lease:
            self._next()

    def gone(self, pooled: Pooled) -> None:
        """A session is over."""
        if pooled is self._shared:
            self._shared = None
            self._listens.end()
        elif pooled in self._leases:
            self._leases.remove(pooled)
            self._next()
        self._pool.gone(pooled)

    def _ask(self, method: str, params: dict[str, Any], done: Callable[[Message | None], None]) -> None:
        if self._shared is None:
            done(None)
        else:
            self._shared.own(method, params, done)
