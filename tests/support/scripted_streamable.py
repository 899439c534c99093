"""A backend that speaks just enough Streamable HTTP over raw TCP, and can die, stall, forget or lie at any byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import define, field

from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import Asked, BackendConnection, Got, How, ScriptedBackend, Stream, response

REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
JSON_HEADER = ("Content-Type", "application/json")
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_head(*headers: tuple[str, str]) -> bytes:
    """The head of an event stream that says where it ends."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"]
    return "\r\n".join((*lines, *(f"{name}: {value}" for name, value in headers), "", "")).encode()


def event(data: bytes, identity: str = "", retry: int | None = None) -> bytes:
    """One event as the SDKs write it."""
    lines = [b"event: message"]
    if identity:
        lines.append(b"id: " + identity.encode())
    if retry is not None:
        lines.append(b"retry: %d" % retry)
    return b"\r\n".join((*lines, b"data: " + data, b"", b""))


def refusal(status: int, code: int, text: str, *headers: tuple[str, str]) -> bytes:
    """A refused message: a status, and a JSON-RPC error that names no request."""
    return response(status, encoded(messages.error(None, code, text)), JSON_HEADER, *headers)


#: How servers answer a message under a session id that they do not know.
STALE: dict[str, bytes] = {
    "python": refusal(404, -32600, "Session not found"),
    "typescript": refusal(404, -32001, "Session not found"),
    "everything": refusal(400, -32000, "Bad Request: No valid session ID provided"),
    "fresh_id": refusal(400, -32600, "Bad Request", ("Mcp-Session-Id", "backend-session-never-begun")),
}


@define(eq=False)
class Session:
    """One session, as the backend knows it."""

    name: str
    version: str
    initialized: bool = False


@define(eq=False)
class Reply(Stream):
    """What is said to one POST or GET. A stream with event ids outlives its connection: it can be resumed."""

    backend: StreamableBackend = field(kw_only=True)
    message: Json = field(kw_only=True, factory=dict)
    session: Session | None = field(kw_only=True, default=None)
    begun: bool = False
    over: bool = False
    has_ids: bool = False
    log: list[bytes] = field(factory=list)

    @property
    def session_header(self) -> tuple[tuple[str, str], ...]:
        """The session's id, as official servers have it on every answer."""
        return (("Mcp-Session-Id", self.session.name),) if self.session is not None and self.session.name else ()

    def answer(self, message: Any) -> None:
        """Answer: as the end of the stream if there is one, else as JSON."""
        if not self.begun:
            self.over = True
            self.send_raw(response(200, encoded(message), JSON_HEADER, *self.session_header))
            return
        self.send(message)
        self.end()

    def begin(self, *, prime: bool = False, retry: int | None = None) -> None:
        """Answer with a stream.

        :param prime: whether its events have ids, of which the first has no data.
        """
        self.begun = True
        self.send_raw(stream_head(*self.session_header))
        if prime:
            self.has_ids = True
            self.send_data(b"", retry)

    def send(self, message: Any) -> None:
        """Send a message."""
        self.send_data(encoded(message))

    def send_data(self, data: bytes, retry: int | None = None) -> None:
        """Send an event; without a connection it waits for whoever resumes the stream."""
        identity = f"{self.name}_{len(self.log) + 1}" if self.has_ids else ""
        sent = chunk(event(data, identity, retry))
        if self.has_ids:
            self.log.append(sent)
        self.send_raw(sent)

    def end(self) -> None:
        """End the stream: all has been said."""
        self.over = True
        self.hang_up()

    def hang_up(self) -> None:
        """End this answer properly; the stream may go on in another."""
        self.send_raw(END)
        self.backend.streams.pop(self.name, None)

    def resume(self, connection: BackendConnection, last: int) -> None:
        """Go on here after that event."""
        self.connection = connection
        self.send_raw(stream_head(*self.session_header))
        for sent in self.log[last:]:
            self.send_raw(sent)
        if self.over:
            self.hang_up()


