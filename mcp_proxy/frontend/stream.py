"""What a client asks, and the one place that answers it: all that the fronts see of HTTP.

Whatever twisted.web (see ``web.py``) leaves undefined once a client has gone is
fenced off by one flag, so callers need not care when that happens.
"""

from __future__ import annotations

from abc import abstractmethod
from http import HTTPStatus

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import BodyTooLarge, ClientStalled, ProxyError
from mcp_proxy.wire.headers import Headers, first_of

#: Of a body over the limit this much is read and forgotten, so that its sender can hear why it was refused.
MAX_SWALLOWED = 64 * 1024 * 1024

#: What the head of an event stream says.
STREAM_HEADERS: Headers = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
_SHARING = b"access-control-"
_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}
_JSON: Headers = ((b"content-type", b"application/json"),)


class ClientRequest:
    """What a client asks.

    :param headers: with names in lower case.
    :param max_body_bytes: what :meth:`body` says of a body that was not kept.
    """

    __slots__ = ("_max_body_bytes", "headers", "method", "path", "stream")

    def __init__(self, method: str, path: str, headers: Headers, stream: ClientStream, max_body_bytes: int) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.stream = stream
        self._max_body_bytes = max_body_bytes

    def header(self, name: bytes) -> bytes:
        """The value of a header, the first if there are several, or nothing; ``name`` in lower case."""
        return first_of(self.headers).get(name, b"")

    @property
    @abstractmethod
    def has_length(self) -> bool:
        """Whether it says how long its body is, or that it comes in chunks."""

    @property
    @abstractmethod
    def local_port(self) -> int:
        """The port that the client has reached."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """The address that the client has come from; nothing where there are none."""

    def body(self) -> bytes:
        """The body; to be called once.

        :raises BodyTooLarge: it has more bytes than allowed.
        """
        body = self._body()
        if body is None:
            raise BodyTooLarge(f"The body is larger than {self._max_body_bytes} bytes (MAX_BODY_BYTES).")
        return body

    @abstractmethod
    def _body(self) -> bytes | None:
        """The body, or None if it was too large to be kept."""


class Watcher:
    """Is told how a client takes its answer; this one does nothing about it."""

    __slots__ = ()

    def gone(self) -> None:
        """The answer is complete, or the client has gone; called once."""

    def paused(self) -> None:
        """The client does not keep up with its stream."""

    def resumed(self) -> None:
        """It does again."""


NOBODY = Watcher()


@implementer(IPushProducer)
class ClientStream:
    """The answer to one request: either whole (:meth:`respond`) or event by event (:meth:`start`, :meth:`write`).

    ``watcher`` is told what becomes of it. ``shared`` is what lets a page of another origin read the answer.

    :param stall_timeout: seconds after which a client that reads nothing is dropped.
    """

    __slots__ = ("_clock", "_done", "_stall", "_stall_timeout", "closed", "paused", "shared", "started", "watcher")

    def __init__(self, clock: IReactorTime, stall_timeout: float) -> None:
        self._clock = clock
        self._stall_timeout = stall_timeout
        self._stall: IDelayedCall | None = None
        self._done: Deferred[None] | None = None
        self.paused = False
        self.started = False
        self.closed = False
        self.shared: Headers = ()
        self.watcher = NOBODY

    def done(self) -> Deferred[None]:
        """Fires when the answer is complete or the client has gone; cancelling it means nothing. To be called once."""
        self._done = Deferred(lambda done: done.callback(None))
        if self.closed:
            self._done.callback(None)
        return self._done

    @abstractmethod
    def refused(self, error: ProxyError) -> None:
        """Count what is refused; for whoever refuses what the routes do not see."""

    @abstractmethod
    def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer at once."""

    def respond_json(self, status: int, text: bytes, headers: Headers = ()) -> None:
        """Answer with JSON text."""
        self.respond(status, text, _JSON + headers)

    def fail(self, error: ProxyError, headers: Headers = ()) -> None:
        """Answer with an error; a stream that has begun can only be cut off."""
        if self.started:
            self.abort()
        else:
            self.respond(*told(error, headers))

    @abstractmethod
    def start(self, headers: Headers = ()) -> None:
        """Begin an event stream; its head goes out now, not with the first event."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send bytes of the event stream."""

    @abstractmethod
    def close(self) -> None:
        """End the event stream."""

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection."""

    def _headers(self, headers: Headers) -> Headers:
        """The headers of the answer; who may read it is not for the backend to say."""
        if not self.shared:
            return headers
        return (*(header for header in headers if not header[0].lower().startswith(_SHARING)), *self.shared)

    def _over(self) -> None:
        """The answer is complete, or the client has gone; to be called once."""
        self.closed = True
        if self._stall is not None:
            self._unstall()
        # it knows the stream, and what refers to itself stays until somebody looks for garbage
        watcher, self.watcher = self.watcher, NOBODY
        watcher.gone()
        if self._done is not None and not self._done.called:
            self._done.callback(None)

    # -- back-pressure, from the transport ---------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client does not keep up."""
        self.paused = True
        if self._stall is None and not self.closed:
            self._stall = self._clock.callLater(self._stall_timeout, self._stalled)
            self.watcher.paused()

    def resumeProducing(self) -> None:
        """The client reads again."""
        self.paused = False
        self._unstall()
        if not self.closed:
            self.watcher.resumed()

    def stopProducing(self) -> None:
        """The client has gone, which :meth:`_over` tells as well."""

    def _stalled(self) -> None:
        self._stall = None
        self.refused(ClientStalled())
        self.abort()

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def told(error: ProxyError, headers: Headers = ()) -> tuple[int, bytes, Headers]:
    """How an error is told: status, body and headers."""
    answer = error.answer
    status = answer.status if answer.status >= 400 else 500
    own = tuple((name.encode(), value.encode()) for name, value in answer.headers.items())
    if status == HTTPStatus.TOO_MANY_REQUESTS and "retryAfterMs" in error.data:
        own = ((b"Retry-After", b"%d" % -(-error.data["retryAfterMs"] // 1000)),)
    text = jsonrpc.error(None, answer.code, error.message, {"source": "proxy", **error.data})
    return status, text, (*_JSON, *own, *headers)


def phrase(status: int) -> bytes:
    """What a status is called; nothing for one that has no name."""
    return _PHRASES.get(status, b"")
