"""A backend that lives for a second or two: ``python -m soak.backend PORT LEDGER KIND``.

It speaks what its kind says: ``dual`` (2026-07-28 and earlier revisions over Streamable HTTP), ``legacy`` (only those),
``modern`` (only 2026-07-28), ``sse`` (HTTP+SSE). Each ``write`` is noted in the ledger before anything is answered; a
note is one ``write()`` to a file, which SIGKILL does not undo. When it reads a line it begins to listen, and prints the
moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from bench.wire import CHUNKED, Head, Reader

Json = dict[str, Any]
Send = Callable[[Json], None]

META = "io.modelcontextprotocol/"
CAPABILITIES: Json = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {},
    "logging": {},
}
TOOLS = [{"name": "write", "description": "tools", "inputSchema": {"type": "object"}}]


class Stream:
    """An event stream to somebody, or what waits for one."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._waiting: list[bytes] = []

    def open(self, connection: Connection, first: bytes = b"") -> None:
        """It is read there from now on."""
        self._connection = connection
        connection.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        waiting, self._waiting = self._waiting, []
        for data in (first, *waiting):
            self._write(data)

    def send(self, message: Json) -> None:
        """Send a message, now or when there is somebody."""
        self._write(b"event: message\ndata: %b\n\n" % json.dumps(message).encode())

    def _write(self, data: bytes) -> None:
        if self._connection is None:
            self._waiting.append(data)
        elif data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """That was all."""
        if self._connection is not None:
            self._connection.write(b"0\r\n\r\n")


class Session:
    """One client's, as far as this backend knows; ``told`` goes to its stream."""

    def __init__(self, id: str, client: str) -> None:
        self.id = id
        self.client = client
        self.stream = Stream()
        self.subscribed: set[str] = set()
        self._numbers = count(1)

    def tell(self) -> None:
        """Tell the client that something has happened."""
        text = f"{self.client} {self.id} {next(self._numbers)}"
        self.stream.send(_notice("notifications/message", level="error", data=text))
        for uri in self.subscribed:
            self.stream.send(_notice("notifications/resources/updated", uri=uri))


class Listen:
    """A subscription of revision 2026-07-28."""

    def __init__(self, id: Any, client: str, origin: str, stream: Stream) -> None:
        self.client = client
        self.stream = stream
        self._id = id
        self._origin = origin
        self._numbers = count(1)

    def tell(self) -> None:
        """Tell the client that something has happened."""
        meta = {META + "subscriptionId": self._id, "soak": f"{self.client} {self._origin} {next(self._numbers)}"}
        self.stream.send(_notice("notifications/tools/list_changed", _meta=meta))


def _notice(method: str, **params: Any) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


class Backend:
    """What all connections share."""

    def __init__(self, ledger: str, kind: str) -> None:
        self.kind = kind
        self.sessions: dict[str, Session] = {}
        self.listens: dict[Connection, Listen] = {}
        self.work: set[asyncio.Task[None]] = set()
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._names = count(1)

    def new_name(self) -> str:
        """Return a name for a session that no other process gives."""
        return f"{os.getpid()}-{time.monotonic_ns():x}-{next(self._names)}"

    def start(self, message: Json, session: Session | None, send: Send, end: Callable[[], None]) -> None:
        """Carry out a request."""
        task = asyncio.get_running_loop().create_task(self._serve(message, session, send, end))
        self.work.add(task)
        task.add_done_callback(self.work.discard)

    async def _serve(self, message: Json, session: Session | None, send: Send, end: Callable[[], None]) -> None:
        method, params = message["method"], message.get("params") or {}
        meta = params.get("_meta") or {}
        result: Json = {}
        if method == "tools/call":
            arguments = params["arguments"]
            os.write(self._ledger, f"{arguments['token']}\n".encode())
            for number in range(1, arguments.get("steps", 0) + 1):
                if "progressToken" in meta:
                    about = {"progressToken": meta["progressToken"], "progress": number}
                    send(_notice("notifications/progress", **about, message=f"{arguments['token']} {number}"))
                await asyncio.sleep(arguments["pause"])
            result = {"content": [{"type": "text", "text": arguments["token"]}]}
            client = session.client if session else meta.get(META + "clientInfo", {}).get("name")
            for each in [session] if session else [each for each in self.listens.values() if each.client == client]:
                each.tell()
        elif method == "resources/read":
            await asyncio.sleep(0.05 if params["uri"].endswith("slow") else 0)
            result = {"contents": [{"uri": params["uri"], "text": params["uri"]}]}
        elif method == "tools/list":
            result = {"tools": TOOLS}
        elif method == "prompts/list":
            result = {"prompts": []}
        elif method == "resources/list":
            result = {"resources": []}
        elif method == "resources/templates/list":
            result = {"resourceTemplates": []}
        elif method == "server/discover":
            about = {META + "serverInfo": {"name": "soak", "version": "1"}}
            result = {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES, "_meta": about}
        elif method == "resources/subscribe" and session:
            session.subscribed.add(params["uri"])
        elif method == "resources/unsubscribe" and session:
            session.subscribed.discard(params["uri"])
        if session is None:
            result |= {"resultType": "complete"}
            if method in ("tools/list", "resources/read", "server/discover"):
                result |= {"ttlMs": 0, "cacheScope": "private"}
        send({"jsonrpc": "2.0", "id": message["id"], "result": result})
        end()


