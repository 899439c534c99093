"""Sessions at a backend of an older revision, for requests of revision 2026-07-28, which have none.

A session serves one principal, and of it only clients that say the same of themselves. Where a stream is shared by all
that the backend says (HTTP+SSE), a call that may be asked something, or wants logs, has a session of its own while it
runs, so that what is said is certain to belong to it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IReactorTime

from mcp_proxy.session.bridge import to_legacy
from mcp_proxy.session.bridge.calls import Call
from mcp_proxy.session.bridge.sealed import BadState, Seal, is_sealed
from mcp_proxy.session.bridge.to_legacy import Client
from mcp_proxy.session.group import Group
from mcp_proxy.session.interfaces import IOutlet
from mcp_proxy.session.modern import ModernReply
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.pooled import Pooled, status_of
from mcp_proxy.session.session import Session
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import (
    BackendRefused,
    InvalidParams,
    MethodNotFound,
    ProxyError,
    TooManyParked,
    TooManySessions,
)
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message

#: For how many seconds a parked call waits for its client's answers.
PARKED = 300.0
#: How many calls may be parked, and how many bytes of answers they may keep.
MAX_PARKED, MAX_PARKED_BYTES = 1000, 64 * 1024 * 1024


@define(eq=False)
class Parked:
    """A call that waits for its client's answers, and where it is under way."""

    call: Call
    group: Group
    pooled: Pooled


