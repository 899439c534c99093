"""A backend that speaks just enough HTTP and MCP over raw TCP, and can die, stall or lie at any byte."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any, Literal

from attrs import define, frozen
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.support import messages
from tests.support.messages import Json, encoded

How = Literal["fin", "rst"]
Answerer = Callable[["Stream", Json], "Json | None"]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted"


def response(status: int, body: bytes = b"", *headers: tuple[str, str], reason: str = "Whatever") -> bytes:
    """A whole answer."""
    lines = [
        f"HTTP/1.1 {status} {reason}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join((*lines, "", "")).encode() + body


def event(data: bytes, name: bytes = b"message") -> bytes:
    """One event, in the line ends that the Python SDK uses."""
    return b"event: " + name + b"\r\ndata: " + data + b"\r\n\r\n"


@frozen
class Asked:
    """One HTTP request that the backend has read completely."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    generation: int


@frozen
class Got:
    """One message that the backend has got."""

    message: Json
    headers: dict[str, str]
    stream: str
    generation: int

    @property
    def method(self) -> str:
        """Its method; nothing for an answer."""
        return str(self.message.get("method", ""))


@define(eq=False)
class Stream:
    """One open event stream, which is one session."""

    name: str
    connection: BackendConnection
    headers: dict[str, str]
    generation: int
    initialized: bool = False

    def send(self, message: Json) -> None:
        """Send a message to the client."""
        self.connection.write(event(encoded(message)))

    def send_raw(self, data: bytes) -> None:
        """Send anything."""
        self.connection.write(data)


