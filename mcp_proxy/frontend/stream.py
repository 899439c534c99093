"""The only owner of a client's HTTP request: what it asks, and the one place that answers it.

Everything that Twisted leaves undefined once a client has gone (writing, finishing, producers) is fenced off by one
flag, so callers need not care when that happens.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.server import Request
from zope.interface import implementer

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import BodyTooLarge, ProxyError
from mcp_proxy.wire.headers import Headers

#: Of a body over the limit this much is read and forgotten, so that its sender can hear why it was refused.
MAX_SWALLOWED = 64 * 1024 * 1024


class LimitedRequest(Request):
    """A request that keeps no more of its body than allowed, whatever was announced."""

    max_body_bytes = 4 * 1024 * 1024
    too_large = False
    _seen = 0

    def process(self) -> None:
        """The request is complete. An odd path is nowhere; Klein would mend it, or answer with HTML."""
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self.path = b"/odd"
        if b"//" in self.path:
            self.path = b"/odd"
        super().process()

    def getRequestHostname(self) -> bytes:
        """Klein's router wants a name, and fails on an odd one; routes do not depend on it, and the guard judges it."""
        return b"localhost"

    def gotLength(self, length: int | None) -> None:
        """A body is to come; small or large, it is kept in memory."""
        self.too_large = length is not None and length > self.max_body_bytes
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """More of the body."""
        self._seen += len(data)
        if self._seen > self.max_body_bytes:
            self.too_large = True
            self.content = BytesIO()
            if self._seen > self.max_body_bytes + MAX_SWALLOWED:
                self.channel.forceAbortClient()
        if not self.too_large and self.content is not None:
            self.content.write(data)


@frozen
class ClientRequest:
    """What a client asks: the fronts see no more of HTTP than this."""

    method: str
    path: str
    headers: Headers
    stream: ClientStream
    _request: Any

    @classmethod
    def of(cls, request: Any, clock: IReactorTime, stall_timeout: float) -> ClientRequest:
        """Take over a request of Twisted's."""
        headers = tuple(
            (name.lower(), value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values
        )
        stream = ClientStream(request, clock, stall_timeout)
        path = request.path.decode("ascii", "replace")
        return cls(request.method.decode("ascii", "replace"), path, headers, stream, request)

    def header(self, name: bytes) -> bytes:
        """The value of a header, or nothing; ``name`` in lower case."""
        return next((value for own, value in self.headers if own == name), b"")

    @property
    def local_port(self) -> int:
        """The port that the client has reached."""
        return int(getattr(self._request.getHost(), "port", 0))

    def body(self) -> bytes:
        """The body.

        :raises BodyTooLarge: it has more bytes than allowed.
        """
        if self._request.too_large:
            raise BodyTooLarge(f"The body is larger than {self._request.max_body_bytes} bytes (MAX_BODY_BYTES).")
        content: bytes = self._request.content.read()
        return content


@implementer(IPushProducer)
class ClientStream:
    """The answer to one request: either whole (:meth:`respond`) or event by event (:meth:`start`, :meth:`write`).

    :param stall_timeout: seconds after which a client that reads nothing is dropped.
    """

    def __init__(self, request: Any, clock: IReactorTime, stall_timeout: float) -> None:
        self._request = request
        self._clock = clock
        self._stall_timeout = stall_timeout
        self._stall: IDelayedCall | None = None
        self.paused = False
        self.started = False
        self.closed = False
        # Klein cancels what a route returned when the client goes; that must not look like a failure
        self._done: Deferred[None] = Deferred(lambda done: done.callback(None))
        self.on_gone: Callable[[], None] = lambda: None
        self.on_pause: Callable[[], None] = lambda: None
        self.on_resume: Callable[[], None] = lambda: None
        request.notifyFinish().addBoth(self._over)

    def done(self) -> Deferred[None]:
        """Fires when the answer is complete or the client has gone."""
        return self._done

    def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer at once."""
        if self.closed or self.started:
            return
        self._head(status, headers)
        self._request.setHeader(b"content-length", b"%d" % len(body))
        if self._request.method != b"HEAD":
            self._request.write(body)
        self._request.finish()

    def respond_json(self, status: int, text: bytes, headers: Headers = ()) -> None:
        """Answer with JSON text."""
        self.respond(status, text, ((b"content-type", b"application/json"), *headers))

    def fail(self, error: ProxyError, headers: Headers = ()) -> None:
        """Answer with an error; a stream that has begun can only be cut off."""
        if self.started:
            self.abort()
            return
        self.respond(*self._told(error, headers))

    def refuse(self, error: ProxyError, headers: Headers = ()) -> bytes:
        """The same where the caller's framework ends the answer: sets its head and returns its body."""
        status, body, headers = self._told(error, headers)
        self._head(status, headers)
        return body

    @staticmethod
    def _told(error: ProxyError, headers: Headers) -> tuple[int, bytes, Headers]:
        answer = error.answer
        status = answer.status if answer.status >= 400 else 500
        own = tuple((name.encode(), value.encode()) for name, value in answer.headers.items())
        text = jsonrpc.error(None, answer.code, error.message, {"source": "proxy", **error.data})
        return status, text, ((b"content-type", b"application/json"), *own, *headers)

    def start(self, headers: Headers = ()) -> None:
        """Begin an event stream."""
        if self.closed:
            return
        self._head(
            200,
            (
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-cache, no-transform"),
                (b"x-accel-buffering", b"no"),
                *headers,
            ),
        )
        self.started = True
        self._request.registerProducer(self, True)
        self._request.write(b"")  # the head goes out now, not with the first event

    def write(self, data: bytes) -> None:
        """Send bytes of the event stream."""
        if self.started and not self.closed:
            self._request.write(data)

    def close(self) -> None:
        """End the event stream."""
        if self.started and not self.closed:
            self._request.unregisterProducer()
            self._request.finish()

    def abort(self) -> None:
        """Drop the connection."""
        if not self.closed:
            self._request.channel.forceAbortClient()

    def _head(self, status: int, headers: Headers) -> None:
        self._request.setResponseCode(status, HTTPStatus(status).phrase.encode())
        self._request.setHeader(b"server", b"mcp-proxy")
        for name, value in headers:
            self._request.responseHeaders.addRawHeader(name, value)

    def _over(self, _: object) -> None:
        self.closed = True
        self._unstall()
        self.on_gone()
        if not self._done.called:
            self._done.callback(None)

    # -- back-pressure, from the transport ---------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client does not keep up."""
        self.paused = True
        if self._stall is None and not self.closed:
            self._stall = self._clock.callLater(self._stall_timeout, self._stalled)
            self.on_pause()

    def resumeProducing(self) -> None:
        """The client reads again."""
        self.paused = False
        self._unstall()
        if not self.closed:
            self.on_resume()

    def stopProducing(self) -> None:
        """The client has gone; ``notifyFinish`` tells as well."""

    def _stalled(self) -> None:
        self._stall = None
        self.abort()

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
