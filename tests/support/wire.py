"""Clients over real sockets: one that sees bytes, and one that speaks MCP over HTTP+SSE."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.support import messages
from tests.support.http1 import Answer, HeaderList, SSEEvent, ask, read_answer, read_events
from tests.support.messages import Json, encoded
from tests.support.waiting import until


class Wire(Protocol):
    """One connection: what came, and whether it is over."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self.closed = True

    def send(self, data: bytes) -> None:
        """Send bytes."""
        transport: Any = self.transport
        transport.write(data)

    def pause(self) -> None:
        """Read no more."""
        transport: Any = self.transport
        transport.pauseProducing()

    def abort(self) -> None:
        """Hang up at once."""
        transport: Any = self.transport
        transport.abortConnection()

    @property
    def answer(self) -> Answer | None:
        """The answer as far as it has come."""
        return read_answer(bytes(self.data), closed=self.closed)


class Client:
    """An MCP client.

    :param port: the proxy's.
    :param headers: sent with every request.
    """

    def __init__(self, reactor: Any, port: int, *headers: tuple[bytes, bytes]) -> None:
        self._reactor = reactor
        self._port = port
        self.headers: HeaderList = headers
        self.wires: list[Wire] = []
        self.stream: Wire | None = None
        self._count = 0
        self._parsed: tuple[int, list[SSEEvent]] = (0, [])

    async def connect(self) -> Wire:
        """A bare connection."""
        endpoint = TCP4ClientEndpoint(self._reactor, "127.0.0.1", self._port)
        wire: Wire = await connectProtocol(endpoint, Wire())
        self.wires.append(wire)
        return wire

    async def fetch(self, method: str, path: str, headers: HeaderList = (), body: bytes | None = None) -> Answer:
        """A request with its whole answer."""
        wire = await self.connect()
        wire.send(ask(method, path, (*headers, *self.headers, (b"connection", b"close")), body))
        await until(self._reactor, lambda: wire.answer is not None and wire.answer.complete, lambda: bytes(wire.data))
        answer = wire.answer
        assert answer is not None
        wire.abort()
        return answer

    async def open(self, last_event_id: str = "") -> None:
        """Open the stream and wait for its endpoint event."""
        wire = await self.connect()
        more: HeaderList = ((b"last-event-id", last_event_id.encode()),) if last_event_id else ()
        self.stream, self._parsed = wire, (0, [])
        wire.send(ask("GET", "/mcp/sse", (*self.headers, *more, (b"accept", b"text/event-stream"))))
        await until(self._reactor, lambda: self.events, lambda: bytes(wire.data))

    @property
    def events(self) -> list[SSEEvent]:
        """The events of the stream."""
        if self.stream is None:
            return []
        size = len(self.stream.data)
        if self._parsed[0] != size:
            answer = self.stream.answer
            self._parsed = (size, read_events(answer.body) if answer is not None else [])
        return self._parsed[1]

    @property
    def messages(self) -> list[Json]:
        """The messages on the stream."""
        return [each.json() for each in self.events if each.type == "message"]

    @property
    def path(self) -> str:
        """Where messages go."""
        return self.events[0].data

    def notifications(self, method: str) -> list[Json]:
        """The notifications of this method."""
        return [each for each in self.messages if each.get("method") == method and "id" not in each]

    def asked(self, method: str) -> list[Json]:
        """The backend's requests of this method."""
        return [each for each in self.messages if each.get("method") == method and "id" in each]

    def answers(self, identity: Any) -> list[Json]:
        """The answers to a request."""
        return [each for each in self.messages if "method" not in each and each.get("id") == identity]

    async def post(self, message: Any) -> Answer:
        """Post a message."""
        body = message if isinstance(message, bytes) else encoded(message)
        return await self.fetch("POST", self.path, ((b"content-type", b"application/json"),), body)

    async def begin(self, message: Json) -> None:
        """Post a message, which must be accepted."""
        answer = await self.post(message)
        if answer.status != 202:
            raise AssertionError(f"{answer.status} {answer.body!r} to {message}")

    async def answer_to(self, identity: Any, timeout: float = 5.0) -> Json:
        """Wait for the answer to a request that was posted."""
        await until(self._reactor, lambda: self.answers(identity), lambda: (identity, self.messages), timeout)
        return self.answers(identity)[0]

    async def ask(self, message: Json, timeout: float = 5.0) -> Json:
        """Post a request and wait for its answer."""
        await self.begin(message)
        return await self.answer_to(message["id"], timeout)

    async def call(self, **arguments: Any) -> Json:
        """Call the tool with a new id."""
        self._count += 1
        return await self.ask(messages.call(f"call-{self._count}", arguments))

    async def initialize(self) -> Json:
        """The handshake."""
        answer = await self.ask(messages.initialize("hello"))
        await self.begin(messages.notification("notifications/initialized"))
        return answer

    def hang_up(self) -> None:
        """Close everything."""
        for wire in self.wires:
            if not wire.closed:
                wire.abort()