class Connection(asyncio.Protocol):
    """A connection of the proxy's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._reader = Reader()
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._backend.listens.pop(self, None)

    def write(self, data: bytes) -> None:
        """Send, if somebody is there."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Some of a request has come."""
        for head, piece, is_done in self._reader.feed(data):
            self._body += piece
            if is_done:
                body, self._body = self._body, b""
                self._handle(head, body)

    def _respond(self, status: str, body: bytes = b"", fields: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{fields}content-length: {len(body)}\r\n\r\n"
        self.write(head.encode() + body)

    def _handle(self, head: Head, body: bytes) -> None:
        assert head.length != CHUNKED or body
        method, target, _ = head.line.decode().split(" ")
        path, _, query = target.partition("?")
        kind = self._backend.kind
        if path == "/health":
            self._respond("200 OK", b"{}")
        elif path == "/mcp" and kind != "sse":
            session = self._backend.sessions.get(head.fields.get(b"mcp-session-id", b"").decode())
            if method == "POST":
                self._post(json.loads(body), session)
            elif session is None:
                self._respond("404 Not Found" if kind != "modern" else "405 Method Not Allowed")
            elif method == "GET":
                session.stream.open(self)
            else:
                del self._backend.sessions[session.id]
                self._respond("200 OK")
        elif path == "/mcp/sse" and kind == "sse":
            session = Session(self._backend.new_name(), "")
            self._backend.sessions[session.id] = session
            session.stream.open(self, f"event: endpoint\ndata: /mcp/messages/?session_id={session.id}\n\n".encode())
        elif path == "/mcp/messages/" and kind == "sse":
            self._message(json.loads(body), self._backend.sessions.get(query.partition("=")[2]))
        else:
            self._respond("404 Not Found")

    def _post(self, message: Json, session: Session | None) -> None:
        params = message.get("params") or {}
        kind = self._backend.kind
        is_modern = META + "protocolVersion" in (params.get("_meta") or {})
        if is_modern and kind == "legacy" or not is_modern and kind == "modern":
            error = {"code": -32000, "message": "Bad Request: unsupported protocol version"}
            if kind == "modern":
                error = {"code": -32022, "message": "Unsupported protocol version"}
            body = {"jsonrpc": "2.0", "id": message.get("id"), "error": error}
            self._respond("400 Bad Request", json.dumps(body).encode())
        elif is_modern and message["method"] == "subscriptions/listen":
            self._listen(message)
        elif message.get("method") == "initialize":
            session = Session(self._backend.new_name(), params["clientInfo"]["name"])
            self._backend.sessions[session.id] = session
            answer = json.dumps(_initialized(message)).encode()
            self._respond("200 OK", answer, f"mcp-session-id: {session.id}\r\n")
        elif session is None and not is_modern:
            self._respond("404 Not Found")
        elif "id" not in message or "method" not in message:
            self._respond("202 Accepted")
        elif (params.get("arguments") or {}).get("steps") or "slow" in params.get("uri", ""):
            reply = Stream()
            reply.open(self)
            self._backend.start(message, session, reply.send, reply.end)
        else:
            self._backend.start(
                message, session, lambda answer: self._respond("200 OK", json.dumps(answer).encode()), lambda: None
            )

    def _listen(self, message: Json) -> None:
        params = message["params"]
        name = params["_meta"].get(META + "clientInfo", {}).get("name", "")
        listen = Listen(message["id"], name, self._backend.new_name(), Stream())
        listen.stream.open(self)
        meta = {META + "subscriptionId": message["id"]}
        wanted = params["notifications"]
        listen.stream.send(_notice("notifications/subscriptions/acknowledged", notifications=wanted, _meta=meta))
        self._backend.listens[self] = listen

    def _message(self, message: Json, session: Session | None) -> None:
        """A message over HTTP+SSE."""
        if session is None:
            self._respond("404 Not Found")
            return
        self._respond("202 Accepted")
        if message.get("method") == "initialize":
            session.client = message["params"]["clientInfo"]["name"]
            session.stream.send(_initialized(message))
        elif "id" in message and "method" in message:
            self._backend.start(message, session, session.stream.send, lambda: None)


def _initialized(message: Json) -> Json:
    result = {
        "protocolVersion": message["params"]["protocolVersion"],
        "capabilities": CAPABILITIES,
        "serverInfo": {"name": "soak", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


async def serve(port: int, ledger: str, kind: str) -> None:
    """Serve until SIGTERM, and then what is being worked at, for half a second."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    backend = Backend(ledger, kind)
    server = await loop.create_server(lambda: Connection(backend), "127.0.0.1", port, backlog=1024)
    print(time.monotonic(), flush=True)
    await stopped.wait()
    server.close()
    if backend.work:
        await asyncio.wait(backend.work, timeout=0.5)
    await asyncio.sleep(0.02)


if __name__ == "__main__" and sys.stdin.readline():
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
