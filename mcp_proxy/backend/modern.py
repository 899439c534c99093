"""A link to a backend of revision 2026-07-28, for a session whose client speaks an older one.

To its owner it is a link like any other: it is told initialize, subscriptions and answers to questions. To the backend
it speaks the revision in which each request stands for itself. What a message of the one side is on the other is
worked out in ``session/bridge``. The POSTs are those of a link inside, whose owner this one is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcp_proxy.backend.calls import NOT_UNDERSTOOD, Calls, Post
from mcp_proxy.backend.outbox import MAX_QUEUED
from mcp_proxy.backend.response import GATEWAY
from mcp_proxy.backend.subscriber import Stream, Subscriber
from mcp_proxy.session.bridge import to_modern
from mcp_proxy.session.bridge.rounds import Again
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, ILink, ILinkOwner, Loss, Outgoing, Refusal
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import NotJSON, NotJSONRPC
from mcp_proxy.wire.headers import Headers, standing
from mcp_proxy.wire.jsonrpc import Kind, Message
from mcp_proxy.wire.modern import OF_SESSIONS
from mcp_proxy.wire.sse import Oversized

log = Logger()

#: What the owner is told if the backend does not speak the revision.
NOT_SPOKEN = Refusal(404, "the backend does not speak revision 2026-07-28")


class IStatelessLink(ILink, Protocol):
    """The link inside: one POST for each message."""

    def withdraw(self, outgoing: Outgoing) -> None:
        """Nobody wants an answer any more: close its stream."""


class ModernLink:
    """See the module, :class:`ILink` and :class:`ILinkOwner`.

    :param owner: is told what happens.
    :param make_inner: makes the link inside.
    :param headers: what goes with every request of the session.
    :param open_timeout: seconds until the backend must have answered where nothing has to be worked out.
    """

    correlates = True
    is_judged = False

    def __init__(
        self,
        owner: ILinkOwner,
        make_inner: Callable[[ILinkOwner, Headers], IStatelessLink],
        headers: Headers,
        clock: IReactorTime,
        open_timeout: float,
    ) -> None:
        self.tools = to_modern.Tools()
        self.owner = owner
        self._inner = make_inner(self, headers)
        self._headers = to_modern.standing(headers)
        self._client = to_modern.Client()
        self._capabilities: dict[str, Any] = {}
        self._subscriber = Subscriber(self, clock, open_timeout)
        self._calls = Calls(self)
        self._posts: dict[Exchange, Post] = {}
        self._waiting: list[Outgoing] | None = None  # until it is known whether there is a stream of changes
        self._doubted: list[tuple[Callable[[], None], Outgoing | None]] = []
        self._count = 0
        self._closed = False

    # -- as the owner's link -----------------------------------------------------------------------------------

    def open(self) -> None:
        """See whether anybody listens."""
        self._inner.open()

    def pause(self, source: object) -> None:
        """The client does not read."""
        self._inner.pause(source)

    def resume(self, source: object) -> None:
        """It reads again."""
        self._inner.resume(source)

    def close(self, *, done: bool = False) -> None:
        """The end; closing the streams cancels what is under way."""
        self._closed = True
        self._waiting = None
        self._subscriber.close()
        self._calls.clear()
        self._posts.clear()
        self._inner.close()

    def send(self, outgoing: Outgoing) -> None:
        """Take a message of a legacy session."""
        if self._closed:
            return
        if outgoing.method == "":
            self._calls.take_answer(outgoing)
        elif outgoing.method == revisions.CANCELLED:
            self._cancel(jsonrpc.cancelled_id(jsonrpc.parse(outgoing.raw)))
        elif outgoing.method == revisions.INITIALIZED:
            self._waiting = []
            self._subscriber.begin(self._capabilities)
        elif self._waiting is None:
            self._take(outgoing)
        elif len(self._waiting) < MAX_QUEUED:
            self._waiting.append(outgoing)
        else:
            self.refuse(outgoing, Refusal(0, "too many messages wait for the backend"))

    def _take(self, outgoing: Outgoing) -> None:
        message = jsonrpc.parse(outgoing.raw)
        identity = message.id or b"null"
        if message.kind is not Kind.REQUEST:
            log.debug("notification dropped: the backend's revision does not know it", method=message.method)
        elif message.method == revisions.INITIALIZE:
            self._initialize(outgoing, message, identity)
        elif message.method == revisions.PING:
            self._answer(jsonrpc.result(identity, {}))
        elif message.method == revisions.SET_LEVEL:
            self._answer(self._set_level(message, identity))
        elif message.method in (revisions.SUBSCRIBE, revisions.UNSUBSCRIBE):
            self._subscribe(message, identity)
        elif message.method in (revisions.DISCOVER, revisions.LISTEN):
            self._answer(jsonrpc.error(identity, -32601, "There is no such method in the revision of this session."))
        elif message.body.startswith(b"["):
            self._answer(jsonrpc.error(identity, -32602, "params must be an object."))
        else:
            self._calls.begin(outgoing, message)

    def _answer(self, raw: bytes) -> None:
        self.tell(jsonrpc.parse(raw))

    def _cancel(self, identity: bytes | None) -> None:
        if identity is None:
            return
        for waiting in [each for each in self._waiting or () if jsonrpc.parse(each.raw).id == identity]:
            if self._waiting:
                self._waiting.remove(waiting)
            self._answer(jsonrpc.error(identity, -32603, "The request was cancelled."))
        self._calls.cancel(identity)

    # -- the handshake, and what the backend knows nothing of --------------------------------------------------

    def _initialize(self, outgoing: Outgoing, message: Message, identity: bytes) -> None:
        self._client = to_modern.Client.of(message)

        def discovered(answer: Message) -> None:
            if to_modern.speaks(answer):
                result = to_modern.initialized(answer, self._client)
                self._capabilities = result["capabilities"]
                self._answer(jsonrpc.result(identity, result))
            elif answer.is_error and to_modern.error_code(answer) == -32603:
                self.refuse(outgoing, Refusal(500, "the backend is in trouble", HTTPAnswer(500, (), answer.raw)))
            else:
                self.refuse(outgoing, NOT_SPOKEN)

        self.post(revisions.DISCOVER, b"", discovered, lambda refusal: self.refuse(outgoing, refusal), outgoing)

    def _set_level(self, message: Message, identity: bytes) -> bytes:
        level = message.params().get("level")
        if "logging" not in self._capabilities:
            return jsonrpc.error(identity, -32601, "The server does not log.")
        if level not in to_modern.LEVELS:
            return jsonrpc.error(identity, -32602, "There is no such level.")
        self._client.level = level
        return jsonrpc.result(identity, {})

    def _subscribe(self, message: Message, identity: bytes) -> None:
        uri = message.params().get("uri")
        if not isinstance(uri, str):
            self._answer(jsonrpc.error(identity, -32602, "uri must be a string."))
        elif not isinstance(self._capabilities.get("resources"), dict):
            self._answer(jsonrpc.error(identity, -32601, "The server has no resources."))
        elif message.method == revisions.SUBSCRIBE:
            self._subscriber.subscribe(identity, uri)
        else:
            self._subscriber.unsubscribe(identity, uri)

    # -- POSTs -------------------------------------------------------------------------------------------------

    def post(
        self,
        method: str,
        params: bytes,
        received: Callable[[Message], None],
        refused: Callable[[Refusal], None],
        outer: Outgoing | None = None,
        *,
        again: Again | None = None,
        sent: Callable[[], None] = lambda: None,
    ) -> Post:
        """Post a request, under an id that no other POST of this link has.

        :param outer: the owner's message that it is for; without one it is about what belongs to no request.
        :param again: what goes with it when it is not for the first time.
        """
        self._count += 1
        identity = b"%d" % self._count
        raw = self._client.request(identity, method, params, None if again is None else again.members)
        own = self.tools.headers(method, params)
        headers = (*(self._headers if outer is None else to_modern.standing(outer.headers)), *own)
        source: object = None if outer is None else self  # what is ours, no client can hold up
        if outer is not None and outer.exchange is not None:
            source = outer.exchange.reply
        exchange = Exchange(jsonrpc.parse(raw), headers, 0.0, identity, reply=source)
        repeatable = again is None and outer is not None and outer.repeatable
        outgoing = Outgoing(raw, headers, method, exchange, repeatable, barrier=False)
        post = self._posts[exchange] = Post(outgoing, received, refused, outer, sent)
        self._inner.send(outgoing)
        return post

    def withdraw(self, outgoing: Outgoing) -> None:
        """Close the stream of a POST."""
        if outgoing.exchange is not None:
            self._posts.pop(outgoing.exchange, None)
        self._inner.withdraw(outgoing)

    def _post_of(self, outgoing: Outgoing) -> Post | None:
        return None if outgoing.exchange is None else self._posts.get(outgoing.exchange)

    # -- for the subscriber and the calls ----------------------------------------------------------------------

    @property
    def is_owed(self) -> bool:
        """Whether the backend has something to answer still: not while only the client has, whom it asks something."""
        return bool(self._waiting) or any(post.outer is not None for post in self._posts.values())

    @property
    def is_blind(self) -> bool:
        """Whether it would not notice another backend: no answer is awaited, and nothing is listened for."""
        return not (self._posts or self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether answers are awaited."""
        return self._calls.is_busy

    def listen(self, stream: Stream, filter_: dict[str, Any]) -> Outgoing:
        """Ask for a stream of changes."""

        def sent() -> None:
            stream.is_sent = True

        params = to_modern.listening(filter_)
        return self.post(revisions.LISTEN, params, stream.received, stream.refused, sent=sent).outgoing

    def tell(self, message: Message, about: Exchange | None = None) -> None:
        """Something for the owner."""
        if not self._closed:
            self.owner.link_received(self, message, about)

    def refuse(self, outgoing: Outgoing, refusal: Refusal) -> None:
        """The backend has not taken a message of the owner's."""
        if not self._closed:
            self.owner.link_refused(self, outgoing, refusal)

    def settled(self) -> None:
        """It is known whether there is a stream of changes: what waited for it goes."""
        waiting, self._waiting = self._waiting or [], None
        for outgoing in waiting:
            self.send(outgoing)

    def lose(self, loss: Loss) -> None:
        """It is over, and the owner is told."""
        if not self._closed:
            self.close()
            self.owner.link_lost(self, loss)

    def doubt(self, otherwise: Callable[[], None], outer: Outgoing | None = None, *, is_gateway: bool = False) -> None:
        """Is it only this message, or another backend, or none? It is asked what it speaks, once for all in doubt.

        :param otherwise: what is to be done if it is only the message.
        :param outer: the owner's message that it is for; if the backend is another one, it has not seen it.
        :param is_gateway: one has answered in its place, and would lose what comes now as well: that waits.
        """
        self._doubted.append((otherwise, outer))
        if is_gateway and self._waiting is None:
            self._waiting = []
        if len(self._doubted) > 1:
            return

        def refused(why: Refusal) -> None:
            if why.status >= GATEWAY:
                over(f"the backend answered {why.status} to a question of ours", reachable=False)
            else:
                known(is_modern=why.status not in NOT_UNDERSTOOD)

        def known(*, is_modern: bool) -> None:
            if not is_modern:
                over("the backend does not speak revision 2026-07-28 any more", reachable=True)
                return
            doubted, self._doubted = self._doubted, []
            for each, _ in doubted:
                each()
            self.settled()

        def over(reason: str, *, reachable: bool) -> None:
            unseen = tuple(each for _, each in self._doubted if each is not None)
            self.lose(Loss(reason, reachable, unseen=unseen))

        own = Outgoing(b"", self._headers if outer is None else outer.headers, revisions.DISCOVER, repeatable=True)
        self.post(revisions.DISCOVER, b"", lambda answer: known(is_modern=to_modern.speaks(answer)), refused, own)

    # -- as the inner link's owner -----------------------------------------------------------------------------

    def link_opened(self, link: ILink) -> None:
        """Somebody listens."""
        self.owner.link_opened(self)

    def link_received(self, link: ILink, message: Message, about: Exchange | None = None) -> None:
        """A message on the stream of a POST."""
        post = None if about is None else self._posts.get(about)
        if post is None or about is None or self._closed:
            return
        if message.kind is Kind.RESPONSE:
            del self._posts[about]
            post.received(message)
        elif message.kind is Kind.REQUEST:
            log.warn("request of the backend's dropped: its revision has none", method=message.method)
        elif post.outer is None:
            post.received(message)
        elif post.exchange is not None:
            self.tell(message, post.exchange)

    def link_streaming(self, link: ILink, about: Exchange) -> None:
        """An answer begins as a stream."""
        post = self._posts.get(about)
        if post is not None and post.exchange is not None:
            self.owner.link_streaming(self, post.exchange)

    def link_polling(self, link: ILink, about: Exchange, delay: float) -> None:
        """In this revision no stream can be resumed, so nobody is told to come back."""

    def link_oversized(self, link: ILink, event: Oversized, about: Exchange | None = None) -> None:
        """An event is over the bound; if it is an answer, whoever waits for it is told."""
        identity = jsonrpc.answered_id(event.head, event.tail) if about is None else about.backend_id
        about = next((each for each in self._posts if each.backend_id == identity), None)
        if about is None:
            self.owner.link_oversized(self, Oversized(b"", b"", event.size))  # its edges name ids of this link
            return
        post = self._posts[about]
        call = self._calls.find(post)
        if call is None or call.exchange is None:
            self.link_refused(link, post.outgoing, Refusal(0, f"an answer of {event.size} bytes is too large"))
        else:
            self._calls.forget(call)
            self.owner.link_oversized(self, event, call.exchange)

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """A POST is handed to the network."""
        post = self._post_of(outgoing)
        if post is not None:
            post.sent()
            if post.outer is not None:
                self.owner.link_sent(self, post.outer)

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """A POST was taken."""
        post = self._post_of(outgoing)
        if post is not None and post.outer is not None:
            self._headers = to_modern.standing(
                standing(post.outer.headers)
            )  # the newest credential that the backend takes
            self.owner.link_accepted(self, post.outer)

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """A POST was not taken; an error in its body is an answer like any other, unless the status says more."""
        post = self._post_of(outgoing)
        if post is None or outgoing.exchange is None or self._closed:
            return
        del self._posts[outgoing.exchange]
        last = 499 if outgoing.method == revisions.DISCOVER else 500  # trouble says nothing about the revision
        error = None if refusal.answer is None else _error_in(refusal.answer, outgoing.exchange)
        if error is None or refusal.status in (401, 403) or refusal.status > last:
            post.refused(refusal)
        elif post.outer is not None and last == 500 and _may_be_older(refusal, error):
            self.doubt(lambda: post.received(error), post.outer)
        else:
            post.received(error)

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """Nobody is there any more, or nobody ever was."""
        self.lose(evolve(loss, unseen=()))


def _may_be_older(refusal: Refusal, error: Message) -> bool:
    """Whether a server that does not know the revision may have refused it."""
    return refusal.status in NOT_UNDERSTOOD and to_modern.error_code(error) in OF_SESSIONS


def _error_in(answer: HTTPAnswer, exchange: Exchange) -> Message | None:
    """The JSON-RPC error with which a POST was refused, if it names the request."""
    try:
        message = jsonrpc.parse(answer.body)
    except (NotJSON, NotJSONRPC):
        return None
    return message if message.is_error and message.id == exchange.backend_id else None
