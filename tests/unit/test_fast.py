"""The reactor on uvloop's event loop, and on asyncio's: over real sockets its connections behave as Twisted's."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Coroutine
from types import ModuleType
from typing import Any
from unittest import mock

import uvloop
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, serverFromString
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mcp_proxy import tap
from mcp_proxy.backend.connections import Pool
from mcp_proxy.backend.lean import Connection
from mcp_proxy.fast import MAX_UNSENT, FastReactor

LINGER_0 = struct.pack("ii", 1, 0)


class Watch(Protocol):
    """A side of a connection, and a producer, that writes down what happens to it."""

    transport: Any

    def __init__(self) -> None:
        self.got = bytearray()
        self.seen: list[str] = []
        self.reason: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        assert reason is not None
        self.reason = reason.type

    def pauseProducing(self) -> None:
        self.seen.append("pause")

    def resumeProducing(self) -> None:
        self.seen.append("resume")

    def stopProducing(self) -> None:
        self.seen.append("stop")


@implementer(IHalfCloseableProtocol)
class Half(Watch):
    def readConnectionLost(self) -> None:
        self.seen.append("read lost")

    def writeConnectionLost(self) -> None:
        self.seen.append("write lost")


class Failing(Watch):
    def dataReceived(self, data: bytes) -> None:
        raise ZeroDivisionError


class OnUvloop(SynchronousTestCase):
    """Each test has a reactor of its own, which runs while its scenario does."""

    protocol: type[Watch] = Watch

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return uvloop.new_event_loop()

    def setUp(self) -> None:
        self.reactor: Any = FastReactor(self.make_loop())

    def run_now(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run the reactor until the scenario is over; nothing is open then."""
        failures: list[Failure] = []
        deadline = self.reactor.callLater(20, self.reactor.stop)

        def over(result: Any) -> None:
            if isinstance(result, Failure):
                failures.append(result)
            deadline.cancel()
            self.reactor.callLater(0.01, self.reactor.stop)

        self.reactor.callWhenRunning(lambda: Deferred.fromCoroutine(scenario).addBoth(over))
        self.reactor.run(installSignalHandlers=False)
        self.reactor.loop.close()
        for failure in failures:
            failure.raiseException()
        self.assertFalse(deadline.active() or not deadline.cancelled, "it took too long")
        self.assertEqual(self.reactor.carriers, set())

    async def until(self, condition: Any) -> None:
        while not condition():
            await deferLater(self.reactor, 0.001)

    async def listen(self, where: str = "tcp:0:interface=127.0.0.1") -> list[Watch]:
        """Listen; what is returned gets the server's side of each connection."""
        made: list[Watch] = []

        def build() -> Watch:
            made.append(self.protocol())
            return made[-1]

        self.port = await serverFromString(self.reactor, where).listen(Factory.forProtocol(build))
        return made

    async def pair(self) -> tuple[Watch, socket.socket]:
        """Our side of a connection, and a plain socket as the other."""
        made = await self.listen()
        other = socket.create_connection(("127.0.0.1", self.port.getHost().port))
        self.addCleanup(other.close)
        await self.until(lambda: made and made[0].transport)
        return made[0], other

    async def end(self, *ours: Watch) -> None:
        """Nobody is connected any more."""
        await self.until(lambda: all(each.reason for each in ours))
        await self.port.stopListening()

    def endpoint(self) -> TCP4ClientEndpoint:
        host = self.port.getHost()
        return TCP4ClientEndpoint(self.reactor, host.host, host.port)

    async def client(self) -> Any:
        return await self.endpoint().connect(Factory.forProtocol(Watch))

    def test_both_ways(self) -> None:
        """Bytes go to and fro, and each side knows where the other one is; who hangs up and who is left hear alike."""

        async def scenario() -> None:
            made = await self.listen()
            client = await self.client()
            client.transport.write(b"to ")
            client.transport.writeSequence([b"and ", b"fro"])
            await self.until(lambda: made and made[0].got == b"to and fro")
            server = made[0]
            self.assertEqual(server.transport.getPeer(), client.transport.getHost())
            self.assertEqual(client.transport.getPeer(), self.port.getHost())
            client.transport.setTcpNoDelay(False)
            self.assertFalse(client.transport.getTcpNoDelay())
            client.transport.setTcpKeepAlive(True)
            self.assertTrue(client.transport.getTcpKeepAlive())
            client.transport.loseConnection()
            await self.end(client, server)
            self.assertEqual((client.reason, server.reason), (error.ConnectionDone, error.ConnectionDone))
            for transport in (client.transport, server.transport):  # whoever comes too late does no harm
                transport.write(b"late")
                transport.pauseProducing()
                transport.resumeProducing()
                transport.loseConnection()
                transport.abortConnection()
                self.assertFalse(transport.connected)
            client.transport.registerProducer(client, True)
            self.assertEqual(client.seen, ["stop"])

        self.run_now(scenario())

    def test_awake(self) -> None:
        """What decides whether to stay awake is told of what has come before it is handled."""

        async def scenario() -> None:
            ours, other = await self.pair()
            told: list[bytes] = []
            self.reactor.came = lambda: told.append(bytes(ours.got))
            for number in range(1, 4):
                other.sendall(b"x")
                await self.until(lambda number=number: len(ours.got) == number)
            self.assertEqual(told, [b"", b"x", b"xx"])
            other.close()
            await self.end(ours)

        self.run_now(scenario())

    def test_flush(self) -> None:
        """Who hangs up has everything sent before; the producer is paused while the other side does not read."""

        async def scenario() -> None:
            ours, other = await self.pair()
            ours.transport.registerProducer(ours, True)
            ours.transport.write(b"x" * 8_000_000)
            self.assertEqual(ours.seen, ["pause"])
            ours.transport.write(b"y")
            other.setblocking(False)
            got, asked = bytearray(), False
            while not got.endswith(b"z"):
                try:
                    got += other.recv(1 << 20)
                except BlockingIOError:
                    await deferLater(self.reactor, 0.001)
                if ours.seen[-1] == "resume" and not asked:
                    asked = True
                    ours.transport.unregisterProducer()
                    ours.transport.write(b"z")
                    ours.transport.loseConnection()
            self.assertEqual(bytes(got), b"x" * 8_000_000 + b"yz")
            self.assertEqual(ours.seen, ["pause", "resume"])
            await self.end(ours)
            self.assertEqual(ours.reason, error.ConnectionDone)

        self.run_now(scenario())

    def test_late_producer(self) -> None:
        """A producer that comes when the network is full already is told so."""

        async def scenario() -> None:
            ours, _ = await self.pair()
            ours.transport.write(b"x" * 8_000_000)
            ours.transport.registerProducer(ours, True)
            self.assertEqual(ours.seen, ["pause"])
            ours.transport.abortConnection()
            await self.end(ours)
            self.assertEqual(ours.seen, ["pause", "stop"])

        self.run_now(scenario())

    def test_not_read(self) -> None:
        """Whom we do not read is held up, and loses nothing."""

        async def scenario() -> None:
            ours, other = await self.pair()
            other.setblocking(False)
            ours.transport.pauseProducing()
            sent = 0
            while True:
                try:
                    sent += other.send(b"x" * MAX_UNSENT)
                except BlockingIOError:
                    break
            await deferLater(self.reactor, 0.05)
            self.assertEqual(ours.got, b"")
            ours.transport.resumeProducing()
            await self.until(lambda: len(ours.got) == sent)
            other.close()
            await self.end(ours)

        self.run_now(scenario())

    def test_abort(self) -> None:
        """Who is dropped while bytes wait for it gets a reset, and they are gone."""

        async def scenario() -> None:
            ours, other = await self.pair()
            ours.transport.write(b"x" * 8_000_000)
            ours.transport.abortConnection()
            ours.transport.write(b"late")
            await self.end(ours)
            self.assertEqual(ours.reason, error.ConnectionAborted)
            with self.assertRaises(ConnectionResetError):
                while other.recv(1 << 20):
                    pass

        self.run_now(scenario())

    def test_abort_while_closing(self) -> None:
        """Hanging up can be made haste with, when the other side reads nothing."""

        async def scenario() -> None:
            ours, _ = await self.pair()
            ours.transport.write(b"x" * 8_000_000)
            ours.transport.loseConnection()
            await deferLater(self.reactor, 0.01)
            self.assertIsNone(ours.reason)
            ours.transport.abortConnection()
            await self.end(ours)
            self.assertEqual(ours.reason, error.ConnectionAborted)

        self.run_now(scenario())

    def test_reset(self) -> None:
        """A reset by the other side is a connection lost, with what half-closing is asked for or without."""

        async def scenario() -> None:
            for self.protocol in (Watch, Half):
                ours, other = await self.pair()
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                other.close()
                await self.end(ours)
                self.assertEqual((ours.reason, ours.seen), (error.ConnectionLost, []))

        self.run_now(scenario())

    def test_half(self) -> None:
        """Who wants to know when the other side sends no more can still send, and ask the socket."""
        self.protocol = Half

        async def scenario() -> None:
            ours, other = await self.pair()
            other.sendall(b"all")
            other.shutdown(socket.SHUT_WR)
            await self.until(lambda: ours.seen)
            self.assertEqual((bytes(ours.got), ours.seen, ours.reason), (b"all", ["read lost"], None))
            handle = ours.transport.getHandle()
            self.assertEqual(handle.recv(1, socket.MSG_PEEK), b"")
            ours.transport.write(b"answer")
            ours.transport.loseWriteConnection()
            await self.until(lambda: len(ours.seen) == 2)
            ours.transport.loseConnection()
            await self.end(ours)
            self.assertEqual((other.recv(100), ours.seen[1:], handle.fileno()), (b"answer", ["write lost"], -1))

        self.run_now(scenario())

    def test_end(self) -> None:
        """Who does not want to know that is done with it, as in Twisted, whatever is still unsent."""

        async def scenario() -> None:
            ours, other = await self.pair()
            ours.transport.write(b"x" * 8_000_000)
            other.shutdown(socket.SHUT_WR)
            await self.end(ours)
            self.assertEqual(ours.reason, error.ConnectionDone)

        self.run_now(scenario())

    def test_acknowledged(self) -> None:
        """When the backend has closed its side, TCP tells what has arrived of a request on an idle connection."""

        told: list[int] = []
        end = Connection.readConnectionLost

        def tell(connection: Connection) -> None:
            told.append(connection._acknowledged())
            end(connection)

        async def scenario() -> None:
            made = await self.listen()
            pool = Pool(self.reactor, self.endpoint(), lambda: None)
            for is_seen in (True, False):
                connection = await pool.connect()
                await self.until(lambda: made and made[-1].transport)
                server = made.pop()
                connection._send(connection.transport, b"x" * 1000)
                connection._sent = 1000
                await self.until(lambda server=server: len(server.got) == 1000)
                self.assertTrue(connection.is_alive)
                server.transport.getHandle().shutdown(socket.SHUT_RDWR)
                if not is_seen:
                    connection._send(connection.transport, b"y" * 1000)
                    connection._sent = 2000
                with mock.patch.object(Connection, "readConnectionLost", tell):
                    await self.until(lambda server=server: server.reason)
            self.assertEqual(told, [1000, 1000])
            await self.port.stopListening()

        self.run_now(scenario())

    def test_refused(self) -> None:
        """Nobody listens: said at once, and as in Twisted; with a name as well."""

        async def scenario() -> None:
            await self.listen()
            port = self.port.getHost().port
            await self.port.stopListening()
            for endpoint in (
                TCP4ClientEndpoint(self.reactor, "127.0.0.1", port),
                HostnameEndpoint(self.reactor, "127.0.0.1", port),
            ):
                with self.assertRaises(error.ConnectionRefusedError):
                    await endpoint.connect(Factory.forProtocol(Watch))
            with self.assertRaises(error.DNSLookupError):
                await TCP4ClientEndpoint(self.reactor, "not-there.invalid", port).connect(Factory.forProtocol(Watch))

        self.run_now(scenario())

    def test_no_answer(self) -> None:
        """An attempt that nobody answers ends by its timeout, or when it is cancelled."""

        async def scenario() -> None:
            with socket.socket() as full:  # Linux lets a client wait when the queue is full
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                with socket.create_connection(full.getsockname()):
                    endpoint = TCP4ClientEndpoint(self.reactor, *full.getsockname(), timeout=0.05)
                    with self.assertRaises(error.TimeoutError):
                        await endpoint.connect(Factory.forProtocol(Watch))
                    endpoint = TCP4ClientEndpoint(self.reactor, *full.getsockname())
                    waiting = endpoint.connect(Factory.forProtocol(Watch))
                    waiting.cancel()
                    with self.assertRaises(error.ConnectingCancelledError):
                        await waiting

        self.run_now(scenario())

    def test_cancelled_late(self) -> None:
        """An attempt that is given up in the very moment when it succeeds leaves nothing behind."""

        async def scenario() -> None:
            made = await self.listen()
            host = self.port.getHost()
            for turns in range(6):
                waiting = TCP4ClientEndpoint(self.reactor, host.host, host.port).connect(Factory.forProtocol(Watch))
                for _ in range(turns):
                    await deferLater(self.reactor, 0)
                waiting.cancel()
                waiting.addCallbacks(lambda late: late.transport.abortConnection(), lambda failure: None)
            await deferLater(self.reactor, 0.05)
            await self.end(*made)

        self.run_now(scenario())

    def test_taken(self) -> None:
        """A port that is taken is refused when it is opened; who is not listened to any more is refused at once."""

        async def scenario() -> None:
            await self.listen()
            where = ("127.0.0.1", self.port.getHost().port)
            with self.assertRaises(error.CannotListenError):
                self.reactor.listenTCP(where[1], Factory.forProtocol(Watch), interface=where[0])
            stopping = self.port.stopListening()
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(where)
            await stopping
            port = self.reactor.listenTCP(0, Factory.forProtocol(Watch), interface="127.0.0.1")
            await port.stopListening()  # before the loop has begun to accept

        self.run_now(scenario())

    def test_ipv6(self) -> None:
        """It works over IPv6."""

        async def scenario() -> None:
            made = await self.listen(r"tcp6:0:interface=\:\:1")
            host = self.port.getHost()
            client = await HostnameEndpoint(self.reactor, "::1", host.port).connect(Factory.forProtocol(Watch))
            self.assertEqual(client.transport.getPeer(), host)
            client.transport.abortConnection()
            await self.until(lambda: made)
            await self.end(client, *made)

        self.run_now(scenario())

    def test_failure(self) -> None:
        """A protocol that fails loses its connection, and the log has the reason."""
        self.protocol = Failing

        async def scenario() -> None:
            ours, other = await self.pair()
            other.sendall(b"x")
            await self.end(ours)
            self.assertEqual(ours.reason, ZeroDivisionError)

        self.run_now(scenario())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nobody(self) -> None:
        """A factory that makes no protocol hangs up."""

        async def scenario() -> None:
            factory = Factory()
            factory.buildProtocol = lambda address: None  # type: ignore[method-assign]
            self.port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
            client = await self.client()
            await self.end(client)

        self.run_now(scenario())

    def test_reactor_stops(self) -> None:
        """When the reactor stops, connections that are open are told."""
        seen: list[Watch] = []

        async def scenario() -> None:
            seen.append((await self.pair())[0])

        self.run_now(scenario())
        self.assertEqual(seen[0].reason, error.ConnectionLost)


