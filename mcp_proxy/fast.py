"""Twisted on uvloop: a reactor whose TCP connections are transports of the event loop's own.

The loop's own transports cost less than Twisted's, on whatever reactor. So this is Twisted's asyncio reactor, but for
the transports, ports and connectors of TCP (and of TLS, which stands on them).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvloop
from twisted.internet import error, tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    IReactorTCP,
    ITCPTransport,
)
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .awake import LoopWatch

log = Logger()

#: So many bytes may wait for the network before a producer is paused; it goes on when none do. As in Twisted.
MAX_UNSENT = 64 * 1024
#: Closing drops what is unsent, and the other side is told (RST).
_AT_ONCE = struct.pack("ii", 1, 0)

Address = IPv4Address | IPv6Address


def install() -> None:
    """Make it the reactor of this process."""
    installReactor(FastReactor(uvloop.new_event_loop()))


@implementer(IReactorTCP)
class FastReactor(AsyncioSelectorReactor):
    """Twisted's reactor for an event loop, with TCP of the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.carriers: set[Carrier] = set()
        self.came = LoopWatch(loop.call_soon).came
        super().__init__(loop)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        """Accept connections."""
        opened = Port(port, factory, backlog, interface, self)
        opened.startListening()
        return opened

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None) -> Connector:
        """Make a connection."""
        connector = Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def at_turns_end(self, work: Callable[[], None]) -> None:
        """Do this when what is ready now has been handled; see :class:`~mcp_proxy.turn.Turn`."""
        self.loop.call_soon(work)

    def getReaders(self) -> list[Any]:
        """What is open."""
        return [*super().getReaders(), *self.carriers]

    def removeAll(self) -> list[Any]:
        """What was open, to be told that it is not."""
        return [*super().removeAll(), *self.carriers]


class Port(tcp.Port):
    """A port that leaves it to the loop to accept."""

    reactor: FastReactor
    factory: Any
    _server: asyncio.AbstractServer | None = None
    _starting: asyncio.Task[None] | None = None

    def startReading(self) -> None:
        """Accept; the socket listens already."""
        self._starting = self.reactor.loop.create_task(self._serve(self.socket.dup()))

    async def _serve(self, listening: socket.socket) -> None:
        try:
            server = await self.reactor.loop.create_server(self._accept, sock=listening, backlog=self.backlog)
        except Exception:
            listening.close()
            log.failure("a port cannot be served")
            return
        if self._starting is None:
            server.close()
        else:
            self._server = server

    def _accept(self) -> Carrier:
        return Carrier(self.reactor, self.factory.buildProtocol, _nobody)

    def stopReading(self) -> None:
        """Accept no more."""
        self._starting = None
        if self.connected:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # from now on; it is closed in the next turn
        server, self._server = self._server, None
        if server is not None:
            server.close()


class Connector(tcp.Connector):
    """A connector whose attempts are the loop's."""

    reactor: FastReactor
    transport: Any
    bindAddress: Any

    def _makeTransport(self) -> Any:
        return _Attempt(self)


class _Attempt:
    """What stands for the transport until there is one."""

    __slots__ = ("_carrier", "_connector", "_is_connected", "_is_over", "_task")

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._is_over = self._is_connected = False
        self._carrier = Carrier(connector.reactor, self._connected, self._lost)
        self._task: asyncio.Task[None] | None = connector.reactor.loop.create_task(self._connect())

    async def _connect(self) -> None:
        where = self._connector
        try:
            await where.reactor.loop.create_connection(
                lambda: self._carrier, where.host, where.port, local_addr=where.bindAddress
            )
        except socket.gaierror as problem:
            self.failIfNotConnected(error.DNSLookupError(str(problem)))
        except OSError as problem:
            self.failIfNotConnected(error.getConnectError((problem.errno, problem.strerror)))

    def _connected(self, address: Address) -> IProtocol | None:
        if self._is_over:
            return None
        self._is_over = self._is_connected = True
        self._task = None  # the loop has it until it has ended
        self._connector.transport = self._carrier
        return self._connector.buildProtocol(address)

    def _lost(self, reason: Failure) -> None:
        if self._is_connected:
            self._connector.connectionLost(reason)

    def failIfNotConnected(self, problem: BaseException) -> None:
        """Give up."""
        if not self._is_over:
            self._is_over = True
            if self._task is not None:
                self._task.cancel()
            self._connector.connectionFailed(Failure(problem))


