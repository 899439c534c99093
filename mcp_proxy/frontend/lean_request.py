"""A request on a lean connection, and the answer to it."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.python.failure import Failure

from mcp_proxy.frontend.stream import STREAM_HEADERS, ClientRequest, ClientStream
from mcp_proxy.wire import http1
from mcp_proxy.wire.errors import ProxyError
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.http1 import Request

#: So many bytes are gathered within one turn of the reactor; more are not copied for that.
MAX_GATHERED = 32 * 1024


class IConnection(Protocol):
    """The connection that they are on."""

    factory: Any
    transport: Any

    @property
    def is_full(self) -> bool:
        """Whether the client does not take what it is sent."""

    def gather(self, data: bytes) -> None:
        """Send bytes together with what else there is in this turn."""

    def send(self, data: bytes) -> None:
        """Send the end of an answer, and what was gathered before."""

    def abort(self) -> None:
        """Drop the connection."""

    def answered(self, *, is_persistent: bool) -> None:
        """The answer to the current request is complete."""


class LeanRequest(ClientRequest):
    """A request on a lean connection."""

    __slots__ = ("_connection", "_request")

    def __init__(self, connection: IConnection, request: Request, answer: LeanStream) -> None:
        super().__init__(request.method, request.path, request.headers, answer, connection.factory.max_body_bytes)
        self._connection = connection
        self._request = request

    @property
    def has_length(self) -> bool:
        """Whether it says how long its body is, or that it comes in chunks."""
        return self._request.has_length

    @property
    def local_port(self) -> int:
        """The port that the client has reached."""
        return int(getattr(self._connection.transport.getHost(), "port", 0))

    @property
    def peer(self) -> str:
        """The address that the client has come from."""
        return str(getattr(self._connection.transport.getPeer(), "host", ""))

    def _body(self) -> bytes | None:
        body, self._request.body = self._request.body, b""
        return body


class LeanStream(ClientStream):
    """The answer to a request on a lean connection."""

    __slots__ = ("_connection", "_request")

    def __init__(self, connection: IConnection, request: Request) -> None:
        super().__init__(connection.factory.clock, connection.factory.stall_timeout)
        self._connection = connection
        self._request = request

    def refused(self, error: ProxyError) -> None:
        """Count what is refused."""
        self._connection.factory.refused(error)

    def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer at once."""
        if self.closed or self.started:
            return
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        if not http1.has_body(status):
            length, body = b"\r\n", b""
        head = self._head(status, headers) + length
        if len(body) > MAX_GATHERED:
            self._connection.gather(head)
            head = b""
        self._connection.send(head + body)
        self._finish(status)

    def start(self, headers: Headers = ()) -> None:
        """Begin an event stream."""
        if self.closed or self.started:
            return
        self.started = True
        end = b"Transfer-Encoding: chunked\r\n\r\n" if self._request.is_1_1 else b"\r\n"
        self._connection.gather(self._head(200, STREAM_HEADERS + headers) + end)
        self._request.headers = ()  # streams last, and nobody asks for them any more
        if self._connection.is_full:
            self.pauseProducing()

    def write(self, data: bytes) -> None:
        """Send bytes of the event stream."""
        if self.started and not self.closed and data:
            self._connection.gather(b"%x\r\n%b\r\n" % (len(data), data) if self._request.is_1_1 else data)

    def close(self) -> None:
        """End the event stream."""
        if self.started and not self.closed:
            self._connection.send(http1.LAST_CHUNK if self._request.is_1_1 else b"")
            self._finish(200)

    def abort(self) -> None:
        """Drop the connection."""
        if not self.closed:
            self._connection.abort()

    def pause(self) -> None:
        """The client does not take what it is sent."""
        if self.started:
            self.pauseProducing()

    def resume(self) -> None:
        """It does again."""
        if self.paused:
            self.resumeProducing()

    def gone(self, reason: Failure) -> None:
        """The client has gone."""
        self._over()

    def _head(self, status: int, headers: Headers) -> bytes:
        request = self._request
        headers = self._headers(headers) if self.shared else headers
        head = http1.head(status, headers, is_1_1=request.is_1_1, is_persistent=request.is_persistent)
        end: bytes = self._connection.factory.end_of_head()
        return head + end

    def _finish(self, status: int) -> None:
        request, connection = self._request, self._connection
        connection.factory.routes.told(request.method, request.path, status)
        self._over()
        connection.answered(is_persistent=request.is_persistent)
