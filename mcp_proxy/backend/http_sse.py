"""A link over HTTP+SSE (revision 2024-11-05): one event stream in, one POST for each message out."""

from __future__ import annotations

from hyperlink import URL, URLParseError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.http import BackendClient
from mcp_proxy.backend.outbox import Outbox
from mcp_proxy.backend.post import OF_JSON, PostHeaders
from mcp_proxy.backend.request import BackendRequest, ICancellable
from mcp_proxy.backend.response import GATEWAY, Response, shown_answer
from mcp_proxy.session.interfaces import HTTPAnswer, ILinkOwner, Loss, Outgoing, Refusal
from mcp_proxy.timers import Timers
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import NotJSON, NotJSONRPC
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.sse import Decoder, Event

log = Logger()

#: How many POSTs of one link may be under way.
MAX_POSTS = 64
#: For how many seconds a message that must keep its place waits for a slow acknowledgement of the others.
ORDER_WAIT = 2.0
#: For how many seconds, once the stream has ended, POSTs without an answer may still be refused.
LAST_WAIT = 1.0


class _Post(BackendRequest):
    """One message on its way."""

    __slots__ = ("_link", "outgoing")

    def __init__(self, link: HTTPSSELink, outgoing: Outgoing, url: str, headers: Headers) -> None:
        super().__init__("POST", url, headers, outgoing.raw, reuse=outgoing.repeatable)
        self.outgoing = outgoing
        self._link = link

    def sending(self) -> None:
        """It is about to be handed to the network."""
        self._link.post_sending(self.outgoing)

    def answered(self, response: Response) -> None:
        """The head of the answer has come."""
        self._link.post_answered(self.outgoing, response)

    def failed(self, error: RequestFailed) -> None:
        """There is no answer."""
        self._link.post_failed(self, error)


