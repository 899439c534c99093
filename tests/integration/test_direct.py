"""Sending past the reactor: the private names that it needs are there, it keeps the order, and it can do without."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

from twisted.internet import reactor as _reactor
from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.trial.unittest import TestCase

from mcp_proxy import awake, direct
from mcp_proxy.turn import Turn
from tests.support.waiting import until

reactor: Any = _reactor


class Taker(Protocol):
    """A client that counts what it gets, and can stop reading."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.connected_now: Deferred[None] = Deferred()
        self.lost = False

    def connectionMade(self) -> None:
        """There."""
        self.connected_now.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """More."""
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        """Gone."""
        self.lost = True


class Server(Protocol):
    """The side that sends."""

    made: list[Server]
    lost = False

    def connectionMade(self) -> None:
        """There."""
        self.made.append(self)

    def connectionLost(self, reason: Any = None) -> None:
        """Gone."""
        self.lost = True


class Direct(TestCase):
    timeout = 20

    async def setUp(self) -> None:  # type: ignore[override]  # trial awaits it
        """A connection over a real socket."""
        made: list[Server] = []
        server = type("_Server", (Server,), {"made": made})
        self.port = tcp.Port(0, Factory.forProtocol(server), interface="127.0.0.1", reactor=reactor)
        self.port.startListening()
        self.taker = Taker()
        self.connector = tcp.Connector(
            "127.0.0.1", self.port.getHost().port, factory_for(self.taker), 10, None, reactor
        )
        self.connector.connect()
        await self.taker.connected_now
        await self.until(lambda: made)
        self.server = made[0]
        self.transport: Any = self.server.transport

    async def tearDown(self) -> None:  # type: ignore[override]  # trial awaits it
        """Nothing stays open."""
        self.transport.abortConnection()
        self.connector.disconnect()
        await self.until(lambda: self.server.lost and self.taker.lost)
        await self.port.stopListening()

    async def until(self, condition: Any) -> None:
        """Wait."""
        await until(reactor, condition, "", 10.0)

    async def test_names(self) -> None:
        """This Twisted has the private names; if one is missing, the fast way is off, and that is to be known."""
        self.assertEqual([name for name in direct.PRIVATE if not hasattr(self.transport, name)], [])
        self.assertIs(direct.sender(self.transport), direct.send)

    async def test_at_once(self) -> None:
        """With nothing queued the bytes are with the kernel at once, and the reactor is asked for nothing."""
        direct.send(self.transport, b"now")
        self.assertNotIn(self.transport, reactor.getWriters())
        self.assertEqual(self.transport._tempDataBuffer, [])
        await self.until(lambda: self.taker.got == b"now")

    async def test_order(self) -> None:
        """When the client does not take it all, the rest waits in its order, behind what was there before."""
        send = partial(direct.send, self.transport)
        self.taker.transport.pauseProducing()  # type: ignore[union-attr]
        pieces = [bytes([number]) * 300_000 for number in range(40)]
        for number, piece in enumerate(pieces):
            (send if number % 3 else self.transport.write)(piece)
        self.assertIn(self.transport, reactor.getWriters())
        self.taker.transport.resumeProducing()  # type: ignore[union-attr]
        await self.until(lambda: len(self.taker.got) == 40 * 300_000)
        self.assertEqual(bytes(self.taker.got), b"".join(pieces))

    async def test_pressure(self) -> None:
        """The producer is paused when the client does not read, and resumed when it does."""
        producer = mock.Mock(spec=("pauseProducing", "resumeProducing", "stopProducing"))
        self.transport.registerProducer(producer, True)
        self.taker.transport.pauseProducing()  # type: ignore[union-attr]
        send, sent = partial(direct.send, self.transport), 0
        while not producer.pauseProducing.called:
            send(b"x" * 100_000)
            sent += 100_000
        self.taker.transport.resumeProducing()  # type: ignore[union-attr]
        await self.until(lambda: producer.resumeProducing.called and len(self.taker.got) == sent)
        self.transport.unregisterProducer()

    async def test_gone(self) -> None:
        """Sending to a client that has gone is no failure, whoever has hung up."""
        send = partial(direct.send, self.transport)
        self.connector.disconnect()
        for _ in range(50):
            send(b"x" * 100_000)
        await self.until(lambda: self.server.lost)
        send(b"late")

    async def test_closing(self) -> None:
        """What was sent before the connection is closed arrives."""
        send = partial(direct.send, self.transport)
        send(b"la")
        send(b"st")
        self.transport.loseConnection()
        await self.until(lambda: self.taker.lost)
        self.assertEqual(bytes(self.taker.got), b"last")

    async def test_public_way(self) -> None:
        """If a name is missing, or there is another layer in between, it is the transport's own method that writes."""
        with mock.patch.object(direct, "PRIVATE", (*direct.PRIVATE, "_not_there")):
            self.assertIs(direct.sender(self.transport), direct.write)
        with mock.patch.object(self.transport, "TLS", True):
            self.assertIs(direct.sender(self.transport), direct.write)
        direct.write(self.transport, b"both ")
        self.transport.write(b"work")
        await self.until(lambda: self.taker.got == b"both work")


