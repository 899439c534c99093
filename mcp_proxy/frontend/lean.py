"""HTTP/1.1 for the MCP routes without twisted.web: few steps from the bytes of a request to its front, and back.

A connection reads one request after the other (``wire/http1.py``). A plain request for an MCP route goes to its
handler; any other one, odd or not, is answered by the site that Klein has made (``channel.py``), so what they mean is
said in one place.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IProtocolNegotiationFactory,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from mcp_proxy.direct import sender
from mcp_proxy.frontend import stream
from mcp_proxy.frontend.channel import SiteChannel
from mcp_proxy.frontend.lean_request import MAX_GATHERED, LeanRequest, LeanStream
from mcp_proxy.frontend.routes import IRoutes
from mcp_proxy.frontend.stream import told
from mcp_proxy.turn import Turn
from mcp_proxy.wire import http1
from mcp_proxy.wire.errors import ClientStalled, ProxyError, TooManyConnections, TooSlow
from mcp_proxy.wire.http1 import Request, RequestReader

#: Seconds for a head to come, for a pause within a body, and between two requests; and for a whole body.
TIMEOUT = 60.0
BODY_TIMEOUT = 600.0
#: How often, in seconds, connections are looked through for those whose time is up.
SWEEP_INTERVAL = 5.0
#: So many bytes of requests that come before their turn are kept; then the client is read no further.
MAX_AHEAD = 16 * 1024


@implementer(IProtocolFactory, IProtocolNegotiationFactory)
class LeanFactory:
    """Makes a connection for each client, and keeps time for all of them.

    :param site: answers what is no plain request for an MCP route.
    :ivar max_connections: more clients are refused; 0 is no limit.
    """

    max_connections = 0

    def __init__(
        self, routes: IRoutes, site: Any, clock: IReactorTime, max_body_bytes: int, stall_timeout: float
    ) -> None:
        self.routes = routes
        self.refused = routes.refused
        self.site = site
        self.clock = clock
        self.max_body_bytes = max_body_bytes
        self.stall_timeout = stall_timeout
        self.connections: set[Connection] = set()
        self.turn = Turn(clock)
        self._sweep: IDelayedCall | None = None
        self._date = (0, b"")

    def doStart(self) -> None:
        """The port is open."""

    def doStop(self) -> None:
        """The port is closed."""

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS; without this word Twisted refuses every client that asks (ALPN)."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        """A client has connected."""
        return Connection(self)

    def joined(self, connection: Connection) -> None:
        """A connection is open."""
        self.connections.add(connection)
        if self._sweep is None:
            self._sweep = self.clock.callLater(SWEEP_INTERVAL, self._look_through)

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than there may be."""
        return 0 < self.max_connections < len(self.connections)

    def left(self, connection: Connection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        if not self.connections and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def hang_up(self) -> bool:
        """Close each connection on which no answer is awaited, once its client has taken what it was sent.

        Tells whether there is none any more.
        """
        for connection in list(self.connections):
            connection.hang_up()
        return not self.connections

    def end_of_head(self) -> bytes:
        """The Date header."""
        now = int(self.clock.seconds())
        if self._date[0] != now:
            self._date = (now, b"Date: %b\r\n" % formatdate(now, usegmt=True).encode())
        return self._date[1]

    def _look_through(self) -> None:
        self._sweep = self.clock.callLater(SWEEP_INTERVAL, self._look_through)
        now = self.clock.seconds()
        for connection in list(self.connections):
            connection.check_time(now)


@implementer(IProtocol, IPushProducer)
class Connection:
    """One connection of a client's."""

    __slots__ = (
        "_began",
        "_current",
        "_gathered",
        "_is_closing",
        "_is_due",
        "_is_full",
        "_is_held",
        "_is_reading",
        "_out",
        "_reader",
        "_send",
        "_since",
        "factory",
        "transport",
    )

    transport: Any

    def __init__(self, factory: LeanFactory) -> None:
        self.factory = factory
        self._reader = RequestReader(factory.max_body_bytes, stream.MAX_SWALLOWED)
        self._current: LeanStream | SiteChannel | None = None
        self._out: list[bytes] = []
        self._gathered = 0
        self._is_due = False  # what is gathered will be sent without being asked for
        self._is_reading = self._is_closing = False
        self._is_full = False  # the client does not take what it is sent
        self._is_held = False  # the client is not read
        self._began = self._since = factory.clock.seconds()

    # -- the client's side -------------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The client is there."""
        self.transport = transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)
        self._send = sender(transport)
        self.factory.joined(self)
        if self.factory.is_crowded:
            self._refuse(TooManyConnections())

    def connectionMade(self) -> None:
        """See :meth:`makeConnection`."""

    def dataReceived(self, data: bytes) -> None:
        """The client sends."""
        if self._is_closing:
            return
        reader = self._reader
        is_ready = self._current is None and not (self._is_reading or self._is_full)
        if is_ready and (request := reader.whole(data)) is not None:
            self._began = self._since = self.factory.clock.seconds()
            self._serve(request)
            return
        if reader.is_between:
            self._began = self._since = self.factory.clock.seconds()
        elif reader.is_in_body:
            self._since = self.factory.clock.seconds()
        reader.feed(data)
        if self._current is None and not self._is_reading:
            self._advance()
        if self._is_held or self._is_full or reader.buffered:
            self._regulate()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone, or we have hung up."""
        self._is_closing = True
        self._out.clear()
        self.factory.left(self)
        current, self._current = self._current, None
        if current is not None:
            current.gone(reason)

    def pauseProducing(self) -> None:
        """The client does not take what it is sent, so no more requests of its are answered."""
        self._is_full = True
        self._since = self.factory.clock.seconds()
        if self._current is not None:
            self._current.pause()
        self._regulate()

    def resumeProducing(self) -> None:
        """It does again."""
        self._is_full = False
        self._since = self.factory.clock.seconds()
        if self._current is not None:
            self._current.resume()
        elif not self._is_reading:
            self._advance()
        self._regulate()

    def stopProducing(self) -> None:
        """See :meth:`connectionLost`."""

    def check_time(self, now: float) -> None:
        """Hang up if the client takes too long."""
        if self._is_closing or self._is_full:
            if self._current is None and now - self._since > self.factory.stall_timeout:
                self.factory.refused(ClientStalled())
                self.abort()
        elif self._current is None and (now - self._since > TIMEOUT or now - self._began > BODY_TIMEOUT):
            if self._reader.buffered or self._reader.is_in_body:
                self._refuse(TooSlow())
            else:
                self._close()

    # -- our side ----------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the client does not take what it is sent."""
        return self._is_full

    def gather(self, data: bytes) -> None:
        """Send bytes together with what else there is in this turn."""
        if self._is_closing:
            return
        self._out.append(data)
        self._gathered += len(data)
        if self._gathered > MAX_GATHERED:
            self.flush()
        elif not self._is_due and not self._is_reading:
            self._is_due = True
            self.factory.turn.at_end(self.flush)

    def send(self, data: bytes) -> None:
        """Send the end of an answer, and what was gathered before."""
        if self._is_closing:
            return
        self._out.append(data)
        self._gathered += len(data)
        if self._gathered > MAX_GATHERED:
            self.flush()
        elif not (self._is_reading or self._is_due):
            self._is_due = True
            self.factory.turn.soon(self.flush)

    def flush(self) -> None:
        """Send now."""
        self._is_due = False
        if self._out:
            out = self._out if self._gathered > MAX_GATHERED or len(self._out) == 1 else [b"".join(self._out)]
            self._out, self._gathered = [], 0
            for data in out:
                self._send(self.transport, data)

    def answered(self, *, is_persistent: bool) -> None:
        """The answer to the current request is complete."""
        self._current = None
        if self._is_closing:
            return
        self._began = self._since = self.factory.clock.seconds()
        if not is_persistent:
            self._close()
        elif not self._is_reading:
            if self._reader.buffered:
                self._advance()
            if self._is_held or self._is_full or self._reader.buffered:
                self._regulate()

    def hang_up(self) -> None:
        """Close, unless an answer is awaited, when the client has taken what it was sent."""
        if self._current is None:
            self._close()

    def abort(self) -> None:
        """Drop the connection."""
        self._is_closing = True
        self._out.clear()
        self.transport.abortConnection()

    def _close(self) -> None:
        self.flush()
        if not self._is_closing:
            self._is_closing = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _advance(self) -> None:
        """Answer the requests that have come; what that sends goes out as one."""
        reader = self._reader
        self._is_reading = True
        try:
            while self._current is None and not self._is_closing and not self._is_full:
                request = reader.next()
                if request is None:
                    if reader.take_continue():
                        self.send(http1.CONTINUE)
                    break
                self._serve(request)
        except ProxyError as error:
            self._refuse(error)
        finally:
            self._is_reading = False
            if self._out and not self._is_due:
                self._is_due = True
                self.factory.turn.soon(self.flush)

    def _serve(self, request: Request) -> None:
        routes = self.factory.routes
        handler = routes.find(request.method, request.path)
        if handler is None:
            channel = SiteChannel(self, request, self.factory.site)
            self._current = channel
            channel.serve()
            return
        answer = LeanStream(self, request)
        self._current = answer
        routes.answer(LeanRequest(self, request, answer), handler)

    def _refuse(self, error: ProxyError) -> None:
        """Answer what is no request."""
        status, body, headers = told(error)
        head = http1.head(status, headers, is_1_1=True, is_persistent=False)
        self.send(b"%b%bContent-Length: %d\r\n\r\n%b" % (head, self.factory.end_of_head(), len(body), body))
        self.factory.refused(error)
        self._close()

    def _regulate(self) -> None:
        """Read on, or not."""
        is_busy = self._current is not None
        is_held = not self._is_closing and (
            (is_busy and self._reader.buffered > MAX_AHEAD) or (self._is_full and not is_busy)
        )
        if is_held != self._is_held and not self._is_closing:
            self._is_held = is_held
            if is_held:
                self.transport.pauseProducing()
            else:
                self.transport.resumeProducing()
