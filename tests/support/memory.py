"""The client side of the proxy without a socket: a fake backend below, in-memory connections above, a fake clock."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.health import Health
from mcp_proxy.frontend.app import App
from mcp_proxy.frontend.discovery import Discovery
from mcp_proxy.frontend.guard import AdminGuard, Guard
from mcp_proxy.frontend.http_sse import HTTPSSEFront
from mcp_proxy.frontend.limits import Rate, Streams
from mcp_proxy.frontend.modern import ModernFront
from mcp_proxy.frontend.status import StatusPages
from mcp_proxy.frontend.streamable import StreamableFront
from mcp_proxy.metrics import Metrics, Tally
from mcp_proxy.session.era import Era
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, ILinkOwner, ISeeker, Loss, Outgoing, Refusal
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.pool import Pool
from mcp_proxy.session.registry import Registry
from mcp_proxy.session.session import Session
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.headers import Headers
from tests.support import messages
from tests.support.http1 import Answer, HeaderList, SSEEvent, ask, read_answer, read_events
from tests.support.messages import Json, encoded

Answerer = Callable[[Json], "Json | None"]
#: How a server of the older revisions answers a request of the revision without sessions.
NOT_INITIALIZED: Json = {**messages.error(None, -32000, "Bad Request: Server not initialized")}
#: By which way HTTP is read in these tests.
STACK = os.environ.get("HTTP_STACK") or "lean"
JSON_HEAD: HeaderList = ((b"content-type", b"application/json"),)


class FakeLink:
    """A link whose backend is a function: it answers each request at once, or not at all.

    ``sent`` holds the messages that the backend has got, decoded. ``stateless``: it is for one request of a revision
    without sessions.
    """

    is_judged = True
    is_owed = True
    is_blind = False

    def __init__(self, backend: FakeBackend, owner: ILinkOwner, headers: Headers, stateless: bool = False) -> None:
        self.backend = backend
        self.owner = owner
        self.headers = headers
        self.stateless = stateless
        self.sent: list[Json] = []
        self.outgoing: list[Outgoing] = []
        self.paused = False
        self.pausers: set[object] = set()
        self.closed = False
        self.correlates = backend.correlates

    def open(self) -> None:
        """Connect, if the backend says so."""
        if self.backend.challenge is not None:
            loss = Loss("the backend answered 401", reachable=True, challenge=self.backend.challenge)
            self.owner.link_lost(self, loss)
        elif self.backend.opens:
            self.owner.link_opened(self)

    def send(self, outgoing: Outgoing) -> None:
        """Take a message and answer it."""
        if self.closed:
            return
        message = jsonrpc.parse(outgoing.raw)
        value: Json = {**_decoded(outgoing.raw)}
        self.sent.append(value)
        self.outgoing.append(outgoing)
        if self.backend.reaches:
            self.owner.link_sent(self, outgoing)
        refusal = self.backend.refusals.pop(message.method, None)
        if self.stateless and self.backend.is_legacy:
            refusal = Refusal(400, "400", HTTPAnswer(400, JSON_HEAD, encoded(NOT_INITIALIZED)))
        if refusal is not None:
            self.owner.link_refused(self, outgoing, refusal)
            return
        if self.backend.accepts:
            self.owner.link_accepted(self, outgoing)
        if message.kind is jsonrpc.Kind.REQUEST:
            answer = self.backend.answer(value)
            if answer is not None:
                self.tell(answer)

    def pause(self, source: object) -> None:
        """The client is slow."""
        self.paused = True
        self.pausers.add(source)

    def resume(self, source: object) -> None:
        """It reads again."""
        self.paused = False
        self.pausers.discard(source)

    def close(self, *, done: bool = False) -> None:
        """The end."""
        self.closed = True

    def exchange(self, identity: Any) -> Exchange:
        """The newest of the client's requests under this id at the backend."""
        for sent, outgoing in zip(reversed(self.sent), reversed(self.outgoing), strict=True):
            if outgoing.exchange is not None and "method" in sent and sent.get("id") == identity:
                return outgoing.exchange
        raise AssertionError(f"no request {identity!r}")

    def stream(self, identity: Any = None) -> None:
        """The backend answers a request, its newest unless told otherwise, with a stream."""
        exchange = self.outgoing[-1].exchange if identity is None else self.exchange(identity)
        assert exchange is not None
        self.owner.link_streaming(self, exchange)

    def let_poll(self, identity: Any, delay: float) -> None:
        """The backend ends the stream of a request before its answer."""
        self.owner.link_polling(self, self.exchange(identity), delay)

    def tell(self, message: Json, about: Any = None) -> None:
        """The backend sends a message, on the stream of the request with this id if there is one."""
        exchange = None if about is None else self.exchange(about)
        self.owner.link_received(self, jsonrpc.parse(encoded(message)), exchange)

    def lose(self, reachable: bool = False) -> None:
        """The backend dies."""
        if not self.closed:
            self.owner.link_lost(self, Loss("the connection was closed", reachable=reachable))