class Pool:
    """See the module. Callers: the front of revision 2026-07-28.

    :param make: makes a session that nobody can find, from its standing headers and its client's side.
    :param discovered: is told each principal's answer to ``server/discover``.
    :param max_sessions: how many sessions there may be.
    :param idle_timeout: for how many seconds a session that nobody needs is kept.
    """

    def __init__(
        self,
        make: Callable[[Headers, IOutlet], Session],
        clock: IReactorTime,
        policy: Policy,
        discovered: Callable[[bytes, bytes], None],
        *,
        max_sessions: int,
        idle_timeout: float,
    ) -> None:
        self.clock = clock
        self.policy = policy
        self.discovered = discovered
        self._make = make
        self._max_sessions = max_sessions
        self._idle_timeout = idle_timeout
        self._timers = Timers(clock)
        self._sessions: dict[Pooled, Group] = {}
        self._groups: dict[tuple[bytes, Client], Group] = {}
        self._parked: dict[bytes, Parked] = {}
        self._seal = Seal()
        self._count = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def parked(self) -> int:
        """How many calls wait for their clients' answers."""
        return len(self._parked)

    # -- what the front asks for -------------------------------------------------------------------------------

    @staticmethod
    def is_retry(message: Message) -> bool:
        """Whether a request brings the answers to questions that were asked here."""
        return b"requestState" in message.body and is_sealed(message.params().get("requestState"))

    def serve(self, reply: ModernReply, message: Message, headers: Headers, owner: bytes) -> None:
        """Serve a request."""
        reply.is_lazy = True
        try:
            self._serve(reply, message, to_legacy.headers(headers), owner)
        except ProxyError as error:
            self.fail(reply, error)
            self._tidy(owner, Client.of(message))

    def _serve(self, reply: ModernReply, message: Message, headers: Headers, owner: bytes) -> None:
        if to_legacy.is_removed(message.method):
            raise MethodNotFound(f"Revision 2026-07-28 has no {message.method[:60]}.")
        params = message.params()
        if "requestState" in params or "inputResponses" in params:
            self._retry(reply, message, headers, owner)
            return
        group = self._group(owner, message)
        if message.method == revisions.LISTEN:
            group.listen(reply, message, headers)
        elif message.method == revisions.DISCOVER:
            group.discover(reply, message, headers)
        else:
            group.call(self._call(message, headers, owner), reply, message)

    def fail(self, reply: ModernReply, error: ProxyError) -> None:
        """Answer a request with an error."""
        reply.refused(error)
        raw = jsonrpc.error(reply.identity, error.answer.code, error.message, {"source": "proxy", **error.data})
        is_of_http = isinstance(error, (InvalidParams, MethodNotFound, TooManySessions))
        reply.detach()
        reply.finish(raw, int(error.answer.status) if is_of_http else status_of(reply, error))

    def _call(self, message: Message, headers: Headers, owner: bytes) -> Call:
        self._count += 1
        return Call.of(message, headers, owner, b'"call %d"' % self._count)

    def _group(self, owner: bytes, message: Message) -> Group:
        client = Client.of(message)
        group = self._groups.get((owner, client))
        if group is None:
            group = self._groups[owner, client] = Group(self, owner, client)
        return group

    def expire(self, now: float) -> None:
        """End the sessions that nobody has needed for too long."""
        for pooled, group in list(self._sessions.items()):
            if not group.needs(pooled) and now - pooled.last_used >= self._idle_timeout:
                pooled.end_now()

    def stop(self) -> None:
        """Nobody comes back any more."""
        self._timers.cancel_all()
        self._parked.clear()

    # -- sessions ----------------------------------------------------------------------------------------------

    def begin(self, pooled: Pooled, group: Group, headers: Headers) -> None:
        """A group needs a session.

        :raises TooManySessions: there is no room, and none can be made.
        """
        if len(self._sessions) >= self._max_sessions:
            idle = [each for each, owner in self._sessions.items() if not owner.needs(each)]
            if not idle:
                raise TooManySessions()
            min(idle, key=lambda each: each.last_used).end_now()
        session = self._make(headers, pooled)
        self._sessions[pooled] = group
        pooled.begin(session)

    def gone(self, pooled: Pooled) -> None:
        """A session is over."""
        group = self._sessions.pop(pooled, None)
        if group is not None:
            self._tidy(group.owner, group.client)

    def _tidy(self, owner: bytes, client: Client) -> None:
        group = self._groups.get((owner, client))
        if group is not None and group.is_empty:
            del self._groups[owner, client]

    # -- parked calls ------------------------------------------------------------------------------------------

    def park(self, group: Group, pooled: Pooled, call: Call, reply: ModernReply) -> None:
        """Answer the POST of a call with its questions.

        :raises TooManyParked: too many calls wait so.
        """
        if len(self._parked) >= MAX_PARKED:
            raise TooManyParked()
        name = secrets.token_bytes(16)
        self._parked[name] = Parked(call, group, pooled)
        self._timers.set(name.hex(), PARKED, self._expired, name)
        state = self._seal.close(name, self.clock.seconds() + PARKED, call.bound)
        raw = to_legacy.input_required(call.shown(), state, call.initialized)
        reply.finish(jsonrpc.with_id(raw, reply.identity))

    def has_room(self, size: int) -> bool:
        """Whether an answer of this size can be kept for a client that comes back."""
        kept = sum(len(each.call.outcome[0]) for each in self._parked.values() if each.call.outcome is not None)
        return kept + size <= MAX_PARKED_BYTES

    def _unpark(self, name: bytes) -> Parked | None:
        self._timers.cancel(name.hex())
        return self._parked.pop(name, None)

    def _expired(self, name: bytes) -> None:
        """The client does not come back: nobody waits for the call any more."""
        parked = self._unpark(name)
        if parked is not None:
            parked.group.give_up(parked.pooled, parked.call)

    def _retry(self, reply: ModernReply, message: Message, headers: Headers, owner: bytes) -> None:
        """A client brings answers, or comes back for the outcome."""
        state = message.params().get("requestState")
        try:
            bound = owner + to_legacy.digest(message)
            name, expires = self._seal.open(state if isinstance(state, str) else "", bound)
        except BadState:
            raise InvalidParams(
                "This requestState is none that was given for this very request, so nothing was delivered. Send the "
                "request without requestState and inputResponses to begin anew."
            ) from None
        parked = self._unpark(name)
        if parked is None:
            why = "has expired" if expires <= self.clock.seconds() else "was used before"
            raise InvalidParams(f"This requestState {why}, so nothing was delivered.")
        call = parked.call
        call.wanted_by(message)
        if call.outcome is not None:
            raw, status = call.outcome
            reply.finish(jsonrpc.with_id(raw, reply.identity), status)
        elif call.is_refused:
            self._visited(parked, reply, message, headers)
        else:
            parked.group.resume(parked.pooled, call, reply, to_legacy.responses(message))

    def _visited(self, parked: Parked, reply: ModernReply, message: Message, headers: Headers) -> None:
        """The backend did nothing before; it is asked once more, if the user did what it wants."""
        call, given = parked.call, to_legacy.responses(message)
        if not set(call.questions) <= set(given):
            self.park(parked.group, parked.pooled, call, reply)
        elif not all(to_legacy.is_accepted(given[name]) for name in call.questions):
            raise BackendRefused("The backend wants a URL to be visited first. It was not, so nothing was carried out.")
        else:
            again = self._call(message, headers, call.owner)
            self._group(call.owner, message).call(again, reply, message)
