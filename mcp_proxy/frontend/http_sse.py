"""The HTTP+SSE front (revision 2024-11-05): ``GET /mcp/sse`` and ``POST /mcp/messages/{session}``.

A stream is always given, also while the backend is away; trouble with a message is told on the stream. Each event
has an id that names the session, so an EventSource that reconnects (it sends Last-Event-ID, and no initialize) gets
its session back.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.frontend.guard import check_message_head, check_stream_head
from mcp_proxy.frontend.limits import Streams
from mcp_proxy.frontend.stream import ClientRequest, ClientStream
from mcp_proxy.frontend.watchers import Listening, Present
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.session.outlet import SSEOutlet
from mcp_proxy.session.registry import Registry
from mcp_proxy.session.session import Session
from mcp_proxy.wire import jsonrpc, sse
from mcp_proxy.wire.errors import UnknownSession

log = Logger()

#: For how many seconds the head of a new stream waits for the backend's word, so that its 401 can be passed on.
VERDICT_WAIT = 2.0
#: What an EventSource is told to wait, in milliseconds, before it connects again.
CLIENT_RETRY = 1000


class _Opening(Present):
    """A client whose stream has no head yet; its session is over when it leaves."""

    __slots__ = ("_session",)

    def __init__(self, streams: dict[ClientStream, Session], stream: ClientStream, session: Session) -> None:
        super().__init__(streams, stream, session)
        self._session = session

    def gone(self) -> None:
        """It has left."""
        super().gone()
        self._session.close()


class HTTPSSEFront:
    """See the module.

    :param room: whether there is any for another stream.
    :param messages_path: the path under which sessions take messages, with the slash at its end.
    """

    def __init__(
        self, registry: Registry, clock: IReactorTime, room: Streams, messages_path: str = "/mcp/messages/"
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._room = room
        self._messages_path = messages_path
        self._streams: dict[ClientStream, Session] = {}

    def open_stream(self, request: ClientRequest) -> None:
        """``GET /mcp/sse``.

        :raises NotAcceptable: the client cannot read a stream.
        :raises TooManySessions, TooManyStreams: there is no room.
        """
        check_stream_head(request)
        if request.method == "HEAD":
            request.stream.respond(200, b"", ((b"content-type", b"text/event-stream"),))
            return
        adopted = self._adopt(request)
        if adopted is None or not adopted[0].attached:
            self._room.admit()
        if adopted is not None:
            session, since = adopted
            log.info("client came back", session=session.label, generation=session.generation)
            self._attach(session, request.stream, since)
            return
        session = self._registry.create(request.headers, SSEOutlet)
        log.info("new client connection", session=session.label, sessions=len(self._registry))
        stream = request.stream
        stream.watcher = _Opening(self._streams, stream, session)
        self._soon(session.first_verdict()).addCallback(self._judged, session, stream).addErrback(
            lambda failure: self._broken(failure, session, stream)
        )

    def post(self, request: ClientRequest, token: str) -> None:
        """``POST /mcp/messages/{token}``.

        :raises ProxyError: the path is not a session of this client's, or the body is not a JSON-RPC message.
        """
        session = _of_this_front(self._registry.find_for_message(token, request.headers))
        check_message_head(request)
        message = jsonrpc.parse(request.body())
        challenge = session.credentials.take_challenge()
        if challenge is not None:
            self._pass_on(challenge, request.stream)
            return
        session.receive(message, request.headers)
        request.stream.respond(202, b"Accepted", ((b"content-type", b"text/plain"),))

    @property
    def open_streams(self) -> int:
        """How many event streams clients have open."""
        return len(self._streams)

    def keep_alive(self) -> None:
        """Show every idle client that its stream lives, and notice those that have gone."""
        for stream in self._streams:
            if not stream.paused:
                stream.write(sse.comment(b"keepalive"))

    def _adopt(self, request: ClientRequest) -> tuple[Session, int] | None:
        """The session that Last-Event-ID names, and the number of the last event that the client has seen."""
        token, _, number = request.header(b"last-event-id").decode("latin-1").rpartition(".")
        if not token or not (number.isascii() and number.isdigit()) or len(number) > 15:
            return None
        try:
            return _of_this_front(self._registry.find(token, request.headers)), int(number)
        except UnknownSession:
            return None

    def _soon(self, verdict: Deferred[HTTPAnswer | None]) -> Deferred[HTTPAnswer | None]:
        """The verdict, or none if it takes too long."""
        first: Deferred[HTTPAnswer | None] = Deferred()
        deadline = self._clock.callLater(VERDICT_WAIT, first.callback, None)

        def judged(challenge: HTTPAnswer | None) -> None:
            if deadline.active():
                deadline.cancel()
                first.callback(challenge)

        verdict.addCallback(judged)
        return first

    def _judged(self, challenge: HTTPAnswer | None, session: Session, stream: ClientStream) -> None:
        if stream.closed:
            return
        if challenge is None:
            self._attach(session, stream, 0)
            return
        stream.watcher = Present(self._streams, stream, session)
        session.close()
        self._pass_on(challenge, stream)

    def _broken(self, failure: Failure, session: Session, stream: ClientStream) -> None:
        log.failure("stream could not be opened", failure)
        session.close()
        stream.abort()

    def _attach(self, session: Session, stream: ClientStream, since: int) -> None:
        stream.watcher = Listening(self._streams, stream, session, session)
        stream.start()
        since = min(since, session.outlet.last_event)
        endpoint = sse.encode(
            f"{self._messages_path}{session.id}".encode(), b"endpoint", f"{session.id}.{since}".encode()
        )
        stream.write(b"retry: %d\n" % CLIENT_RETRY + endpoint)
        session.attach(stream, since)

    @staticmethod
    def _pass_on(challenge: HTTPAnswer, stream: ClientStream) -> None:
        stream.respond(challenge.status, challenge.body, challenge.headers)


def _of_this_front(session: Session) -> Session:
    if not isinstance(session.outlet, SSEOutlet):
        raise UnknownSession()
    return session