class StreamableBackend(ScriptedBackend):
    """See the module. Tests replace ``on_get``, ``on_post``, ``on_delete``, ``on_message``, ``on_stale``, ``answers``.

    ``sessions`` are those that it knows, ``streams`` the open GET streams; ``got`` is every message that it has not
    refused. ``violations`` are what a strict server would not take.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.path = "/mcp"
        self.sessions: dict[str, Session] = {}
        self.replies: dict[str, Reply] = {}
        self.secrets: list[str] = ["backend-session-", "backend-stream-"]
        self.is_stateless = False
        self.offers_stream = True
        self.primes_stream = False
        self.version = ""
        self.on_delete: Callable[[BackendConnection, Asked], None] = self.end_session
        self.on_stale: Callable[[BackendConnection, Asked], None] = self.refuse_as("python")
        self.answers["initialize"] = self._initialize

    def die(self, how: How = "rst") -> None:
        """Be killed: the port closes and every connection breaks; nothing is remembered."""
        self.forget()
        super().die(how)

    def forget(self) -> None:
        """Know no session any more; connections and streams stay."""
        self.sessions = {}
        self.replies = {}

    # -- serving -----------------------------------------------------------------------------------------------

    def serve(self, connection: BackendConnection, asked: Asked) -> None:
        """Answer one HTTP request."""
        if asked.path.startswith("/health"):
            connection.write(self.health)
        elif asked.path != self.path:
            connection.write(response(404, b"Not Found"))
        elif asked.method == "POST":
            self.on_post(connection, asked)
        elif asked.method == "GET":
            self.on_get(connection, asked)
        else:
            self.on_delete(connection, asked)

    def refuse_as(self, shape: str) -> Callable[[BackendConnection, Asked], None]:
        """Refuse unknown sessions in one of the shapes of ``STALE``."""
        return lambda connection, asked: connection.write(STALE[shape])

    def serve_anyway(self, connection: BackendConnection, asked: Asked) -> None:
        """Take a message under an unknown id as if nothing had happened."""
        self._take(connection, asked, Session(asked.headers["mcp-session-id"], "", initialized=True))

    def serve_as_another(self, connection: BackendConnection, asked: Asked) -> None:
        """Take a message under an unknown id, in a session that begins by itself."""
        self._take(connection, asked, self._begin_session("", initialized=True))

    def open_stream(self, connection: BackendConnection, asked: Asked) -> None:
        """GET: open a stream, or resume one."""
        if "text/event-stream" not in asked.headers.get("accept", ""):
            self.violations.append({"GET without Accept": asked.headers})
        session = self.sessions.get(asked.headers.get("mcp-session-id", ""))
        if self.is_stateless or not self.offers_stream:
            last = asked.headers.get("last-event-id", "")
            if not (last and self.offers_resume(last)):
                connection.write(response(405, b"Method Not Allowed"))
                return
        if session is None:
            self.on_stale(connection, asked)
            return
        self._check_version(asked, session)
        name, _, number = asked.headers.get("last-event-id", "").rpartition("_")
        reply = self.replies.get(name)
        if reply is None:
            reply = self._reply(connection, asked, {}, session)
            self.streams[reply.name] = reply
            reply.begin(prime=self.primes_stream)
        else:
            if not reply.message:
                self.streams[reply.name] = reply
            reply.resume(connection, int(number))

    def offers_resume(self, last_event: str) -> bool:
        """Whether there is a stream with this event."""
        return last_event.rpartition("_")[0] in self.replies

    def end_session(self, connection: BackendConnection, asked: Asked) -> None:
        """DELETE."""
        if self.sessions.pop(asked.headers.get("mcp-session-id", ""), None) is None:
            connection.write(STALE["python"])
        else:
            connection.write(response(200))

    def take_post(self, connection: BackendConnection, asked: Asked) -> None:
        """POST: take a message for a session."""
        accept = asked.headers.get("accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            self.violations.append({"POST without Accept": asked.headers})
        message = json.loads(asked.body)
        if not isinstance(message, dict):
            self.violations.append({"an array": message})
            connection.write(refusal(400, -32600, "no arrays"))
            return
        session = self.sessions.get(asked.headers.get("mcp-session-id", ""))
        if message.get("method") == "initialize":
            for name in ("mcp-session-id", "mcp-protocol-version"):
                if name in asked.headers:
                    self.violations.append({"initialize with": name})
            session = self._begin_session(self.version or message["params"]["protocolVersion"])
        elif session is None and self.is_stateless:
            session = Session("", asked.headers.get("mcp-protocol-version", ""), initialized=True)
        if session is None:
            self.on_stale(connection, asked)
            return
        self._check_version(asked, session)
        self._take(connection, asked, session)

    def _take(self, connection: BackendConnection, asked: Asked, session: Session) -> None:
        if asked.method == "GET":
            connection.write(response(405))
            return
        message = json.loads(asked.body)
        self.got.append(Got(message, asked.headers, session.name, self.generation))
        self.on_message(connection, self._reply(connection, asked, message, session), message)

    def _begin_session(self, version: str, *, initialized: bool = False) -> Session:
        name = "" if self.is_stateless else f"backend-session-{self.generation}-{len(self.asked)}"
        session = Session(name, version, initialized)
        if name:
            self.sessions[name] = session
        return session

    def _reply(self, connection: BackendConnection, asked: Asked, message: Json, session: Session) -> Reply:
        name = f"backend-stream-{self.generation}-{len(self.asked)}"
        reply = Reply(
            name,
            connection,
            asked.headers,
            self.generation,
            session.initialized,
            backend=self,
            message=message,
            session=session,
        )
        self.replies[name] = reply
        return reply

    def _check_version(self, asked: Asked, session: Session) -> None:
        named = asked.headers.get("mcp-protocol-version", "")
        if session.version and asked.method != "DELETE" and b'"initialize"' not in asked.body:
            wanted = session.version if session.version >= "2025-06-18" else ""
            if named != wanted:
                self.violations.append({"MCP-Protocol-Version": named, "wanted": wanted})

    def _initialize(self, stream: Stream, asked: Json) -> Json:
        result = messages.initialize_result(self.capabilities)
        version = self.version or asked["params"]["protocolVersion"]
        return messages.result(asked["id"], {**result, "protocolVersion": version})

    def accept(self, connection: BackendConnection, stream: Stream, message: Json) -> None:
        """Acknowledge what needs no answer, answer the rest."""
        if "id" not in message or "method" not in message:
            connection.write(response(202))
        self.handle(stream, message)

    def handle(self, stream: Stream, message: Json) -> None:
        """Do what a message asks; an answer of None means that the test gives it."""
        assert isinstance(stream, Reply)
        method = message.get("method", "")
        if method == "notifications/initialized" and stream.session is not None:
            stream.session.initialized = True
        if "id" not in message or not method:
            return
        if method not in ("initialize", "ping") and not stream.initialized:
            self.violations.append(message)
        answerer = self.answers.get(method, lambda stream, asked: messages.error(asked["id"], -32601))
        answer = answerer(stream, message)
        if answer is not None:
            stream.answer(answer)

    # -- what it has seen --------------------------------------------------------------------------------------

    @property
    def get_stream(self) -> Reply:
        """The one open GET stream."""
        (stream,) = self.streams.values()
        assert isinstance(stream, Reply)
        return stream

    def reply_to(self, method: str) -> Reply:
        """The newest reply to a request of this method."""
        return [each for each in self.replies.values() if each.message.get("method") == method][-1]

    def requests(self, generation: int | None = None) -> list[Asked]:
        """All that was asked of the endpoint, refused or not."""
        return [
            each for each in self.asked if each.path == self.path and generation in (None, each.generation)
        ]  # fmt: skip

    def line(self, generation: int | None = None) -> list[str]:
        """The same in short: the methods of messages, and GET and DELETE."""
        return [_short(each) for each in self.requests(generation)]

    def posts(self, method: str) -> int:
        """How many POSTs with this method there were, whatever became of them."""
        return self.line().count(method)

    def gets(self) -> list[Asked]:
        """The GETs of streams."""
        return [each for each in self.requests() if each.method == "GET"]


def _short(asked: Asked) -> str:
    if asked.method != "POST":
        return asked.method
    message = json.loads(asked.body)
    return str(message.get("method", "")) if isinstance(message, dict) else "array"