def factory_for(protocol: Protocol) -> Any:
    """A client's factory that has only this protocol."""
    factory: Any = ClientFactory()
    factory.buildProtocol = lambda address: protocol
    return factory


class Poll:
    """What is ready, turn by turn."""

    def __init__(self, *turns: list[tuple[int, int]]) -> None:
        self.turns = list(turns)
        self.asked: list[tuple[float, int]] = []

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """Those of the next turn."""
        self.asked.append((timeout, most))
        return self.turns.pop(0)


class EPollReactor:
    """A reactor that handles what is ready by writing it down."""

    def __init__(self, *turns: list[tuple[int, int]]) -> None:
        self._poller = Poll(*turns)
        self._selectables: dict[int, str] = {3: "three", 4: "four", 5: "five"}
        self.handled: list[tuple[str, int, int]] = []

    def doIteration(self, timeout: float | None) -> None:
        """The long way."""

    def _doReadOrWrite(self, selectable: str, descriptor: int, event: int) -> None:
        self.handled.append((selectable, descriptor, event))
        if selectable == "three":
            self._selectables.pop(4, None)  # the end of one connection can be that of another
            raise RuntimeError("it cannot be ended")


class Quick(TestCase):
    def setUp(self) -> None:
        """Nobody stays awake; that has tests of its own."""
        self.patch(awake, "AWAKE", 0.0)

    def test_names(self) -> None:
        """This Twisted has the private names of the reactor on epoll; else the fast way is off, and that is known."""
        if type(reactor).__name__ == "EPollReactor":
            self.assertEqual([name for name in direct.POLL_PRIVATE if not hasattr(reactor, name)], [])

    def test_turn(self) -> None:
        """Each that is ready is handled, whatever becomes of another; what has ended meanwhile is not."""
        fake = EPollReactor([(3, 1), (4, 1), (5, 4)], [])
        self.assertTrue(direct.quicken(fake))
        fake.doIteration(1.5)
        fake.doIteration(None)
        self.assertEqual(fake.handled, [("three", 3, 1), ("five", 5, 4)])
        self.assertEqual(fake._poller.asked, [(1.5, 3), (-1, 2)])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_end(self) -> None:
        """What is to be done at the end of a turn is done when all that was ready is handled, in order.

        What asks for it in between, or at that moment, has the next turn wait for nothing.
        """
        fake = EPollReactor([(5, 1)], [], [(4, 1)])
        direct.quicken(fake)
        done: list[str] = []
        for turn in (Turn(fake), Turn(fake)):
            for _ in range(2):
                turn.at_end(lambda: done.append(str(len(fake.handled))))
        turn.at_end(lambda: turn.at_end(lambda: done.append("again")))
        self.assertEqual(done, [])
        fake.doIteration(7.0)
        self.assertEqual(done, ["1"] * 4)
        fake.doIteration(7.0)
        self.assertEqual(done[4:], ["again"])
        fake.doIteration(7.0)
        self.assertEqual([timeout for timeout, _ in fake._poller.asked], [0, 0, 7.0])

    def test_twice(self) -> None:
        """Two proxies can run on one reactor: what the first has put off is not forgotten for the second."""
        fake, done = EPollReactor([]), list[str]()
        direct.quicken(fake)
        Turn(fake).at_end(lambda: done.append("first"))
        self.assertTrue(direct.quicken(fake))
        fake.doIteration(None)
        self.assertEqual(done, ["first"])

    def test_others(self) -> None:
        """Another reactor, or one without these names, goes its own way."""
        for fake in (object(), type("EPollReactor", (), {})()):
            self.assertFalse(direct.quicken(fake))

    async def test_in_use(self) -> None:
        """A connection works on the reactor that was made quick, and the clock goes on."""
        if not direct.quicken(reactor):
            return
        taker, made = Taker(), list[Server]()
        port = tcp.Port(0, Factory.forProtocol(type("_Server", (Server,), {"made": made})), reactor=reactor)
        port.startListening()
        connector = tcp.Connector("127.0.0.1", port.getHost().port, factory_for(taker), 10, None, reactor)
        connector.connect()
        await taker.connected_now
        await until(reactor, lambda: bool(made), "", 10.0)
        made[0].transport.write(b"x" * 1_000_000)  # type: ignore[union-attr]
        await until(reactor, lambda: len(taker.got) == 1_000_000, "", 10.0)
        connector.disconnect()
        await until(reactor, lambda: made[0].lost and taker.lost, "", 10.0)
        await port.stopListening()
