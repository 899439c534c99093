"""Requests to the backend on real sockets: what comes of them, by either of the two ways there are."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mcp_proxy.backend import connections, lean
from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.http import BackendClient, BackendHTTP
from mcp_proxy.backend.response import Response
from mcp_proxy.backend.target import KEPT_ALIVE, Target, endpoint_to
from tests.support.sockets import close_now
from tests.support.waiting import until

reactor: Any = global_reactor
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Peer(Protocol):
    """The backend's end of a connection; what it does with a request is the test's to say."""

    transport: Any

    def __init__(self, server: Server) -> None:
        self.server = server
        self.data = b""
        self.lost: Failure | None = None
        server.peers.append(self)

    def dataReceived(self, data: bytes) -> None:
        """Read a request; none of them is sent before the one before is answered."""
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        if end and len(body) >= sum(lengths):
            self.data = b""
            self.server.requests.append((head, body))
            self.server.answer(self)

    def write(self, data: bytes) -> None:
        """Answer."""
        self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self.lost = reason


class Server:
    """A backend that knows nothing of MCP."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.requests: list[tuple[bytes, bytes]] = []
        self.answer: Callable[[Peer], None] = lambda peer: peer.write(OK)
        factory = Factory.forProtocol(lambda: Peer(self))
        factory.noisy = False
        self.port: IListeningPort = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"


class Received:
    """The body of an answer as it came."""

    def __init__(self) -> None:
        self.data = b""
        self.end: str | None = None

    def body_received(self, data: bytes) -> None:
        """More."""
        self.data += data

    def body_ended(self, reason: str) -> None:
        """No more."""
        assert self.end is None, "it ended twice"
        self.end = reason


class Endpoints(TestCase):
    """What a connection is like, whoever speaks on it."""

    async def test_kept_alive(self) -> None:
        """The system looks whether it lives when it is silent; also where a name is to be looked up."""
        server = Server()
        self.addCleanup(server.port.stopListening)
        for host in ("127.0.0.1", "localhost"):
            endpoint = endpoint_to(reactor, host, server.port.getHost().port, 5.0)
            protocol = await endpoint.connect(Factory.forProtocol(Protocol))
            self.addCleanup(close_now, protocol.transport)
            connection = protocol.transport.getHandle()
            self.assertEqual(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
            for name, value in KEPT_ALIVE:
                if hasattr(socket, name):
                    self.assertEqual(connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)), value, name)