class FakeBackend:
    """The shared view of a backend that is up or down as the test says.

    ``opens``: whether a link opens at once; ``reaches``: whether messages get as far as the network; ``accepts``:
    whether they are acknowledged. ``correlates``: whether new links know which message is about which request.
    ``answers`` maps a method to what is answered (None: nothing).
    ``is_legacy``: it knows no revision without sessions.
    ``refusals`` maps a method to how its next message is refused. ``challenge``: how streams are refused.
    """

    def __init__(self) -> None:
        self.outage = 0.0
        self.spent = self.is_doubted = False
        self.is_down = False
        self.outages = self.attempts = 0
        self.opens = True
        self.reaches = True
        self.accepts = True
        self.is_legacy = False
        self.correlates = False
        self.challenge: HTTPAnswer | None = None
        self.refusals: dict[str, Refusal] = {}
        self.waiting: list[ISeeker] = []
        self.live: list[ISeeker] = []
        self.made: list[FakeLink] = []
        self.answers: dict[str, Answerer] = {
            "initialize": lambda asked: messages.result(asked["id"], messages.initialize_result()),
            "tools/list": lambda asked: messages.result(asked["id"], {"tools": messages.TOOLS}),
            "tools/call": lambda asked: messages.result(asked["id"], {"content": [], "echo": asked.get("params")}),
            "ping": lambda asked: messages.result(asked["id"], {}),
        }

    @property
    def links(self) -> int:
        """How many sessions have a live link."""
        return len(self.live)

    @property
    def link(self) -> FakeLink:
        """The newest link."""
        return self.made[-1]

    def answer(self, asked: Json) -> Json | None:
        """What the backend says to a request."""
        answerer = self.answers.get(asked["method"], lambda asked: messages.error(asked["id"], -32601))
        answer: Json | None = answerer(asked)
        return answer

    def go_down(self) -> None:
        """All links break and nobody can connect."""
        self.is_down, self.outage = True, 1.0
        for link in list(self.made):
            link.lose()

    def come_back(self) -> None:
        """Whoever waits gets its turn."""
        self.is_down, self.outage, self.spent = False, 0.0, False
        waiting, self.waiting = self.waiting, []
        for seeker in waiting:
            seeker.backend_turn()

    def seek(self, seeker: ISeeker) -> None:
        """See IBackend."""
        self._forget(seeker)
        if self.is_down:
            self.waiting.append(seeker)
        else:
            seeker.backend_turn()

    def withdraw(self, seeker: ISeeker) -> None:
        """See IBackend."""
        self._forget(seeker)

    def succeeded(self, seeker: ISeeker) -> None:
        """See IBackend."""
        self.live.append(seeker)

    def failed(self, seeker: ISeeker, loss: Loss) -> None:
        """See IBackend."""
        self._forget(seeker)

    def lost(self, loss: Loss) -> None:
        """See IBackend."""

    def make_link(self, owner: ILinkOwner, headers: Headers, *, stateless: bool = False) -> FakeLink:
        """See IBackend."""
        link = FakeLink(self, owner, headers, stateless)
        self.made.append(link)
        return link

    def _forget(self, seeker: ISeeker) -> None:
        for group in (self.waiting, self.live):
            if seeker in group:
                group.remove(seeker)


