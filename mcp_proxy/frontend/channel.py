"""What a request of twisted.web's takes for its channel: a lean connection with a request for the Klein site."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from mcp_proxy.wire.http1 import Request


class SiteChannel:
    """Carries one request to a site and its answer back, as an HTTPChannel or a stream of HTTP/2 does.

    :param connection: whose the request is.
    :param site: what answers it.
    """

    def __init__(self, connection: Any, request: Request, site: Any) -> None:
        self.site = self.factory = site
        self.transport = connection.transport
        self._connection = connection
        self._request = request
        self._web: Any = None
        self._producer: Any = None

    def serve(self) -> None:
        """Let the site answer."""
        request = self._request
        self._web = web = self.site.requestFactory(self)
        for name, value in request.headers:
            web.requestHeaders.addRawHeader(name, value)
        length = web.max_body_bytes + 1 if request.body is None else len(request.body)
        if request.has_length:
            web.requestHeaders.setRawHeaders(b"content-length", [b"%d" % length])
        if request.is_1_1 and not request.is_persistent:
            web.responseHeaders.setRawHeaders(b"connection", [b"close"])
        web.parseCookies()
        web.gotLength(length)
        if request.body is not None:
            web.handleContentChunk(request.body)
        version = b"HTTP/1.1" if request.is_1_1 else b"HTTP/1.0"
        web.requestReceived(request.method.encode("ascii"), request.target.encode("ascii"), version)

    # -- for the request ---------------------------------------------------------------------------------------

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """The head of the answer."""
        if isinstance(headers, Headers):
            headers = [(name, value) for name, values in headers.getAllRawHeaders() for value in values]
        lines = [b"%b %b %b" % (version, code, reason), *(b"%b: %b" % header for header in headers), b"", b""]
        self.write(b"\r\n".join(lines))

    def write(self, data: bytes) -> None:
        """More of the answer."""
        self._connection.gather(data)

    def writeSequence(self, data: list[bytes]) -> None:
        """More of the answer."""
        self.write(b"".join(data))

    def requestDone(self, request: Any) -> None:
        """The answer is complete."""
        self._connection.send(b"")
        self._connection.answered(is_persistent=self._request.is_persistent)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """The answer can be paused."""
        if not streaming:
            raise NotImplementedError("nothing here makes its answer when it is asked to")
        self._producer = producer
        if self._connection.is_full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """It can be paused no longer."""
        self._producer = None

    def loseConnection(self) -> None:
        """The connection is to end with this answer."""
        self._request.is_persistent = False

    def forceAbortClient(self) -> None:
        """Drop the connection."""
        self._connection.abort()

    def isSecure(self) -> bool:
        """Whether the client came by TLS."""
        return getattr(self.transport, "getPeerCertificate", None) is not None

    def getPeer(self) -> Any:
        """The client's address."""
        return self.transport.getPeer()

    def getHost(self) -> Any:
        """Our own."""
        return self.transport.getHost()

    # -- for the connection ------------------------------------------------------------------------------------

    def pause(self) -> None:
        """The client does not take what it is sent."""
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume(self) -> None:
        """It does again."""
        if self._producer is not None:
            self._producer.resumeProducing()

    def gone(self, reason: Failure) -> None:
        """The client has gone."""
        if self._web is not None:
            self._web.connectionLost(reason)
