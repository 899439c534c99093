"""A link over Streamable HTTP (revisions 2025-03-26 to 2025-11-25).

Each message is a POST. A request's POST is answered with its response, or with a stream of messages that ends with it;
a GET stream brings what belongs to no request. A stream that breaks is not a lost session: a ping under the same
session id tells which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.doubts import UNKNOWN, Doubts
from mcp_proxy.backend.errands import Errands
from mcp_proxy.backend.failures import RequestFailed, describe
from mcp_proxy.backend.http import BackendClient
from mcp_proxy.backend.listener import Listener
from mcp_proxy.backend.outbox import Outbox
from mcp_proxy.backend.post import OF_A_MESSAGE, Post, PostHeaders
from mcp_proxy.backend.remainder import Remainder
from mcp_proxy.backend.response import EVENT_STREAM, GATEWAY, Response, shown_answer
from mcp_proxy.session.interfaces import HTTPAnswer, ILinkOwner, Loss, Outgoing, Refusal
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import NotJSON, NotJSONRPC
from mcp_proxy.wire.headers import Headers, standing
from mcp_proxy.wire.sse import Decoder, Event, Oversized

log = Logger()

#: How many POSTs of one link may be under way.
MAX_POSTS = 1100
#: For how many seconds a message that must keep its place waits for the backend to answer the others' heads.
ORDER_WAIT = 0.1
#: For how many seconds messages wait for the GET stream, on which they might have effects.
STREAM_WAIT = 1.0
#: For how many seconds at least a stream may stay open after its answer; nothing that matters can come on it.
EPILOGUE = 5.0
#: How long, in seconds, the end of a session at the backend may take.
FAREWELL = 5.0

_PING = b'"mcp-proxy/link"'


class StreamableLink:
    """One link. It is opened with :meth:`open` and over with :meth:`close` or ``owner.link_lost``.

    :param owner: is told what happens.
    :param url: the backend's MCP endpoint.
    :param headers: what goes with every request of the session.
    :param try_connect: fails if nobody is there.
    :param open_timeout: seconds until the backend must have answered where nothing has to be worked out.
    :param is_away: for a request of a revision without sessions: whether the backend is known to be away.
    """

    correlates = True
    is_owed = True
    is_judged = False

    def __init__(
        self,
        owner: ILinkOwner,
        client: BackendClient,
        clock: IReactorTime,
        url: str,
        headers: Headers,
        try_connect: Callable[[], Deferred[None]],
        *,
        max_event_bytes: int,
        open_timeout: float,
        is_away: Callable[[], bool] | None = None,
    ) -> None:
        self.max_event_bytes = max_event_bytes
        self.owner = owner
        self._client = client
        self._clock = clock
        self._url = url
        self._headers = headers
        self._heads = PostHeaders(OF_A_MESSAGE)
        self._try_connect = try_connect
        self._open_timeout = open_timeout
        self._is_away = is_away
        self.session = b""
        self._version = ""
        self._closed = False
        self._posts: dict[Outgoing, Post] = {}
        self._outbox = Outbox(clock, self._send_now, max_posts=MAX_POSTS, order_wait=ORDER_WAIT)
        self._pausers: dict[object, None] = {}
        self._errands = Errands(clock, open_timeout)
        self._doubts = Doubts(self, clock)
        self._timers = Timers(clock)
        self._listener = Listener(self, clock)
        self._remainder = Remainder(self, clock)

    # -- opening and closing -----------------------------------------------------------------------------------

    def open(self) -> None:
        """See whether anybody listens; there is no connection to be kept.

        A single request finds out by itself, unless there is reason to doubt.
        """
        if self._is_away is not None and not self._is_away():
            self.owner.link_opened(self)
            return
        self._errands.run(self._try_connect(), lambda _: self.owner.link_opened(self), self._unreachable)

    def _unreachable(self, failure: Failure) -> None:
        error = failure.value
        self.lose(Loss(error.reason if isinstance(error, RequestFailed) else describe(failure), reachable=False))

    def close(self, *, done: bool = False) -> None:
        """The end: nothing more is sent, nothing more is told.

        :param done: end the session at the backend as well.
        """
        if self._closed:
            return
        self._closed = True
        self._timers.cancel_all()
        self._outbox.clear()
        self._doubts.close()
        self._listener.close()
        self._remainder.close()
        for post in list(self._posts.values()):
            post.abort()
        self._errands.close()
        if done and self.session:
            self._client.farewell("DELETE", self._url, (*self._headers, *self._heads.own), FAREWELL)

    def lose(self, loss: Loss) -> None:
        """It is over, and the owner is told."""
        if not self._closed:
            self.close()
            self.owner.link_lost(self, loss)

    # -- pressure ----------------------------------------------------------------------------------------------

    def pause(self, source: object) -> None:
        """The client does not read what comes from this source."""
        self._pausers[source] = None
        for response in self._feeding(source):
            response.pause()
        if source is None:
            self._listener.pause()

    def resume(self, source: object) -> None:
        """It reads again."""
        self._pausers.pop(source, None)
        for response in self._feeding(source):
            response.resume()
        if source is None:
            self._listener.resume()

    def _feeding(self, source: object) -> list[Response]:
        return [post.response for post in self._posts.values() if post.response and post.source is source]

    # -- messages to the backend -------------------------------------------------------------------------------

    def send(self, outgoing: Outgoing) -> None:
        """Post a message when its turn comes."""
        if self._closed:
            return
        if not self._outbox.add(outgoing):
            self.owner.link_refused(self, outgoing, Refusal(0, "too many messages wait for the backend"))

    def withdraw(self, outgoing: Outgoing) -> None:
        """Nobody wants an answer to this request any more: it is not sent, or its stream is closed."""
        post = self._posts.get(outgoing)
        if not self._outbox.withdraw(outgoing) and post is not None:
            self._forget(post)
            post.abort()

    def _is_withdrawn(self, post: Post) -> bool:
        return self._posts.get(post.outgoing) is not post

    def _send_now(self, outgoing: Outgoing) -> None:
        if outgoing.method == revisions.INITIALIZED:  # until it is known whether there is a GET stream
            self._outbox.hold()
            self._timers.set("gate", self._open_timeout, self.listening_settled)
        post = self._posts[outgoing] = Post(self, outgoing, self._url, self._heads.of(outgoing))
        post.request = self._client.ask(post)

    def post_sending(self, post: Post) -> None:
        """A message is about to be handed to the network."""
        if not self._closed:
            self.owner.link_sent(self, post.outgoing)

    def post_failed(self, post: Post, error: RequestFailed) -> None:
        """There is no answer to a POST."""
        if self._closed or self._is_withdrawn(post):
            return
        if post.reuse:
            post.reuse = False  # the idle connection was closed; this message may be repeated
            post.request = self._client.ask(post)
        elif error.sent and post.identity is not None:
            self.broke(post, error.reason)
        else:
            self.refuse(post, Refusal(0, error.reason))

    def refuse(self, post: Post, refusal: Refusal) -> None:
        """Nothing comes of a message."""
        if self._is_withdrawn(post):
            return
        self._forget(post)
        if not self._closed:
            if post.outgoing.method == revisions.INITIALIZED:
                self.listening_settled()
            self.owner.link_refused(self, post.outgoing, refusal)

    def _forget(self, post: Post) -> None:
        """Nothing more comes of it."""
        self._posts.pop(post.outgoing, None)
        self._posts = self._posts or {}  # an emptied one is large
        self._outbox.done(post.outgoing)

    # -- what comes back on a POST -----------------------------------------------------------------------------

    def post_answered(self, post: Post, response: Response) -> None:
        """The head of the answer to a POST has come."""
        if self._closed or self._is_withdrawn(post):
            response.abort()
        elif not 200 <= response.status < 300:
            shown_answer(response, self._clock).addCallback(self._rejected, post)
        elif post.identity is None:
            response.discard()
            self._taken(post)
        else:
            self._begun(response, post)

    def _taken(self, post: Post) -> None:
        """A notification or an answer was taken."""
        self._accepted(post)
        if post.outgoing.method == revisions.INITIALIZED and not self._closed:
            self._timers.set("gate", STREAM_WAIT, self.listening_settled)
            self._listener.ask()
        self._forget(post)

    def _accepted(self, post: Post) -> None:
        self._headers = standing(post.outgoing.headers)  # with the newest credential that the backend takes
        self.owner.link_accepted(self, post.outgoing)

    def _begun(self, response: Response, post: Post) -> None:
        """A request was taken, and its answer begins."""
        post.session = response.header(b"mcp-session-id")
        self._accepted(post)
        self._outbox.heard(post.outgoing)
        if self._closed:
            response.abort()
        elif (kind := response.kind) == EVENT_STREAM:
            if post.exchange is not None:
                self.owner.link_streaming(self, post.exchange)
            self._deliver(response, post, Decoder(self.max_event_bytes))
        elif kind == b"application/json":
            self._deliver(response, post, None)
        else:
            response.abort()
            shown = kind.decode("ascii", "replace")[:60] or "nothing"
            self.refuse(post, Refusal(0, f"the backend answered {response.status} with {shown} to a request"))

    def _deliver(self, response: Response, post: Post, decoder: Decoder | None) -> None:
        post.deliver(response, decoder)
        if self._pausers and post.source in self._pausers:
            response.pause()

    def _rejected(self, answer: HTTPAnswer, post: Post) -> None:
        """A message was not taken."""
        if self._closed or self._is_withdrawn(post):
            return
        status = answer.status
        hint = " (redirects are not followed)" if 300 <= status < 400 else ""
        refusal = Refusal(status, f"the backend answered {status}{hint} to a message", answer)
        if self._version and (status in UNKNOWN or (status == 400 and self._doubts.is_stale)):
            self._outbox.hold()
            self._forget(post)
            self._doubts.session_unknown(post, refusal.reason)
        elif (status == 400 and self._version) or (status >= GATEWAY and (self._version or self._is_away is not None)):
            self._doubts.message_refused(post, refusal)
            self._outbox.heard(post.outgoing)
        else:
            self.refuse(post, refusal)

    def only_a_message(self, post: Post, refusal: Refusal) -> None:
        """The backend knows the session, so what it said was meant for that very message."""
        own = None
        if post.exchange is None and refusal.answer is not None:
            own = jsonrpc.error_under(post.identity or b"null", refusal.answer.body)
        if own is None:
            self.refuse(post, evolve(refusal, is_genuine=True))
            return
        self._forget(post)
        self.owner.link_received(self, jsonrpc.parse(own))  # to a request of ours, an error like any other

    def event_received(self, event: Event | Oversized, post: Post | None) -> None:
        """An event of a POST's stream, or of the GET stream."""
        if self._closed:
            return
        if isinstance(event, Oversized):
            if post is not None and jsonrpc.answered_id(event.head, event.tail) == post.identity:
                post.is_answered = True
            self.owner.link_oversized(self, event)
            return
        if event.type == "message" and event.data:
            self._messages_received(event.data, post)

    def body_received(self, post: Post, body: bytes, size: int) -> None:
        """The whole of an answer that is no stream."""
        if self._closed:
            return
        if size > self.max_event_bytes:
            post.is_answered = True
            self.owner.link_oversized(self, Oversized(b"", b"", size), post.exchange)
        else:
            self._messages_received(body, post)
        self._over(post, "the backend's answer to a request is cut off, or none")

    def _messages_received(self, data: bytes, post: Post | None) -> None:
        try:
            messages, _ = jsonrpc.parse_all(data)
        except (NotJSON, NotJSONRPC) as error:
            log.warn("message of the backend's dropped: {reason}", reason=error.message)
            return
        for message in messages:
            if post is not None and post.is_answered_by(message):
                post.is_answered = True
                if post.is_stream:
                    self._timers.keep("epilogue", EPILOGUE, self._epilogue)
                if message.id is None:
                    message = jsonrpc.parse(jsonrpc.with_id(message.raw, post.identity or b"null"))
                if post.outgoing.method == revisions.INITIALIZE and not message.is_error:
                    self.session = post.session
                    self._version = str(message.params().get("protocolVersion", ""))
                    self._heads.agreed(self.session, self._version)
            if not self._closed:
                self.owner.link_received(self, message, None if post is None else post.exchange)

    def _over(self, post: Post, reason: str) -> None:
        """Nothing more comes on a POST."""
        if self._closed:
            return
        if not post.is_answered:
            self.refuse(post, Refusal(0, reason))
            return
        self._forget(post)
        if post.session and self.session and post.session != self.session:
            self._doubts.session_lost("it has begun another by itself")

    def _epilogue(self) -> None:
        """A stream that its backend does not end after the answer has had its time when this comes twice."""
        for post in [post for post in self._posts.values() if post.is_answered]:
            if post.is_late:
                post.abort()
                self._over(post, "")
            post.is_late = True
            self._timers.keep("epilogue", EPILOGUE, self._epilogue)

    # -- broken streams ----------------------------------------------------------------------------------------

    def stream_ended(self, post: Post, reason: str) -> None:
        """The stream of a POST is over; if it was not the backend's way to let us poll, the backend is asked why."""
        if self._closed or post.is_answered:
            self._over(post, reason)
        elif post.last_event and self._version and reason == "the stream ended":
            if post.exchange is not None and post.retry is not None:  # it says when to come back, so it means to
                self.owner.link_polling(self, post.exchange, post.retry)
            self._remainder.ask_later(post)
        else:
            self.broke(post, reason)

    def resumed(self, post: Post, response: Response) -> None:
        """The rest of it comes."""
        self._deliver(response, post, Decoder(self.max_event_bytes))

    def broke(self, post: Post, reason: str) -> None:
        """It broke, or asking for the rest has failed: the backend may have gone."""
        self._doubts.stream_broke(post, reason)

    def get(self, last_event: str, answered: Callable[[Response], None], failed: Callable[[Failure], None]) -> None:
        """Ask for a stream, from after this event on."""
        since: Headers = ((b"Last-Event-ID", last_event.encode()),) if last_event else ()
        headers = (*self._headers, (b"Accept", b"text/event-stream"), *self._heads.own, *since)
        self._errands.run(self._client.open("GET", self._url, headers), answered, failed)

    def ask(self, answered: Callable[[Response | None], None], *, is_gateway: bool) -> None:
        """Ping the session; without one, see whether anybody listens."""
        if not self._version or not (self.session or is_gateway):
            self._errands.run(self._try_connect(), lambda _: answered(None), self._unreachable)
            return
        headers = (*self._headers, *OF_A_MESSAGE, *self._heads.own)
        asked = self._client.open("POST", self._url, headers, jsonrpc.request(_PING, revisions.PING))
        self._errands.run(asked, answered, self._unreachable)

    def only_a_stream(self, post: Post, reason: str) -> None:
        """The backend is there: what it was sending is resumed if it gave event ids."""
        if post.last_event and self._version:
            self._remainder.ask_later(post)
        else:
            self.refuse(post, Refusal(0, reason))

    @property
    def is_blind(self) -> bool:
        """Whether it would not notice another backend: it has no session there, and nothing is open."""
        return not (self.session or self._posts or self._listener.is_open)

    @property
    def has_unheard(self) -> bool:
        """Whether there is a message of which nobody knows yet what the backend makes of it."""
        return self._outbox.has_unheard

    def hold(self) -> None:
        """Send nothing any more."""
        self._outbox.hold()

    def go(self) -> None:
        """Send again, unless it is the GET stream that is waited for."""
        if "gate" not in self._timers:
            self._outbox.go()

    # -- the GET stream ----------------------------------------------------------------------------------------

    def listening_settled(self) -> None:
        """What waited for the GET stream, on which it might have effects, can go."""
        self._timers.cancel("gate")
        if not self._doubts.is_holding:
            self._outbox.go()

    def listening_broke(self, reason: str) -> None:
        """The GET stream is over."""
        if not self._closed:
            log.debug("GET stream ended: {reason}", reason=reason)
            self._doubts.listening_broke()

    def only_listening(self) -> None:
        """The backend is there: the GET stream is asked for again."""
        self._listener.ask_later()
