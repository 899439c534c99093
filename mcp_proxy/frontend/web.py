"""HTTP by twisted.web: requests and answers that Klein hands out."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.server import Request

from mcp_proxy.frontend import stream
from mcp_proxy.frontend.stream import STREAM_HEADERS, ClientRequest, ClientStream, phrase, told
from mcp_proxy.wire.errors import ProxyError
from mcp_proxy.wire.headers import Fields, Headers


class LimitedRequest(Request):
    """A request that keeps no more of its body than allowed, whatever was announced."""

    max_body_bytes = 4 * 1024 * 1024
    #: What an answer does not say of itself is not said.
    defaultContentType = None
    too_large = False
    _kept: Any = None
    _seen = 0

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The request is complete. Its body is put aside for a moment, or twisted.web looks for a form in it."""
        self._kept, self.content = self.content, BytesIO()
        super().requestReceived(command, path, version)

    def process(self) -> None:
        """Answer it. An odd path is nowhere; Klein would mend it, or answer with HTML, and twisted.web takes ``*``."""
        self.content = self._kept
        self.content.seek(0)
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self.path = b"/odd"
        if b"//" in self.path or self.path == b"*":
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
            if self._seen > self.max_body_bytes + stream.MAX_SWALLOWED:
                self.channel.forceAbortClient()
        if not self.too_large and self.content is not None:
            self.content.write(data)


class TrackedChannel(HTTPChannel):
    """A connection of twisted.web's that its factory knows of (``joined``, ``channels``)."""

    factory: Any

    def connectionMade(self) -> None:
        """The client is there."""
        super().connectionMade()
        self.factory.joined(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client has gone, or we have hung up."""
        self.factory.channels.discard(self)
        super().connectionLost(reason)

    def hang_up(self) -> None:
        """Close, unless an answer is awaited, when the client has taken what it was sent."""
        if not self.requests:
            self.loseConnection()


class WebRequest(ClientRequest):
    """A request of twisted.web's."""

    __slots__ = ("_request", "web_stream")

    def __init__(
        self, request: Any, clock: IReactorTime, stall_timeout: float, refused: Callable[[ProxyError], None]
    ) -> None:
        headers = Fields(
            (name.lower(), value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values
        )
        method, path = request.method.decode("ascii", "replace"), request.path.decode("ascii", "replace")
        self.web_stream = WebStream(request, clock, stall_timeout, refused)
        super().__init__(method, path, headers, self.web_stream, getattr(request, "max_body_bytes", 0))
        self._request = request

    @property
    def has_length(self) -> bool:
        """Whether it says how long its body is, or that it comes in chunks."""
        return bool(self.header(b"content-length") or self.header(b"transfer-encoding"))

    @property
    def local_port(self) -> int:
        """The port that the client has reached."""
        return int(getattr(self._request.getHost(), "port", 0))

    @property
    def peer(self) -> str:
        """The address that the client has come from."""
        return str(getattr(self._request.getClientAddress(), "host", ""))

    def _body(self) -> bytes | None:
        content: bytes = self._request.content.read()
        return None if self._request.too_large else content


class WebStream(ClientStream):
    """The answer to a request of twisted.web's."""

    __slots__ = ("_refused", "_request")

    def __init__(
        self, request: Any, clock: IReactorTime, stall_timeout: float, refused: Callable[[ProxyError], None]
    ) -> None:
        super().__init__(clock, stall_timeout)
        self._request = request
        self._refused = refused
        request.notifyFinish().addBoth(lambda _: self._over())

    def refused(self, error: ProxyError) -> None:
        """Count what is refused."""
        self._refused(error)

    def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer at once."""
        if self.closed or self.started:
            return
        self._head(status, headers)
        self._request.setHeader(b"content-length", b"%d" % len(body))
        if self._request.method != b"HEAD":
            self._request.write(body)
        self._request.finish()

    def refuse(self, error: ProxyError, headers: Headers = ()) -> bytes:
        """Like :meth:`fail`, where Klein ends the answer: sets its head and returns its body."""
        status, body, headers = told(error, headers)
        self._head(status, headers)
        return body

    def allow(self, headers: Headers) -> bytes:
        """Answer a page of another origin with nothing but headers, where Klein ends the answer."""
        self.shared += headers
        self._head(204, ())
        return b""

    def start(self, headers: Headers = ()) -> None:
        """Begin an event stream."""
        if self.closed:
            return
        self._head(200, (*STREAM_HEADERS, *headers))
        self.started = True
        self._request.registerProducer(self, True)
        self._request.write(b"")

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
        self._request.setResponseCode(status, phrase(status))
        self._request.setHeader(b"server", b"mcp-proxy")
        for name, value in self._headers(headers):
            self._request.responseHeaders.addRawHeader(name, value)