class OnAsyncio(OnUvloop):
    """The same on asyncio's own loop."""

    def make_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop()


class Choice(SynchronousTestCase):
    """Which reactor it becomes."""

    def install(self, choice: str, chosen: Any = None, has_uvloop: bool = True) -> list[str]:
        done: list[str] = []
        fast: Any = ModuleType("fast")
        fast.install = lambda: done.append("uvloop")
        fast.FastReactor = FastReactor
        with mock.patch.dict(sys.modules, {"mcp_proxy.fast": fast if has_uvloop else None}):
            sys.modules.pop("twisted.internet.reactor", None)
            if chosen is not None:
                sys.modules["twisted.internet.reactor"] = chosen
            tap._install_reactor(choice)
        return done

    def test_auto(self) -> None:
        """It is uvloop's if that is there, and nobody has chosen yet."""
        self.assertEqual(self.install("auto"), ["uvloop"])
        self.assertEqual(self.install("auto", chosen=object()), [])
        self.assertEqual(self.install("twisted"), [])

    def test_not_there(self) -> None:
        """Without uvloop it is Twisted's, unless uvloop was asked for: that is an error that says what to do."""
        self.assertEqual(self.install("auto", has_uvloop=False), [])
        problem = self.assertRaises(SystemExit, self.install, "uvloop", has_uvloop=False)
        self.assertIn("pip install '.[fast]'", str(problem.code))

    def test_asked_for(self) -> None:
        """Asked for, it must be the one."""
        self.assertEqual(self.install("uvloop"), ["uvloop"])
        self.assertEqual(self.install("uvloop", chosen=FastReactor.__new__(FastReactor)), [])
        self.assertRaises(SystemExit, self.install, "uvloop", chosen=object())
