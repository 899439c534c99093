"""A backend that costs next to nothing: MCP over Streamable HTTP and HTTP+SSE, answers made of bytes, one epoll loop.

``python -m bench.stub PORT`` listens on 127.0.0.1; port 0 is any free one. When it listens it prints one line: the port
and the moment (``time.monotonic_ns``). Each event is a chunk and a ``send`` of its own, as real servers do it.
``POST /push`` pushes one event to every open stream, and is for the load generator alone.
"""

from __future__ import annotations

import gc
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from itertools import count

from .messages import TOOLS, Message, answers, handshake, notice, read_message, reply
from .wire import Head, Reader, chunk

STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
GONE = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def plain(body: bytes, more: bytes = b"") -> bytes:
    """Return an answer with a JSON body; `more` are lines of its head."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        more,
        len(body),
        body,
    )


def event(data: bytes) -> bytes:
    """Return an event as a chunk."""
    return chunk(b"event: message\ndata: %b\n\n" % data)


class Stub:
    """The server: its sessions, its streams, and the loop."""

    def __init__(self, port: int) -> None:
        self._poll = select.epoll()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._ready: dict[int, Callable[[int], None]] = {self._listener.fileno(): self._accept}
        self._poll.register(self._listener, select.EPOLLIN)
        # The ids of one process are unknown to the next.
        boot = time.monotonic_ns()
        self._ids = (b"%x-%d" % (boot, number) for number in count(1))
        self.sessions: dict[bytes, bytes] = {}
        self.streams: dict[bytes, Connection] = {}

    def run(self) -> None:
        """Serve until the process is ended."""
        poll, ready = self._poll.poll, self._ready
        while True:
            for number, what in poll():
                handle = ready.get(number)
                if handle is not None:
                    handle(what)

    def _accept(self, what: int) -> None:
        try:
            while True:
                connection = Connection(self, self._listener.accept()[0])
                self._ready[connection.socket.fileno()] = connection.on_ready
                self._poll.register(connection.socket, select.EPOLLIN)
        except BlockingIOError:
            pass

    def watch(self, connection: Connection, writing: bool) -> None:
        """Wait for a connection to be readable, or for room in it as well."""
        self._poll.modify(connection.socket, select.EPOLLIN | (select.EPOLLOUT if writing else 0))

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        del self._ready[connection.socket.fileno()]
        if self.streams.get(connection.session) is connection:
            del self.streams[connection.session]
        connection.socket.close()

    def new_session(self, name: bytes) -> bytes:
        """Return the id of a session of a client of that name."""
        id = next(self._ids)
        self.sessions[id] = name
        return id

    def push(self) -> int:
        """Send one event to each stream; return how many that are. It names the client, and the moment."""
        for session, stream in self.streams.items():
            stream.pushed += 1
            text = b"%b %d %d" % (self.sessions[session], stream.pushed, time.monotonic_ns())
            stream.send(event(notice(text)))
        return len(self.streams)


class Connection:
    """A connection, whoever it comes from."""

    def __init__(self, stub: Stub, sock: socket.socket) -> None:
        self.socket = sock
        self.session = b""
        self.pushed = 0
        self._stub = stub
        self._reader = Reader()
        self._body: list[bytes] = []
        self._unsent = bytearray()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        """Send at once what can be sent, the rest when there is room."""
        sent = 0
        if not self._unsent:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                pass
            except OSError:
                # Whoever has gone will be noticed when the loop comes to it.
                return
            if sent == len(data):
                return
            self._stub.watch(self, writing=True)
        self._unsent += memoryview(data)[sent:]

    def on_ready(self, what: int) -> None:
        """There is something to read, or room to write."""
        try:
            if what & select.EPOLLOUT and self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
                if not self._unsent:
                    self._stub.watch(self, writing=False)
            if what & ~select.EPOLLOUT:
                data = self.socket.recv(262144)
                if not data:
                    raise ConnectionError
                self._read(data)
        except BlockingIOError:
            pass
        except OSError:
            self._stub.forget(self)

    def _read(self, data: bytes) -> None:
        for head, piece, done in self._reader.feed(data):
            if not done or self._body:
                self._body.append(piece)
            if done:
                body = b"".join(self._body) if self._body else piece
                self._body.clear()
                self._handle(head, body)

    def _handle(self, head: Head, body: bytes) -> None:
        method, target, _ = head.line.split(b" ", 2)
        path, _, query = target.partition(b"?")
        if method == b"POST" and path == b"/mcp":
            self._post(head.fields.get(b"mcp-session-id"), read_message(body))
        elif method == b"POST" and path == b"/mcp/messages/":
            self._message(query.partition(b"=")[2], read_message(body))
        elif method == b"POST" and path == b"/push":
            self.send(plain(b"%d" % self._stub.push()))
        elif method == b"GET" and path == b"/mcp":
            self._stream(head.fields.get(b"mcp-session-id", b""))
        elif method == b"GET" and path == b"/mcp/sse":
            self._open(self._stub.new_session(b""))
            self.send(chunk(b"event: endpoint\ndata: /mcp/messages/?session_id=%b\n\n" % self.session))
        else:
            self.send(plain(b"{}"))

    def _open(self, session: bytes) -> None:
        self.session = session
        self._stub.streams[session] = self
        self.send(STREAM)

    def _stream(self, session: bytes) -> None:
        if session in self._stub.sessions:
            self._open(session)
        else:
            self.send(GONE)

    def _post(self, session: bytes | None, message: Message) -> None:
        """A message over Streamable HTTP."""
        if message.method == "initialize":
            id = self._stub.new_session(message.params.clientInfo.name.encode())
            self.send(plain(self._reply(message)[0], b"mcp-session-id: %b\r\n" % id))
        elif session not in self._stub.sessions:
            self.send(GONE)
        elif not message.id:
            self.send(ACCEPTED)
        elif message.params.arguments.events:
            self.send(STREAM)
            for each in self._reply(message):
                self.send(event(each))
            self.send(LAST_CHUNK)
        else:
            self.send(plain(self._reply(message)[0]))

    def _message(self, session: bytes, message: Message) -> None:
        """A message over HTTP+SSE: the answer goes onto the stream."""
        stream = self._stub.streams.get(session)
        if stream is None:
            self.send(GONE)
            return
        self.send(ACCEPTED)
        if message.id:
            for each in self._reply(message):
                stream.send(event(each))

    def _reply(self, message: Message) -> list[bytes]:
        id, params = bytes(message.id), message.params
        if message.method == "tools/call":
            arguments = params.arguments
            return answers(id, arguments.token.encode(), arguments.events, arguments.size)
        if message.method == "initialize":
            return [reply(id, handshake(params.protocolVersion.encode()))]
        return [reply(id, TOOLS if message.method == "tools/list" else b"{}")]


def main() -> None:
    """Run a stub."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stub = Stub(int(sys.argv[1]))
    print(stub.port, time.monotonic_ns(), flush=True)
    gc.freeze()
    stub.run()


if __name__ == "__main__":
    main()