@implementer(ITCPTransport, IConsumer, IPushProducer)
class Carrier(asyncio.Protocol):
    """A connection: to the loop a protocol of asyncio's, to a protocol of Twisted's its transport.

    :param build: makes the protocol, given the other side's address.
    :param lost: called when the connection is over, after the protocol.
    """

    __slots__ = (
        "_build",
        "_handle",
        "_host",
        "_is_full",
        "_lost",
        "_peer",
        "_producer",
        "_reason",
        "_transport",
        "disconnecting",
        "protocol",
        "reactor",
    )

    def __init__(
        self, reactor: FastReactor, build: Callable[[Address], IProtocol | None], lost: Callable[[Failure], object]
    ) -> None:
        self.reactor = reactor
        self.disconnecting = False
        self._build = build
        self._lost = lost
        self._transport: Any = None
        self.protocol: Any = None
        self._producer: Any = None
        self._reason: Failure | None = None  # why we have hung up, if it was not for the usual reason
        self._handle: socket.socket | None = None
        self._peer: Any = None
        self._host: Any = None
        self._is_full = False

    @property
    def connected(self) -> bool:
        """Whether it is not over."""
        return self._transport is not None

    def logPrefix(self) -> str:
        """What Twisted calls it in its log."""
        return type(self.protocol).__name__

    # -- for the loop ------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """The connection is there."""
        self._transport = transport
        transport.set_write_buffer_limits(high=MAX_UNSENT, low=0)
        self.reactor.carriers.add(self)
        try:
            where = transport.get_extra_info("peername")
            if where is not None:  # else it has gone already
                self._peer = _address(where)
                self.protocol = self._build(self._peer)
                self._build = _nowhere
            if self.protocol is None:
                self.connectionLost(Failure(error.ConnectionDone()))
            else:
                self.protocol.makeConnection(self)
        except Exception:
            self._failed()

    def data_received(self, data: bytes) -> None:
        """The other side has sent this."""
        self.reactor.came()
        try:
            self.protocol.dataReceived(data)
        except Exception:
            self._failed()

    def eof_received(self) -> bool:
        """The other side will send no more; the socket is still open, so that it can be asked."""
        protocol = IHalfCloseableProtocol(self.protocol, None)
        if protocol is None:
            self._transport.abort()
        else:
            try:
                protocol.readConnectionLost()
            except Exception:
                self._failed()
        return True

    def pause_writing(self) -> None:
        """The network does not take what it is given."""
        self._is_full = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resume_writing(self) -> None:
        """It has taken all of it."""
        self._is_full = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is over."""
        self.connectionLost(self._reason or Failure(error.ConnectionLost() if exc else error.ConnectionDone()))

    def _failed(self) -> None:
        """Drop the connection, because the protocol has raised something."""
        self._reason = Failure()
        log.failure("Unhandled error in a protocol", self._reason)
        self._transport.abort()

    # -- for the reactor ---------------------------------------------------------------------------------------

    def connectionLost(self, reason: Failure) -> None:
        """Tell the protocol that the connection is over, and make sure that it is."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self.reactor.carriers.discard(self)
        if self._handle is not None:
            self._handle.detach()  # it was only lent
        transport.abort()
        producer, self._producer = self._producer, None
        protocol, self.protocol = self.protocol, None
        try:
            if producer is not None:
                producer.stopProducing()
            if protocol is not None:
                protocol.connectionLost(reason)
            self._lost(reason)
        except Exception:
            log.failure("Unhandled error in a protocol")

    # -- for the protocol --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send; what the network does not take at once waits."""
        if self._transport is not None:
            self._transport.write(data)

    def writeSequence(self, data: Any) -> None:
        """Send these, one after the other."""
        if self._transport is not None:
            self._transport.writelines(data)

    def loseConnection(self) -> None:
        """Hang up when all is sent."""
        self.disconnecting = True
        if self._transport is not None:
            self._transport.close()

    def loseWriteConnection(self) -> None:
        """Send no more."""
        if self._transport is not None:
            self._transport.write_eof()
            protocol = IHalfCloseableProtocol(self.protocol, None)
            if protocol is not None:
                self.reactor.loop.call_soon(protocol.writeConnectionLost)

    def abortConnection(self) -> None:
        """Hang up now."""
        self.disconnecting = True
        if self._transport is not None and self._reason is None:
            self._reason = Failure(error.ConnectionAborted())
            self._set(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self._transport.abort()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Pause and resume this one as the network is full or not."""
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if not streaming:
            raise NotImplementedError("nothing here sends only when it is asked to")
        if self._transport is None:
            producer.stopProducing()
            return
        self._producer = producer
        if self._is_full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """There is nothing to pause any more."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Read no more for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def stopProducing(self) -> None:
        """Hang up."""
        self.loseConnection()

    def getPeer(self) -> Any:
        """The other side's address."""
        return self._peer

    def getHost(self) -> Any:
        """Our own address."""
        if self._host is None:
            self._host = _address(self._transport.get_extra_info("sockname"))
        return self._host

    def getHandle(self) -> socket.socket:
        """The socket, which stays the loop's: to be asked, not to be closed."""
        if self._handle is None:
            self._handle = socket.socket(fileno=self._transport.get_extra_info("socket").fileno())
        return self._handle

    def getTcpNoDelay(self) -> bool:
        """Whether small pieces go out at once."""
        return bool(self._get(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Whether small pieces are to go out at once."""
        self._set(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:
        """Whether the system looks after a silent connection."""
        return bool(self._get(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Whether the system is to look after a silent connection."""
        self._set(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    def _get(self, level: int, option: int) -> Any:
        return self._transport.get_extra_info("socket").getsockopt(level, option)

    def _set(self, level: int, option: int, value: Any) -> None:
        self._transport.get_extra_info("socket").setsockopt(level, option, value)


def _address(where: tuple[Any, ...]) -> Address:
    return IPv4Address("TCP", *where) if len(where) == 2 else IPv6Address("TCP", *where)


def _nobody(reason: Failure) -> None:
    """Nobody else is to be told."""


def _nowhere(address: Address) -> None:
    """There is a protocol already."""