class Either(TestCase):
    """What holds on both ways."""

    is_lean = True

    def setUp(self) -> None:
        """A backend, and a client of it."""
        self.server = Server()
        self.http = BackendHTTP(reactor, Target.of(self.server.url), 5.0, is_lean=self.is_lean)
        self.client: BackendClient = self.http.client()
        self.sent = 0

    async def tearDown(self) -> None:
        """Nothing stays open."""
        await self.http.forget_connections()
        await maybeDeferred(self.server.port.stopListening)
        for peer in self.server.peers:
            peer.transport.abortConnection()
        await self.until(lambda: all(peer.lost for peer in self.server.peers))

    async def until(self, condition: Callable[[], object], what: object = "") -> None:
        """Wait until this holds."""
        await until(reactor, condition, what)

    def open(self, body: bytes | None = b"{}", *headers: tuple[bytes, bytes], **options: Any) -> Deferred[Response]:
        """Send a request."""

        def sending() -> None:
            self.sent += 1

        method = "GET" if body is None else "POST"
        return self.client.open(method, f"{self.server.url}/mcp?a=b", headers, body, sending=sending, **options)

    async def fetch(self, body: bytes | None = b"{}", *headers: tuple[bytes, bytes], **options: Any) -> bytes:
        """Send a request and read the whole answer."""
        received = Received()
        (await self.open(body, *headers, **options)).deliver(received)
        await self.until(lambda: received.end is not None)
        self.assertEqual(received.end, "the stream ended")
        return received.data

    async def failure(self, asked: Deferred[Any]) -> RequestFailed:
        """How it failed."""
        try:
            await asked
        except RequestFailed as error:
            return error
        raise AssertionError("it did not fail")

    async def test_request(self) -> None:
        """Method, path and body arrive, with the headers and no others that matter."""
        self.assertEqual(await self.fetch(b'{"a":1}', (b"X-Own", b"one"), (b"Accept-Encoding", b"gzip")), b"hi")
        ((head, body),) = self.server.requests
        first, *lines = head.split(b"\r\n")
        names = {line.partition(b":")[0].lower(): line.partition(b": ")[2] for line in lines}
        self.assertEqual((first, body), (b"POST /mcp?a=b HTTP/1.1", b'{"a":1}'))
        self.assertEqual(names[b"host"], self.server.url[7:].encode())
        self.assertEqual((names[b"x-own"], names[b"accept-encoding"]), (b"one", b"identity"))
        self.assertEqual((names[b"content-length"], self.sent), (b"7", 1))

    async def test_answer(self) -> None:
        """Status, headers and body of the answer, whatever frames it."""
        whole = b"Content-Length: 5\r\n\r\nhello"
        chunks = b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
        for number, rest in enumerate((whole, chunks, b"Connection: close\r\n\r\nhello")):
            answer = b"HTTP/1.1 418 Teapot\r\nX-Number: %d\r\nContent-Type: Text/Event-Stream; x=y\r\n" % number + rest

            def act(peer: Peer, answer: bytes = answer, is_last: bool = number == 2) -> None:
                peer.write(answer)
                if is_last:
                    peer.transport.loseConnection()

            self.server.answer = act
            response = await self.open()
            self.assertEqual((response.status, response.header(b"x-number")), (418, b"%d" % number))
            self.assertEqual((response.kind, response.is_event_stream), (b"text/event-stream", False))
            received = Received()
            response.deliver(received)
            await self.until(lambda received=received: received.end is not None)
            self.assertEqual((received.data, received.end), (b"hello", "the stream ended"))

    async def test_split(self) -> None:
        """An answer that comes byte by byte is the same answer."""
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: t\r\n\r\n"

        def act(peer: Peer) -> None:
            for place in range(len(answer)):
                reactor.callLater(place * 0.0005, peer.write, answer[place : place + 1])

        self.server.answer = act
        self.assertEqual(await self.fetch(), b"hello")

    async def test_interim(self) -> None:
        """An interim answer is not the answer."""
        self.server.answer = lambda peer: peer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)
        self.assertEqual(await self.fetch(), b"hi")

    async def test_cut_off(self) -> None:
        """A body that is shorter than announced was cut off, however the connection ends."""
        for rest in (b"Content-Length: 9\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello"):
            for close in ("loseConnection", "abortConnection"):

                def act(peer: Peer, rest: bytes = rest, close: str = close) -> None:
                    peer.write(b"HTTP/1.1 200 OK\r\n" + rest)
                    reactor.callLater(0.01, getattr(peer.transport, close))

                self.server.answer = act
                received = Received()
                (await self.open()).deliver(received)
                await self.until(lambda received=received: received.end is not None)
                self.assertEqual(received.data, b"hello")
                self.assertNotEqual(received.end, "the stream ended")

    async def test_refused(self) -> None:
        """Nobody listens: nothing was sent."""
        await self.server.port.stopListening()
        error = await self.failure(self.open())
        self.assertEqual((error.reason, error.sent, self.sent), ("connection refused", False, 0))

    async def test_no_answer(self) -> None:
        """A connection that ends before the answer: the request may have arrived."""
        for close in ("loseConnection", "abortConnection"):
            self.server.answer = lambda peer, close=close: getattr(peer.transport, close)()
            self.assertTrue((await self.failure(self.open())).sent)
            self.assertFalse((await self.failure(self.open(None))).sent, "a GET does nothing")

    async def test_no_http(self) -> None:
        """What is no HTTP is no answer."""
        self.server.answer = lambda peer: peer.write(b"hello, world, how are you?\r\n\r\n")
        self.assertTrue((await self.failure(self.open())).sent)

    async def test_cancelled(self) -> None:
        """A request that nobody waits for ends its connection."""
        self.server.answer = lambda peer: None
        asked = self.open()
        await self.until(lambda: self.server.requests)
        asked.cancel()
        self.assertEqual((await self.failure(asked)).reason, "no answer in time")
        await self.until(lambda: self.server.peers[0].lost)

    async def test_aborted(self) -> None:
        """An answer that nobody wants any more ends its connection, and nothing is heard of it."""
        self.server.answer = lambda peer: peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
        for is_delivered in (True, False):
            response, received = await self.open(), Received()
            if is_delivered:
                response.deliver(received)
                await self.until(lambda received=received: received.data)
            response.abort()
            await self.until(lambda: all(peer.lost for peer in self.server.peers))
            self.assertIsNone(received.end)

    async def test_pressure(self) -> None:
        """A receiver that takes nothing stops the backend, and goes on where it stopped."""
        size = 16 * 1024 * 1024  # far more than the kernel keeps
        self.server.answer = lambda peer: peer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        )
        response, received = await self.open(), Received()
        response.pause()
        response.deliver(received)
        response.pause()
        await self.fetch_elsewhere()
        self.assertLess(len(received.data), 128 * 1024, "what came with the head, and no more")
        response.resume()
        await self.until(lambda: received.end is not None)
        self.assertEqual((len(received.data), received.end), (size, "the stream ended"))

    async def fetch_elsewhere(self) -> None:
        """Something else goes on for a while."""
        other = BackendHTTP(reactor, Target.of(self.server.url), 5.0, is_lean=self.is_lean)
        answer, self.server.answer = self.server.answer, lambda peer: peer.write(OK)
        for _ in range(20):
            response = await other.client().open("GET", self.server.url + "/", (), reuse=True)
            await response.collect(10, reactor, 5.0)
        self.server.answer = answer
        await other.forget_connections()

    async def test_failing_receiver(self) -> None:
        """A receiver that fails gets no more, and harms nobody."""

        class Failing(Received):
            def body_received(self, data: bytes) -> None:
                raise ValueError(data)

        received = Failing()
        (await self.open()).deliver(received)
        await self.until(lambda: received.end is not None)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(await self.fetch(), b"hi")

    async def test_cookies(self) -> None:
        """Cookies of the backend's come back to it, in the same session, beside the client's own."""
        answer = OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=1; Path=/\r\n\r\n")
        self.server.answer = lambda peer: peer.write(answer)
        await self.fetch()
        await self.fetch()
        self.client = self.http.client()
        await self.fetch()
        cookies = [b"cookie: a=1" in head.lower() for head, _ in self.server.requests]
        self.assertEqual(cookies, [False, True, False])

    async def test_header_of_two_lines(self) -> None:
        """A value with a line break in it never becomes a header of its own."""
        for value in (b"a\r\nX-Evil: 1", b"a\nX-Evil: 1"):
            try:
                await self.fetch(b"{}", (b"X-Own", value))
            except RequestFailed as error:
                self.assertFalse(error.sent)
        for head, _ in self.server.requests:
            self.assertNotIn(b"X-Evil", [line.partition(b":")[0] for line in head.split(b"\r\n")])

    async def test_broken(self) -> None:
        """It is told when a connection ends in the middle of something, and not when it ends otherwise."""
        broken: list[int] = []
        self.http.on_broken = lambda: broken.append(len(self.server.requests))
        await self.fetch()
        self.server.peers[-1].transport.loseConnection()
        await self.until(lambda: self.server.peers[-1].lost)
        self.server.answer = lambda peer: (
            peer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end") or peer.transport.loseConnection()
        )
        self.assertEqual(await self.fetch(), b"to the end")
        (asked := self.open()).addErrback(lambda _: None)
        asked.cancel()
        self.assertEqual(broken, [])
        for answer in (b"", OK[:10], OK[:-1], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
            self.server.answer = lambda peer, answer=answer: peer.write(answer) or peer.transport.loseConnection()
            before = len(broken)
            asked = self.open()
            asked.addCallbacks(lambda response: response.deliver(Received()), lambda _: None)
            await self.until(lambda before=before: len(broken) > before, answer)


class ByTreq(Either):
    """The same by treq, which is the way where there is TLS."""

    is_lean = False


class Lean(Either):
    """What only the lean way promises."""

    def idle(self) -> list[Any]:
        """The connections that wait for a request."""
        pool: Any = self.http._connections
        found: list[Any] = pool._pool._idle
        return found

    async def test_one_connection(self) -> None:
        """Requests one after the other share a connection, repeatable or not."""
        for reuse in (True, False) * 5:
            await self.fetch(reuse=reuse)
        self.assertEqual((len(self.server.peers), len(self.server.requests)), (1, 10))

    async def test_closed_while_idle(self) -> None:
        """A connection that was closed while it was idle is not used."""
        await self.fetch()
        for close in ("loseConnection", "abortConnection"):
            peer = self.server.peers[-1]
            getattr(peer.transport, close)()
            await self.until(lambda peer=peer: peer.lost)
            self.assertEqual(await self.fetch(), b"hi")
        self.assertEqual(len(self.server.requests), 3)

    async def test_closed_under_way(self) -> None:
        """A request that meets the end of an idle connection has provably not arrived: it is sent on a fresh one."""
        self.patch(lean.Connection, "is_alive", property(lambda _: True))
        for _ in range(5):
            await self.fetch()
            close_now(self.server.peers[-1].transport)
            self.assertEqual(await self.fetch(), b"hi")
        self.assertEqual(len(self.server.requests), 10)
        self.assertEqual(self.sent, 15)

    async def test_dying(self) -> None:
        """When one connection breaks, nothing is begun on the others: what dies closes one after the other."""
        waiting: list[Peer] = []
        self.server.answer = waiting.append
        asked = [self.open() for _ in range(3)]
        await self.until(lambda: len(waiting) == 3)
        for peer in waiting[1:]:
            peer.write(OK)
        for each in asked[1:]:
            self.assertEqual(await (await each).collect(2, reactor, 5.0), b"hi")
        self.patch(lean.Connection, "is_alive", property(lambda _: True))
        waiting[0].transport.abortConnection()
        self.assertTrue((await self.failure(asked[0])).sent)
        self.assertEqual(self.idle(), [])
        self.server.answer = lambda peer: peer.write(OK)
        self.assertEqual(await self.fetch(), b"hi")
        self.assertEqual(len(self.server.peers), 4)

    async def test_not_repeatable(self) -> None:
        """A request that must not be in doubt takes no connection that its backend may be about to close."""
        await self.fetch()
        self.patch(connections, "FRESH", -1.0)
        await self.fetch(reuse=False)
        self.assertEqual(len(self.server.peers), 2)
        await self.fetch(reuse=True)
        self.assertEqual(len(self.server.peers), 2)

    async def test_arrived(self) -> None:
        """A request that has arrived on a connection which then ends is not sent again."""
        for close in ("loseConnection", "abortConnection"):
            self.server.answer = lambda peer: peer.write(OK)
            await self.fetch()
            self.server.answer = lambda peer, close=close: getattr(peer.transport, close)()
            before = len(self.server.requests)
            self.assertTrue((await self.failure(self.open())).sent)
            self.assertEqual(len(self.server.requests), before + 1)

    async def test_no_tcp_info(self) -> None:
        """Where TCP does not tell, nothing counts as not arrived."""
        self.patch(lean, "_BYTES_ACKED", lean.struct.Struct("=999xQ"))
        self.patch(lean.Connection, "is_alive", property(lambda _: True))
        await self.fetch()
        close_now(self.server.peers[-1].transport)
        self.assertTrue((await self.failure(self.open())).sent)

    async def test_unasked(self) -> None:
        """Bytes after an answer, or without a request, end the connection and are nobody's answer."""
        self.server.answer = lambda peer: peer.write(OK + OK)
        self.assertEqual(await self.fetch(), b"hi")
        self.server.answer = lambda peer: peer.write(OK)
        self.assertEqual(await self.fetch(), b"hi")
        self.server.peers[-1].write(OK.replace(b"hi", b"no"))
        await self.until(lambda: self.server.peers[-1].lost)
        self.assertEqual(await self.fetch(), b"hi")
        self.assertEqual(len(self.server.peers), 3)

    async def test_like_the_last(self) -> None:
        """An answer with the same head as the one before, but for the length, is read as any other is."""
        head = b"HTTP/1.1 200 OK\r\nX-Own: %d\r\nContent-Length: %d\r\n\r\n"
        bodies = [b"a", b"bb", b"", b"c" * 1000, b"d"]

        def write_whole(peer: Peer, own: int, body: bytes) -> None:
            peer.write(head % (own, len(body)) + body)

        def write_pieces(peer: Peer, own: int, body: bytes) -> None:
            data = head % (own, len(body)) + body
            for at in range(0, len(data), 20):
                peer.transport.getHandle().send(data[at : at + 20])

        for write in (write_whole, write_pieces, write_whole):
            for number, body in enumerate(bodies):
                self.server.answer = lambda peer, write=write, number=number, body=body: write(peer, number // 2, body)
                response = await self.open()
                self.assertEqual((response.status, response.header(b"x-own")), (200, b"%d" % (number // 2)))
                self.assertEqual(await response.collect(2000, reactor, 5.0), body)
        self.assertEqual(len(self.server.peers), 1)

    async def test_like_the_last_refused(self) -> None:
        """So is one that is more or less than it says."""
        await self.fetch()
        self.server.answer = lambda peer: peer.write(OK + b"!")
        self.assertEqual(await self.fetch(), b"hi")
        await self.until(lambda: self.server.peers[-1].lost)
        self.server.answer = lambda peer: peer.write(OK)
        await self.fetch()

        def cut(peer: Peer) -> None:
            peer.write(OK[:-1])
            peer.transport.loseConnection()

        self.server.answer = cut
        received = Received()
        (await self.open()).deliver(received)
        await self.until(lambda: received.end)
        self.assertEqual((received.data, received.end), (b"h", "the answer was cut off"))

    async def unsent(self) -> tuple[Deferred[Response], lean.Connection]:
        """A request that is to be sent at the end of this turn, and the connection that it will take."""
        await self.fetch()
        pool: Any = self.http._connections
        pool._pool.turn._direct = 0
        (connection,) = self.idle()
        return self.open(reuse=False), connection

    async def test_lost_before_sent(self) -> None:
        """A connection that ends before the request has gone is no reason to doubt; nor is one that says something."""
        asked, connection = await self.unsent()
        connection.readConnectionLost()
        self.assertEqual(await (await asked).collect(2, reactor, 5.0), b"hi")
        asked, connection = await self.unsent()
        connection.dataReceived(OK.replace(b"hi", b"no"))
        self.assertEqual(await (await asked).collect(2, reactor, 5.0), b"hi")
        self.assertEqual((len(self.server.requests), self.sent), (4, 4))

    async def test_cancelled_before_sent(self) -> None:
        """A request that is given up before it has gone never goes."""
        asked, _ = await self.unsent()
        asked.cancel()
        self.assertFalse((await self.failure(asked)).sent)
        await self.fetch()
        self.assertEqual((len(self.server.requests), self.sent), (2, 2))

    async def test_endless_head(self) -> None:
        """A head is bounded."""

        def act(peer: Peer) -> None:
            peer.write(b"HTTP/1.1 200 OK\r\n" + b"X-Long: %s\r\n" % (b"x" * 1000) * 100)

        self.server.answer = act
        self.assertIn("too large", (await self.failure(self.open())).reason)
        await self.until(lambda: self.server.peers[0].lost)

    async def test_bounds(self) -> None:
        """No more than so many connections are idle, and none for long."""
        self.patch(connections, "MAX_IDLE", 2)
        self.patch(connections, "IDLE_TIMEOUT", 0.05)
        waiting: list[Peer] = []
        self.server.answer = waiting.append
        asked = [self.open() for _ in range(4)]
        await self.until(lambda: len(waiting) == 4)
        for peer in waiting:
            peer.write(OK)
        for each in asked:
            self.assertEqual(await (await each).collect(2, reactor, 5.0), b"hi")
        await self.until(lambda: all(peer.lost for peer in self.server.peers))
        self.assertEqual(self.idle(), [])

    async def test_close(self) -> None:
        """A backend that keeps no connection gets a new one each time."""
        self.server.answer = lambda peer: peer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await self.fetch()
        await self.fetch()
        self.assertEqual(len(self.server.peers), 2)