class BackendConnection(Protocol):
    """One connection of the proxy's. ``budget``: after so many more bytes the whole backend dies."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self.backend = backend
        self.budget: int | None = None
        self.how: How = "rst"
        self.closed = False
        self._buffer = b""

    def connectionMade(self) -> None:
        """Somebody connected."""
        self.backend.connections.append(self)
        self.backend.connected += 1
        self.backend.on_connect(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self.closed = True
        self.backend.connections.remove(self)
        for name, stream in list(self.backend.streams.items()):
            if stream.connection is self:
                del self.backend.streams[name]

    def dataReceived(self, data: bytes) -> None:
        """Read requests."""
        self._buffer += data
        while not self.closed and not self.backend.is_deaf:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            line, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
            length = int(headers.get("content-length", "0"))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            method, path, _ = line.split(" ")
            asked = Asked(method, path, headers, rest[:length], self.backend.generation)
            self.backend.asked.append(asked)
            self.backend.serve(self, asked)

    def write(self, data: bytes) -> None:
        """Send bytes, as far as the budget goes."""
        if self.closed:
            return
        transport: Any = self.transport
        if self.budget is None:
            transport.write(data)
            return
        part, self.budget = data[: self.budget], self.budget - len(data)
        if part:
            transport.getHandle().setblocking(True)
            transport.getHandle().sendall(part)
            transport.getHandle().setblocking(False)
        if self.budget <= 0:
            self.backend.die(self.how)

    def drop(self, how: How) -> None:
        """Close the connection: properly, or as the kernel does for a process that was killed."""
        transport: Any = self.transport
        if how == "fin":
            transport.loseConnection()
        else:
            if not self.closed:
                transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abortConnection()


class ScriptedBackend(Factory):
    """See the module. Tests replace ``on_get``, ``on_post``, ``on_message`` and ``answers``.

    ``got`` is every message ever, ``streams`` the open ones. ``violations`` are messages that a strict server would
    not take: requests before the handshake was complete.
    """

    noisy = False

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._port: IListeningPort | None = None
        self._stopping: Any = None
        self.port = 0
        self.generation = 0
        self.connected = 0
        self.connections: list[BackendConnection] = []
        self.streams: dict[str, Stream] = {}
        self.asked: list[Asked] = []
        self.got: list[Got] = []
        self.violations: list[Json] = []
        self.health = response(200, b"{}")
        self.tools: list[Json] = list(messages.TOOLS)
        self.capabilities: Json | None = None
        self.is_deaf = False
        self.ssl: Any = None
        self.on_connect: Callable[[BackendConnection], None] = lambda connection: None
        self.on_get: Callable[[BackendConnection, Asked], None] = self.open_stream
        self.on_post: Callable[[BackendConnection, Asked], None] = self.take_post
        self.on_message: Callable[[BackendConnection, Stream, Json], None] = self.accept
        self.answers: dict[str, Answerer] = {
            "initialize": lambda stream, asked: messages.result(
                asked["id"], messages.initialize_result(self.capabilities)
            ),
            "ping": lambda stream, asked: messages.result(asked["id"], {}),
            "tools/list": lambda stream, asked: messages.result(asked["id"], {"tools": self.tools}),
            "tools/call": lambda stream, asked: messages.result(asked["id"], {"echo": asked["params"]["arguments"]}),
            "logging/setLevel": lambda stream, asked: messages.result(asked["id"], {}),
            "resources/subscribe": lambda stream, asked: messages.result(asked["id"], {}),
        }

    # -- life and death ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen: on any port the first time, on the same one ever after."""
        self.generation += 1
        if self.ssl is not None:
            self._port = self._reactor.listenSSL(self.port, self, self.ssl, interface="127.0.0.1")
        else:
            self._port = self._reactor.listenTCP(self.port, self, interface="127.0.0.1", backlog=200)
        assert self._port is not None
        where: Any = self._port.getHost()
        self.port = where.port

    def stop_listening(self) -> None:
        """Take no new connections; the others live."""
        port, self._port = self._port, None
        if port is not None:
            self._stopping = port.stopListening()

    def begin_shutdown(self, *, keep_port: bool = False) -> None:
        """Shut down as uvicorn does: take nobody new, close what is idle, wait for the streams to end.

        :param keep_port: whether connections are still accepted, though nobody answers there (``--reload``).
        """
        if keep_port:
            self.is_deaf = True
        else:
            self.stop_listening()
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections without a stream, as a server does now and then."""
        streaming = {stream.connection for stream in self.streams.values()}
        for connection in [each for each in self.connections if each not in streaming]:
            connection.drop("fin")

    def die(self, how: How = "rst") -> None:
        """Be killed: the port closes and every connection breaks; nothing is remembered."""
        self.stop_listening()
        self.streams = {}
        for connection in list(self.connections):
            connection.drop(how)

    async def revive(self) -> None:
        """Listen again, on the same port, in good health."""
        self.stop_listening()
        await self._stopping
        self.is_deaf = False
        self.start()

    async def restart(self, how: How = "rst") -> None:
        """Die and come back."""
        self.die(how)
        await self.revive()

    @property
    def is_listening(self) -> bool:
        """Whether the port is open."""
        return self._port is not None

    # -- serving -----------------------------------------------------------------------------------------------

    def buildProtocol(self, addr: Any) -> BackendConnection:
        """A connection."""
        return BackendConnection(self)

    def serve(self, connection: BackendConnection, asked: Asked) -> None:
        """Answer one HTTP request."""
        if asked.method == "POST":
            self.on_post(connection, asked)
        elif asked.path.startswith(("/health", "/.well-known/")):
            connection.write(self.health)
        else:
            self.on_get(connection, asked)

    def open_stream(self, connection: BackendConnection, asked: Asked) -> None:
        """Open a session."""
        name = f"{self.generation}-{len(self.streams) + self.connected}"
        self.streams[name] = Stream(name, connection, asked.headers, self.generation)
        connection.write(STREAM_HEAD)
        connection.write(event(f"/messages?session_id={name}".encode(), b"endpoint"))

    def take_post(self, connection: BackendConnection, asked: Asked) -> None:
        """Take a message for a session."""
        stream = self.streams.get(asked.path.partition("session_id=")[2])
        if stream is None:
            connection.write(response(404, b"Could not find session"))
            return
        message = json.loads(asked.body)
        self.got.append(Got(message, asked.headers, stream.name, self.generation))
        self.on_message(connection, stream, message)

    def accept(self, connection: BackendConnection, stream: Stream, message: Json) -> None:
        """Acknowledge a message, then answer it."""
        connection.write(ACCEPTED)
        self.handle(stream, message)

    def handle(self, stream: Stream, message: Json) -> None:
        """Do what a message asks."""
        method = message.get("method", "")
        if method == "notifications/initialized":
            stream.initialized = True
        if "id" not in message or not method:
            return
        if method not in ("initialize", "ping") and not stream.initialized:
            self.violations.append(message)
        answerer = self.answers.get(method, lambda stream, asked: messages.error(asked["id"], -32601))
        answer = answerer(stream, message)
        if answer is not None:
            stream.send(answer)

    # -- what it has seen --------------------------------------------------------------------------------------

    @property
    def stream(self) -> Stream:
        """The one open stream."""
        (stream,) = self.streams.values()
        return stream

    def methods(self, generation: int | None = None) -> list[str]:
        """The methods of what it got, in order."""
        return [got.method for got in self.got if generation in (None, got.generation)]

    def deliveries(self, method: str) -> list[Got]:
        """Every message of this method that it got."""
        return [got for got in self.got if got.method == method]
