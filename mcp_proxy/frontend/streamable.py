"""The Streamable HTTP front (revisions 2025-03-26 to 2025-11-25): POST, GET and DELETE on ``/mcp``.

A session begins with the answer to initialize, whose head tells its id. Trouble with a message of a session is told in
JSON-RPC under HTTP status 200, because clients throw away more than the request otherwise; HTTP statuses are for what
is no message of a session.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

from twisted.logger import Logger

from mcp_proxy.frontend.guard import check_post_head, check_stream_head, is_plain_post
from mcp_proxy.frontend.limits import Streams
from mcp_proxy.frontend.modern import ModernFront
from mcp_proxy.frontend.stream import ClientRequest, ClientStream
from mcp_proxy.frontend.watchers import Listening, Present
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.session.registry import Registry
from mcp_proxy.session.replies import CLIENT_RETRY, Reply, StreamableOutlet, Verdict
from mcp_proxy.session.session import Session
from mcp_proxy.wire import jsonrpc, revisions, sse
from mcp_proxy.wire.errors import (
    BackendUnavailable,
    BatchRefused,
    MissingSession,
    NothingToStream,
    NotJSONRPC,
    OnlyPost,
    ProxyError,
    UnknownSession,
    VersionRefused,
)
from mcp_proxy.wire.headers import Headers, first_of, once
from mcp_proxy.wire.jsonrpc import Kind, Message
from mcp_proxy.wire.modern import is_modern

log = Logger()

SESSION_HEADER = b"mcp-session-id"

_Streams = dict[ClientStream, StreamableOutlet]


class _Head(NamedTuple):
    """What the head of a request says; read once for all that have the same.

    ``is_plain``: as a POST it can carry messages, and its client can read a reply. ``is_legacy``: it names a revision
    with sessions, or none. ``token`` is the session's id, or empty.
    """

    is_plain: bool
    is_legacy: bool
    token: str

    @staticmethod
    def of(headers: Headers) -> _Head:
        """Read it."""
        first = first_of(headers)
        version = first.get(b"mcp-protocol-version", b"").decode("latin-1")
        token = first.get(SESSION_HEADER, b"").decode("latin-1")
        return _Head(is_plain_post(headers), not version or version in revisions.LEGACY, token)


class _Waiting(Present):
    """A client that waits for a reply."""

    __slots__ = ("_reply", "_session")

    def __init__(
        self, streams: _Streams, stream: ClientStream, outlet: StreamableOutlet, session: Session, reply: Reply
    ) -> None:
        super().__init__(streams, stream, outlet)
        self._session = session
        self._reply = reply

    def gone(self) -> None:
        """It has its reply, or has left."""
        super().gone()
        stream, session = self._stream, self._session
        self._reply.gone(stream)
        session.reply_over()
        if stream.paused:
            session.stream_resumed(self._reply)

    def paused(self) -> None:
        """It does not read."""
        self._session.stream_paused(self._reply)

    def resumed(self) -> None:
        """It reads again."""
        self._session.stream_resumed(self._reply)


class _Initializing(_Waiting):
    """A client that waits for the answer to initialize; the session stays only if it was initialized."""

    __slots__ = ()

    def gone(self) -> None:
        """It has its answer, or has left."""
        session = self._session
        super().gone()
        if not session.memory.initialize:
            session.close()


class StreamableFront:
    """See the module.

    :param modern: takes what belongs to the revision without sessions.
    :param room: whether there is any for another stream.
    :param max_batch: how many messages an array may have.
    """

    def __init__(self, registry: Registry, modern: ModernFront, room: Streams, max_batch: int = 100) -> None:
        self._registry = registry
        self._modern = modern
        self._room = room
        self._max_batch = max_batch
        self._streams: _Streams = {}
        self._judged = 0

    # -- POST --------------------------------------------------------------------------------------------------

    def post(self, request: ClientRequest) -> None:
        """``POST /mcp``: a message, or an array of them.

        :raises ProxyError: it is no message of a session of this client's, nor one that begins a session.
        """
        head = once(request.headers, _Head.of)
        if not (head.is_plain and request.has_length):
            check_post_head(request)
        messages, is_batch = jsonrpc.parse_all(request.body(), self._max_batch)
        first = messages[0]
        if not is_batch and is_modern(first, request.headers):
            self._modern.post(request, first)
            return
        if not head.is_legacy:
            _refuse_version()
        if is_batch and any(message.method == revisions.INITIALIZE for message in messages):
            raise NotJSONRPC("initialize must not be part of an array.")
        if first.method == revisions.INITIALIZE and first.kind is Kind.REQUEST:
            self._initialize(request, first)
            return
        session, outlet = self._session(request, head.token, is_message=True)
        if is_batch and session.memory.version != revisions.BATCHING:
            raise BatchRefused("Arrays of messages exist in revision 2025-03-26 only. Send the messages one by one.")
        challenge = session.credentials.take_challenge()
        if challenge is not None:
            request.stream.respond(challenge.status, challenge.body, challenge.headers)
            return
        self._receive(request, session, outlet, messages, is_batch)

    def _initialize(self, request: ClientRequest, message: Message) -> None:
        """A new session; it stays only if it can be initialized."""
        session = self._registry.create(request.headers, StreamableOutlet)
        log.info("new client connection", session=session.label, sessions=len(self._registry))
        outlet = session.outlet
        assert isinstance(outlet, StreamableOutlet)
        reply = outlet.open_reply(request.stream, headers=((SESSION_HEADER, session.id.encode()),))
        request.stream.watcher = _Initializing(self._streams, request.stream, outlet, session, reply)
        session.receive(message, request.headers, reply)

    def _receive(
        self,
        request: ClientRequest,
        session: Session,
        outlet: StreamableOutlet,
        messages: list[Message],
        is_batch: bool,
    ) -> None:
        awaited = sum([message.kind is Kind.REQUEST for message in messages])
        if not awaited:
            for message in messages:
                session.receive(message, request.headers)
            request.stream.respond(202, b"")
            return
        reply = outlet.open_reply(request.stream, awaited, version=session.memory.version, is_batch=is_batch)
        request.stream.watcher = _Waiting(self._streams, request.stream, outlet, session, reply)
        try:
            for message in messages:
                session.receive(message, request.headers, reply if message.kind is Kind.REQUEST else None)
        except Exception:
            outlet.dismiss(reply)
            raise

    # -- GET and DELETE ----------------------------------------------------------------------------------------

    def listen(self, request: ClientRequest) -> None:
        """``GET /mcp``: the stream for what belongs to no request, or the rest of a reply that broke.

        :raises ProxyError: there is no such session of this client's, or the client cannot read a stream.
        """
        _refuse_modern(request)
        _check_version(request)
        check_stream_head(request)
        try:
            session, outlet = self._session(request)
        except UnknownSession:
            if not self._let_judge(request):
                raise
        else:
            self._listen(request, session, outlet)

    def _let_judge(self, request: ClientRequest) -> bool:
        """Whether this may be the client with a new token; if so the backend is asked, and then the client listens."""
        token = request.header(SESSION_HEADER).decode("latin-1")
        session, stream = self._registry.find_renewing(token, request.headers), request.stream
        if session is None or not isinstance(session.outlet, StreamableOutlet):
            return False

        def told(challenge: HTTPAnswer | None) -> None:
            if stream.closed:
                return
            if challenge is not None:
                stream.respond(challenge.status, challenge.body, challenge.headers)
                return
            try:
                self._listen(request, *self._session(request))
            except UnknownSession:
                stream.fail(BackendUnavailable("The backend cannot be asked now whether it takes this credential."))
            except ProxyError as error:
                stream.refused(error)
                stream.fail(error)

        self._judged += 1
        ping = jsonrpc.parse(jsonrpc.request(b'"mcp-proxy/listen-%d"' % self._judged, revisions.PING))
        session.receive(ping, request.headers, Verdict(told))
        return True

    def _listen(self, request: ClientRequest, session: Session, outlet: StreamableOutlet) -> None:
        if request.method == "HEAD":
            request.stream.respond(200, b"", ((b"content-type", b"text/event-stream"),))
            return
        last_event = request.header(b"last-event-id")
        found = outlet.find(last_event) if last_event else None
        if found is not None and found[0] is not None:
            self._resume(request.stream, session, outlet, *found)
            return
        if not outlet.listens:
            self._room.admit()
        stream = request.stream
        stream.watcher = Listening(self._streams, stream, outlet, session)
        stream.start()
        if revisions.is_polling(session.memory.version):
            stream.write(sse.retry(CLIENT_RETRY))
        session.attach(stream, None if found is None else found[1])

    def _resume(
        self, stream: ClientStream, session: Session, outlet: StreamableOutlet, reply: Reply | None, since: int
    ) -> None:
        if reply is None or not reply.has_after(since):
            raise NothingToStream()
        stream.watcher = _Waiting(self._streams, stream, outlet, session, reply)
        stream.start()
        session.replayed(reply.resume(stream, since))

    def delete(self, request: ClientRequest) -> None:
        """``DELETE /mcp``: the client is done; so is the session, whether the backend hears of it or not.

        :raises ProxyError: there is no such session of this client's.
        """
        _refuse_modern(request)
        session, _ = self._session(request)
        session.close()
        request.stream.respond(200, b"")

    # -- what all of them need ---------------------------------------------------------------------------------

    def _session(
        self, request: ClientRequest, token: str | None = None, *, is_message: bool = False
    ) -> tuple[Session, StreamableOutlet]:
        token = once(request.headers, _Head.of).token if token is None else token
        if not token:
            raise MissingSession()
        find = self._registry.find_for_message if is_message else self._registry.find
        session = find(token, request.headers)
        if not isinstance(session.outlet, StreamableOutlet):
            raise UnknownSession()
        return session, session.outlet

    @property
    def open_streams(self) -> int:
        """How many event streams clients have open."""
        return sum(stream.started for stream in self._streams)

    def keep_alive(self) -> None:
        """Show every idle client that its stream lives; a reply that takes long becomes a stream."""
        for outlet in set(self._streams.values()):
            outlet.begin_waiting()
        for stream in list(self._streams):
            if stream.started and not stream.paused:
                stream.write(sse.comment(b"keepalive"))


def _refuse_modern(request: ClientRequest) -> None:
    """In the revision without sessions there is nothing but POST."""
    version = request.header(b"mcp-protocol-version").decode("latin-1")
    if version in revisions.MODERN and not request.header(SESSION_HEADER):
        raise OnlyPost()


def _check_version(request: ClientRequest) -> None:
    """A client names the revision that was agreed on; one that names none speaks the one that had no such header."""
    if not once(request.headers, _Head.of).is_legacy:
        _refuse_version()


def _refuse_version() -> NoReturn:
    spoken = ", ".join(revisions.LEGACY)
    raise VersionRefused(f"MCP-Protocol-Version must be one of {spoken}.")