class FakePort:
    """Answers the health check: with a status, or not at all (``None``)."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.pages: dict[str, HTTPAnswer] = {}
        self.fetched: list[tuple[str, Headers]] = []

    def fetch(self, path: str, headers: Headers) -> Deferred[HTTPAnswer]:
        """Give a page at once."""
        self.fetched.append((path, headers))
        if self.status is None:
            return fail(RequestFailed("connection refused", sent=False))
        return succeed(self.pages.get(path, HTTPAnswer(404, ((b"content-type", b"text/plain"),), b"none")))

    def ask(self, timeout: float) -> Deferred[int]:
        """Answer at once."""
        if self.status is None:
            return fail(RequestFailed("connection refused", sent=False))
        return succeed(self.status)


class MemoryTransport(StringTransport):
    """A server's transport that notices when it is closed."""

    def __init__(self, port: int, peer: str = "127.0.0.1") -> None:
        super().__init__(IPv4Address("TCP", "127.0.0.1", port), IPv4Address("TCP", peer, 40000))
        self.protocol: Any = None
        self.gone = False

    def loseConnection(self) -> None:
        """The server hangs up."""
        self.lose(ConnectionDone())

    def abortConnection(self) -> None:
        """The server drops the connection."""
        self.lose(ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """The connection is over, whoever ended it."""
        if not self.gone:
            self.gone = self.disconnecting = True
            self.protocol.connectionLost(Failure(reason))


class Connection:
    """One connection of a client's, and what it got."""

    def __init__(self, listener: IProtocolFactory, port: int, clock: Clock, peer: str = "127.0.0.1") -> None:
        self._clock = clock
        self._transport = MemoryTransport(port, peer)
        protocol: Any = listener.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
        self._transport.protocol = protocol
        self._is_head = False
        protocol.makeConnection(self._transport)

    def send(self, data: bytes) -> None:
        """Bytes of the client's."""
        self._is_head = self._is_head or data.startswith(b"HEAD ")
        self._transport.protocol.dataReceived(data)

    def hang_up(self) -> None:
        """The client goes, after it has got what was sent before."""
        self._clock.advance(0)
        self._transport.lose(ConnectionDone())

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self._transport.gone

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the body of the request that is being read are kept."""
        if STACK == "lean":
            kept: int = self._transport.protocol._reader.kept
            return kept
        (request,) = self._transport.protocol.requests
        return len(request.content.getvalue())

    @property
    def raw(self) -> bytes:
        """All that came; what was written in this turn of the reactor is sent at its end."""
        self._clock.advance(0)
        data: bytes = self._transport.value()
        return data

    @property
    def started(self) -> bool:
        """Whether the head of an answer has come."""
        return b"\r\n\r\n" in self.raw

    @property
    def answer(self) -> Answer:
        """The answer, as far as it has come."""
        answer = read_answer(self.raw, closed=self.closed, is_head=self._is_head)
        if answer is None:
            raise AssertionError(f"no answer, but {self.raw!r}")
        return answer

    @property
    def events(self) -> list[SSEEvent]:
        """The events of the stream."""
        return read_events(self.answer.body)

    @property
    def messages(self) -> list[Json]:
        """The JSON-RPC messages of the stream."""
        return [event.json() for event in self.events if event.type == "message"]

    @property
    def path(self) -> str:
        """Where the endpoint event says that messages go."""
        return next(event.data for event in self.events if event.type == "endpoint")

    def message(self, identity: Any) -> Json:
        """The one answer to the request with this id."""
        found = [each for each in self.messages if each.get("id") == identity and "method" not in each]
        if len(found) != 1:
            raise AssertionError(f"{len(found)} answers to {identity!r} among {self.messages}")
        return found[0]

    def stop_reading(self) -> None:
        """The client's side of the network is full."""
        producer: Any = self._transport.producer
        producer.pauseProducing()

    def read_again(self) -> None:
        """It is not any more."""
        producer: Any = self._transport.producer
        producer.resumeProducing()


class House:
    """The proxy but for its backend, on a clock that the test moves."""

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        guard: Guard | None = None,
        max_sessions: int = 1000,
        max_of_one: int = 0,
        max_streams: int = 0,
        max_batch: int = 100,
        rate: float = 0.0,
        burst: int = 100,
        max_body_bytes: int = 4096,
        stall_timeout: float = 30.0,
        idle_timeout: float = 1800.0,
        port: int = 8001,
        stack: str = "",
        admin_token: str = "",
        tally: Tally | None = None,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.backend = FakeBackend()
        policy = self.policy = policy or Policy()
        self.tally = tally or Tally()
        self.registry = Registry(
            lambda token, owner, headers, outlet: Session(
                token,
                owner,
                headers,
                outlet,
                backend=self.backend,
                clock=self.clock,
                policy=policy,
                forget=self.registry.forget,
                remember=self.registry.remember,
                recall=self.registry.recall,
                meter=self.tally,
            ),
            max_sessions,
            idle_timeout,
            max_of_one,
        )
        self.backend_port = FakePort()
        backend: Any = self.backend
        backend_port: Any = self.backend_port
        self.health = Health(backend, backend_port, self.clock, 10.0)
        room = Streams(max_streams)
        self.front = HTTPSSEFront(self.registry, self.clock, room)
        make_pool = partial(
            Pool, self.registry.once, self.clock, policy, max_sessions=max_sessions, idle_timeout=idle_timeout
        )
        self.modern = ModernFront(self.registry, lambda: self.backend.outage > 0, Era(), room, make_pool)
        self.pool = self.modern.pool
        self.streamable = StreamableFront(self.registry, self.modern, room, max_batch)
        fronts = {"sse": self.front, "streamable": self.streamable, "modern": self.modern}
        room.count = lambda: sum(front.open_streams for front in fronts.values())
        self.refusals = self.tally.refusals
        metrics = Metrics(self.tally, self.registry, self.pool, self.backend, self.health, fronts, max_sessions)
        admin = AdminGuard(admin_token)
        self.status = StatusPages(
            self.registry, self.pool, self.health, self.clock, "http://***@backend:3000", metrics, admin, self.refusals
        )
        discovery = Discovery(self.backend_port.fetch)
        self.rate = Rate(self.clock, rate, burst)
        self.app = App(
            guard or Guard(),
            self.front,
            self.streamable,
            self.status,
            discovery,
            self.clock,
            stall_timeout,
            rate=self.rate,
            refusals=self.refusals,
        )
        self.listener = self.app.listener(stack or STACK, self.clock, max_body_bytes)
        self._port = port
        self.peer = "127.0.0.1"
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        """A client connects."""
        connection = Connection(self.listener, self._port, self.clock, self.peer)
        self.connections.append(connection)
        return connection

    def ask(self, method: str, path: str, headers: HeaderList = (), body: bytes | None = None) -> Connection:
        """A request on a connection of its own."""
        connection = self.connect()
        connection.send(ask(method, path, headers, body))
        return connection

    def stream(self, *headers: tuple[bytes, bytes]) -> Connection:
        """A client opens a stream."""
        return self.ask("GET", "/mcp/sse", ((b"accept", b"text/event-stream"), *headers))

    def post(self, path: str, message: Any, *headers: tuple[bytes, bytes]) -> Answer:
        """A client posts a message; a value is encoded, bytes go as they are."""
        body = message if isinstance(message, bytes) else encoded(message)
        return self.ask("POST", path, (*JSON_HEAD, *headers), body).answer

    def initialized(self, *headers: tuple[bytes, bytes]) -> Connection:
        """A client with a stream that has been through its handshake."""
        stream = self.stream(*headers)
        self.post(stream.path, messages.initialize("hello"), *headers)
        self.post(stream.path, messages.notification("notifications/initialized"), *headers)
        return stream

    def session_of(self, stream: Connection) -> Session:
        """The session behind a stream."""
        token = stream.path.rpartition("/")[2]
        return next(session for session in self.registry if session.id == token)

    def close(self) -> None:
        """Everybody goes."""
        for connection in self.connections:
            connection.hang_up()
        for session in self.registry:
            session.close()
        self.pool.stop()
        self.clock.advance(0)


def _decoded(raw: bytes) -> Json:
    value: Json = json.loads(raw)
    return value