class HTTPSSELink:
    """One link. It is opened with :meth:`open` and over with :meth:`close` or ``owner.link_lost``.

    :param owner: is told what happens.
    :param url: where the event stream is.
    :param headers: what goes with every request of the session.
    :param open_timeout: seconds until the backend must have told where messages go.
    """

    correlates = False
    is_owed = True
    is_blind = False
    is_judged = True

    def __init__(
        self,
        owner: ILinkOwner,
        client: BackendClient,
        clock: IReactorTime,
        url: str,
        headers: Headers,
        *,
        max_event_bytes: int,
        open_timeout: float,
    ) -> None:
        self.owner = owner
        self._client = client
        self._clock = clock
        self._url = URL.from_text(url)
        self._headers = headers
        self._open_timeout = open_timeout
        self._decoder = Decoder(max_event_bytes)
        self._heads = PostHeaders(OF_JSON)
        self._post_url = ""
        self._stream: Response | None = None
        self._closed = False
        self._pausers: dict[object, None] = {}
        self._outbox = Outbox(clock, self._send_now, max_posts=MAX_POSTS, order_wait=ORDER_WAIT)
        self._posts: dict[Outgoing, ICancellable | None] = {}
        self._end = ""  # why the stream has ended
        self._opening: Deferred[None] | None = None
        self._timers = Timers(clock)

    # -- the stream --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect. The owner is told of the outcome."""
        self._timers.set("open", self._open_timeout, self._open_timed_out)
        headers = (*self._headers, (b"Accept", b"text/event-stream"), (b"Cache-Control", b"no-store"))
        opening = self._client.open("GET", self._url.to_text(), headers)
        self._opening = opening.addCallbacks(self._head_received, self._not_opened)
        self._opening.addErrback(self._broken)

    def _open_timed_out(self) -> None:
        where = "did not answer" if self._stream is None else "opened a stream but sent no endpoint event"
        self._lose(Loss(f"the backend {where} in {self._open_timeout:g} s", reachable=False))

    def _not_opened(self, failure: Failure) -> None:
        self._lose(Loss(RequestFailed.trapped(failure).reason, reachable=False))

    def _broken(self, failure: Failure) -> None:
        log.failure("link could not be opened", failure)
        self._lose(Loss("the proxy could not open the link", reachable=True))

    def _head_received(self, response: Response) -> None:
        if self._closed:
            response.abort()
            return
        if response.status in (401, 403):
            shown_answer(response, self._clock).addCallback(
                lambda challenge: self._lose(
                    Loss(f"the backend answered {response.status}", reachable=True, challenge=challenge)
                )
            )
        elif response.status != 200:
            response.abort()
            hint = " (redirects are not followed)" if 300 <= response.status < 400 else ""
            is_there = response.status < GATEWAY
            self._lose(Loss(f"the backend answered {response.status}{hint}", reachable=is_there))
        elif not response.is_event_stream:
            response.abort()
            shown = response.kind.decode("ascii", "replace")[:60] or "nothing"
            self._lose(Loss(f"the backend answered {shown} instead of text/event-stream", reachable=True))
        else:
            self._stream = response
            response.deliver(self)
            if self._pausers:
                response.pause()

    def body_received(self, data: bytes) -> None:
        """Bytes of the stream."""
        for event in self._decoder.feed(data):
            if self._closed:
                return
            if not isinstance(event, Event):
                self.owner.link_oversized(self, event)
            elif event.type == "endpoint":
                self._endpoint_told(event.data)
            elif event.type == "message" and event.data:
                self._message_received(event.data)

    def body_ended(self, reason: str) -> None:
        """The stream is over. A POST that is under way may yet be refused, and then it has done nothing."""
        self._end = reason
        if self._posts and not self._closed:
            self._outbox.hold()
            self._timers.set("end", LAST_WAIT, self._ended)
        else:
            self._ended()

    def _ended(self) -> None:
        self._lose(Loss(self._end, reachable=False))

    def _post_over(self, outgoing: Outgoing) -> None:
        """Nothing more comes of a POST."""
        self._outbox.done(outgoing)
        if self._end and not self._posts:
            self._ended()

    def _endpoint_told(self, data: bytes) -> None:
        try:
            target = self._url.click(data.decode("utf-8").strip())
        except (URLParseError, UnicodeDecodeError, ValueError):
            self._lose(Loss("the backend's endpoint event holds no URL", reachable=True))
            return
        if (target.scheme, target.host, target.port) != (self._url.scheme, self._url.host, self._url.port):
            self._lose(Loss("the backend's endpoint event names another origin, which is refused", reachable=True))
            return
        is_first, self._post_url = not self._post_url, target.to_text()
        if is_first:
            self._timers.cancel("open")
            self.owner.link_opened(self)

    def _message_received(self, data: bytes) -> None:
        try:
            message = jsonrpc.parse(data)
        except (NotJSON, NotJSONRPC) as error:
            log.warn("event of the backend's dropped: {reason}", reason=error.message)
            return
        if self._posts and message.kind is jsonrpc.Kind.RESPONSE:
            self._free_post(message.id)
        self.owner.link_received(self, message)

    def _free_post(self, backend_id: bytes | None) -> None:
        """A request was answered: one that waits need not wait for its acknowledgement, which may never come."""
        for outgoing in list(self._posts):
            if outgoing.exchange is not None and outgoing.exchange.backend_id == backend_id:
                self._outbox.done(outgoing)

    def pause(self, source: object) -> None:
        """Receive nothing for now."""
        self._pausers[source] = None
        if self._stream is not None:
            self._stream.pause()

    def resume(self, source: object) -> None:
        """Receive again, if nothing else is in the way."""
        self._pausers.pop(source, None)
        if self._stream is not None and not self._pausers:
            self._stream.resume()

    def close(self, *, done: bool = False) -> None:
        """The end: nothing more is sent, nothing more is told. The backend's session ends with its stream."""
        if self._closed:
            return
        self._closed = True
        self._timers.cancel_all()
        self._outbox.clear()
        if self._stream is not None:
            self._stream.abort()
        elif self._opening is not None:
            self._opening.cancel()
        for post in list(self._posts.values()):
            if post is not None:
                post.cancel()

    def _lose(self, loss: Loss) -> None:
        if not self._closed:
            self.close()
            self.owner.link_lost(self, loss)

    # -- messages ----------------------------------------------------------------------------------------------

    def send(self, outgoing: Outgoing) -> None:
        """Post a message when its turn comes."""
        if self._closed:
            return
        if not self._outbox.add(outgoing):
            self.owner.link_refused(self, outgoing, Refusal(0, "too many messages wait for the backend"))

    def _send_now(self, outgoing: Outgoing) -> None:
        self._ask(_Post(self, outgoing, self._post_url, self._heads.of(outgoing)))

    def _ask(self, post: _Post) -> None:
        self._posts[post.outgoing] = None
        asked = self._client.ask(post)
        if post.outgoing in self._posts:  # and has not failed already
            self._posts[post.outgoing] = asked

    def post_sending(self, outgoing: Outgoing) -> None:
        """A message is about to be handed to the network."""
        if not self._closed:
            self.owner.link_sent(self, outgoing)

    def post_answered(self, outgoing: Outgoing, response: Response) -> None:
        """The head of the answer to a POST has come."""
        if self._closed:
            response.abort()
        elif 200 <= response.status < 300:
            self._posts.pop(outgoing, None)
            response.discard()
            self.owner.link_accepted(self, outgoing)
            self._post_over(outgoing)
        else:
            self._posts[outgoing] = None  # there is nothing more to give up
            shown_answer(response, self._clock).addCallback(self._refused, outgoing)
            self._outbox.done(outgoing)

    def _refused(self, answer: HTTPAnswer, outgoing: Outgoing) -> None:
        self._posts.pop(outgoing, None)
        if not self._closed:
            refusal = Refusal(answer.status, f"the backend answered {answer.status} to a message", answer)
            self.owner.link_refused(self, outgoing, refusal)
        self._post_over(outgoing)

    def post_failed(self, post: _Post, error: RequestFailed) -> None:
        """There is no answer to a POST."""
        outgoing = post.outgoing
        if post.reuse and not self._closed:
            post.reuse = False  # the idle connection was closed; this message may be repeated
            self._ask(post)
            return
        self._posts.pop(outgoing, None)
        if not self._closed:
            self.owner.link_refused(self, outgoing, Refusal(0, error.reason))
        self._post_over(outgoing)
