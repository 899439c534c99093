"""Where the backend is, and the credentials that BACKEND_URL has for it."""

from __future__ import annotations

import socket
from base64 import b64encode
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import frozen
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint, ITCPTransport
from zope.interface import implementer

from mcp_proxy.wire.headers import Headers

#: Seconds between the addresses of a name; Twisted's 0.3 is also how late it tells of the last refusal.
ATTEMPT_DELAY = 0.05
#: After how many silent seconds the system asks whether the other side is there, how often it asks, and how often in
#: vain. Firewalls and balancers forget a silent connection, after four minutes the quickest of them, and tell nobody.
KEPT_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


@frozen
class Target:
    """Where the backend is: ``url`` has no credentials and no slash at its end."""

    url: str
    host: str
    port: int
    authorization: bytes = b""

    @classmethod
    def of(cls, url: str) -> Target:
        """Take BACKEND_URL apart."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        user_info, _, address = parts.netloc.rpartition("@")
        encoded = b64encode(unquote(user_info).encode()) if user_info else b""
        return cls(
            f"{parts.scheme}://{address}{parts.path.rstrip('/')}",
            parts.hostname or "",
            port,
            b"Basic " + encoded if encoded else b"",
        )

    @property
    def is_secure(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.url.startswith("https:")

    @property
    def origin(self) -> str:
        """Scheme, host and port, without a path."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def with_credentials(self, headers: Headers) -> Headers:
        """The headers, with the credentials of BACKEND_URL if the client has brought none."""
        if not self.authorization or any(name.lower() == b"authorization" for name, _ in headers):
            return headers
        return (*headers, (b"Authorization", self.authorization))


def endpoint_to(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """Where to connect to; like Twisted's own, but it learns of a refused connection sooner, and an address is no name.

    A connection may be silent for as long as a tool takes; the system looks whether it lives.

    :param timeout: seconds until an attempt is given up.
    """
    return _KeptAlive(_endpoint(reactor, host, port, timeout))


def _endpoint(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, timeout)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, timeout)
    return HostnameEndpoint(reactor, host, port, timeout=timeout, attemptDelay=ATTEMPT_DELAY)


@implementer(IStreamClientEndpoint)
@frozen
class _KeptAlive:
    """An endpoint whose connections the system looks after."""

    _endpoint: IStreamClientEndpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect."""
        return self._endpoint.connect(protocolFactory).addCallback(_keep_alive)


def _keep_alive(protocol: Any) -> Any:
    transport: Any = protocol.transport
    if ITCPTransport.providedBy(protocol.transport) and transport.connected:
        transport.setTcpKeepAlive(True)
        for name, value in KEPT_ALIVE:
            if hasattr(socket, name):  # not every system has them all
                transport.getHandle().setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return protocol
