"""What a modern link listens for: one ``subscriptions/listen``, made anew whenever its session wants something else.

The next stream is acknowledged before the one before it is closed, so nothing falls between them. A stream that ends is
asked for again, less and less often; whatever it would have brought may have happened meanwhile, and the backend may
have been restarted with other lists, so all that is told. One that would have brought nothing is not asked for again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import define, field
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.backend.listener import FIRST_RETRY, MAX_RETRY
from mcp_proxy.backend.response import GATEWAY
from mcp_proxy.session.bridge import to_modern
from mcp_proxy.session.interfaces import Loss, Outgoing, Refusal
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.jsonrpc import Kind, Message

log = Logger()

#: How many resources one session may subscribe to.
MAX_SUBSCRIPTIONS = 1000
#: How often in a row a stream may fail before those who wait for it are told.
MAX_FAILURES = 3
#: For how many seconds messages wait for the first stream, so that none of their effects is missed.
STREAM_WAIT = 1.0

#: By capability: what can be listened for, and what is told.
_LISTS = {
    "tools": ("toolsListChanged", "notifications/tools/list_changed"),
    "prompts": ("promptsListChanged", "notifications/prompts/list_changed"),
    "resources": ("resourcesListChanged", "notifications/resources/list_changed"),
}


class ISubscribed(Protocol):
    """Whom a subscriber works for; a link does this."""

    @property
    def is_busy(self) -> bool:
        """Whether answers are awaited."""

    def listen(self, stream: Stream, filter_: dict[str, Any]) -> Outgoing:
        """Ask for a stream."""

    def withdraw(self, outgoing: Outgoing) -> None:
        """Close it."""

    def tell(self, message: Message) -> None:
        """Something for the client."""

    def settled(self) -> None:
        """It is known whether there is a stream."""

    def doubt(self, otherwise: Callable[[], None], *, is_gateway: bool = False) -> None:
        """A stream was refused in a way that may mean that the backend is another one, or has gone."""

    def lose(self, loss: Loss) -> None:
        """The backend has gone."""


@define(eq=False)
class Stream:
    """One of the streams; ``waiting`` are the requests that are answered once it is acknowledged, with their URIs."""

    subscriber: Subscriber
    waiting: list[tuple[bytes, str]]
    is_sent: bool = False
    is_in_vain: bool = False  # the backend has agreed to tell of nothing
    outgoing: Outgoing | None = None

    def received(self, message: Message) -> None:
        """A message on it."""
        self.subscriber.received(self, message)

    def refused(self, refusal: Refusal) -> None:
        """It was not granted, or it broke."""
        self.subscriber.ended(self, refusal)


@define
class Subscriber:
    """See the module.

    :param open_timeout: for how many seconds an acknowledgement is waited for.
    """

    _link: ISubscribed
    _clock: IReactorTime
    _open_timeout: float
    _timers: Timers = field(init=False)
    _lists: tuple[str, ...] = ()
    _uris: dict[str, None] = field(factory=dict)
    _waiting: list[tuple[bytes, str]] = field(factory=list)
    _current: Stream | None = None
    _next: Stream | None = None
    _is_begun: bool = False
    _is_stale: bool = False  # the next stream is not what is wanted any more
    _is_unsupported: bool = False
    _has_missed: bool = False
    _failures: int = 0
    _delay: float = FIRST_RETRY

    def __attrs_post_init__(self) -> None:
        self._timers = Timers(self._clock)

    def begin(self, capabilities: dict[str, Any]) -> None:
        """The handshake is complete: listen for what this backend may tell of."""
        self._is_begun = True
        self._lists = tuple(name for name in _LISTS if isinstance(capabilities.get(name), dict))
        self._timers.set("gate", STREAM_WAIT, self._link.settled)
        self._open()

    def subscribe(self, identity: bytes, uri: str) -> None:
        """A request to be told of a resource; it is answered when the backend has agreed."""
        if uri not in self._uris and len(self._uris) >= MAX_SUBSCRIPTIONS:
            self._answer(identity, jsonrpc.error(identity, -32603, "There are too many subscriptions."))
            return
        self._uris[uri] = None
        self._change(identity, uri)

    def unsubscribe(self, identity: bytes, uri: str) -> None:
        """The opposite."""
        self._uris.pop(uri, None)
        self._change(identity, uri)

    def close(self) -> None:
        """Listen no longer; the streams are closed with the link."""
        self._timers.cancel_all()

    def _change(self, identity: bytes, uri: str) -> None:
        self._waiting.append((identity, uri))
        if self._next is not None:
            self._is_stale = True
        else:
            self._timers.keep("change", 0.0, self._open)  # one stream for all that is asked at the same time

    def _open(self) -> None:
        if not self._is_begun:
            return
        self._timers.cancel("again", "change")
        self._is_stale = False
        waiting, self._waiting = self._waiting, []
        filter_: dict[str, Any] = {_LISTS[name][0]: True for name in self._lists}
        if self._uris:
            filter_["resourceSubscriptions"] = list(self._uris)
        if not filter_ or self._is_unsupported:
            current, self._current = self._current, None
            self._close(current)
            self._fail([each for each in waiting if each[1] in self._uris], -32601, "The server tells of no changes.")
            self._granted([each for each in waiting if each[1] not in self._uris], set())
            self._settle()
        else:
            self._timers.set("acknowledged", self._open_timeout, self._not_acknowledged)
            self._next = stream = Stream(self, waiting)
            stream.outgoing = self._link.listen(stream, filter_)

    def _close(self, stream: Stream | None) -> None:
        if stream is not None and stream.outgoing is not None:
            self._link.withdraw(stream.outgoing)

    def _not_acknowledged(self) -> None:
        stream = self._next
        if stream is not None:
            self._close(stream)
            self.ended(stream, Refusal(0, "the backend did not acknowledge in time"))

    # -- what comes on a stream --------------------------------------------------------------------------------

    def received(self, stream: Stream, message: Message) -> None:
        """A message on a stream."""
        if message.method == revisions.ACKNOWLEDGED:
            if stream is self._next:
                self._acknowledged(stream, message)
        elif message.kind is Kind.NOTIFICATION:
            if stream is self._current:
                self._link.tell(to_modern.untagged(message))
        elif message.kind is Kind.RESPONSE and stream is self._current and stream.is_in_vain and not message.is_error:
            self._current = None  # and nothing is missed
            self._timers.cancel("lasting")
        elif message.kind is Kind.RESPONSE:
            code = to_modern.error_code(message) if message.is_error else 0
            reason = str(message.params().get("message", ""))[:200] if message.is_error else "the backend ended it"
            self.ended(stream, Refusal(400 if code else 0, reason), code)

    def _acknowledged(self, stream: Stream, message: Message) -> None:
        filter_ = message.params().get("notifications")
        honoured: dict[str, Any] = filter_ if isinstance(filter_, dict) else {}
        uris = honoured.get("resourceSubscriptions")
        uris = [uri for uri in uris if isinstance(uri, str)] if isinstance(uris, list) else []
        stream.is_in_vain = not uris and not any(honoured.get(name) for name, _ in _LISTS.values())
        self._timers.cancel("acknowledged")
        before, self._current, self._next = self._current, stream, None
        self._failures = 0
        self._timers.set("lasting", MAX_RETRY, self._lasting)
        self._close(before)
        if self._has_missed:
            self._has_missed = False
            self._tell_missed(uris)
        waiting, stream.waiting = stream.waiting, []
        self._granted(waiting, {uri for uri in self._uris if uri not in uris})
        self._settle()
        if self._is_stale:
            self._open()

    def _tell_missed(self, uris: list[str]) -> None:
        for name in self._lists:  # also of those that it never tells of: it may be another backend that is back already
            self._link.tell(jsonrpc.parse(jsonrpc.notification(_LISTS[name][1])))
        for uri in uris:
            self._link.tell(jsonrpc.parse(jsonrpc.notification(revisions.RESOURCE_UPDATED, {"uri": uri})))

    def _lasting(self) -> None:
        """A stream that has lasted is asked for again at once."""
        self._delay = FIRST_RETRY

    def ended(self, stream: Stream, refusal: Refusal, code: int = 0) -> None:
        """A stream is over, or was not granted.

        :param code: of the error that says so.
        """
        if stream is self._next:
            self._next = None
            self._timers.cancel("acknowledged")
        elif stream is self._current:
            self._current = None
            self._has_missed = True
            self._timers.cancel("lasting")
        else:
            return
        log.debug("no stream of changes: {reason}", reason=refusal.reason)
        self._failures += 1
        if refusal.status == 0 and not stream.is_sent and not self._link.is_busy:
            self._link.lose(Loss(refusal.reason, reachable=False))
            return
        is_gateway = refusal.status >= GATEWAY
        if is_gateway or (400 <= refusal.status < 500 and self._has_missed):
            self._link.doubt(lambda: self._failed(stream, refusal, code), is_gateway=is_gateway)
        else:
            self._failed(stream, refusal, code)

    def _failed(self, stream: Stream, refusal: Refusal, code: int) -> None:
        self._is_unsupported = self._is_unsupported or code == -32601
        waiting, stream.waiting = stream.waiting, []
        if 400 <= refusal.status < 500 or self._failures >= MAX_FAILURES:
            self._fail(waiting, code or -32603, refusal.reason)
        else:
            self._waiting = waiting + self._waiting
        self._settle()
        if self._next is None and (self._waiting or (self._current is None and not self._is_unsupported)):
            self._timers.keep("again", self._delay, self._open)
            self._delay = min(self._delay * 2, MAX_RETRY)

    # -- answers -----------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if "gate" in self._timers:
            self._timers.cancel("gate")
            self._link.settled()

    def _granted(self, waiting: list[tuple[bytes, str]], missing: set[str]) -> None:
        """What was asked is done, but for the resources that the backend tells nothing of."""
        self._fail([each for each in waiting if each[1] in missing], -32602, "The server does not tell of it.")
        for identity, uri in waiting:
            if uri not in missing:
                self._answer(identity, jsonrpc.result(identity, {}))

    def _fail(self, waiting: list[tuple[bytes, str]], code: int, reason: str) -> None:
        for identity, uri in waiting:
            self._uris.pop(uri, None)
            self._answer(identity, jsonrpc.error(identity, code, reason))

    def _answer(self, identity: bytes, raw: bytes) -> None:
        self._link.tell(jsonrpc.parse(raw))
