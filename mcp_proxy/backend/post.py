"""One message on its way to a Streamable HTTP backend, and what comes back on its POST."""

from __future__ import annotations

from typing import Protocol

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.request import BackendRequest, ICancellable
from mcp_proxy.backend.response import Response
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import Outgoing
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Kind, Message
from mcp_proxy.wire.sse import Decoder, Event, Oversized

#: What a POST with a message says of itself.
OF_JSON: Headers = ((b"Content-Type", b"application/json"),)
OF_A_MESSAGE: Headers = (*OF_JSON, (b"Accept", b"application/json, text/event-stream"))


class IPostOwner(Protocol):
    """Whom a POST tells what comes back; a link does this."""

    max_event_bytes: int

    def post_sending(self, post: Post) -> None:
        """It is about to be handed to the network."""

    def post_answered(self, post: Post, response: Response) -> None:
        """The head of the answer has come."""

    def post_failed(self, post: Post, error: RequestFailed) -> None:
        """There is no answer."""

    def event_received(self, event: Event | Oversized, post: Post | None) -> None:
        """An event of its stream."""

    def body_received(self, post: Post, body: bytes, size: int) -> None:
        """The whole of an answer that is no stream."""

    def stream_ended(self, post: Post, reason: str) -> None:
        """Its stream is over."""


class PostHeaders:
    """The headers of one link's POSTs, which are often those of the one before.

    :param said: what each says of itself.
    :ivar own: those of the session at the backend.
    """

    __slots__ = ("_all", "_given", "_said", "own")

    def __init__(self, said: Headers) -> None:
        self.own: Headers = ()
        self._said = said
        self._given: Headers = ()  # the client's, with the last message
        self._all: Headers = ()  # all that went with it

    def agreed(self, session: bytes, version: str) -> None:
        """The backend has answered initialize."""
        self.own = ((b"Mcp-Session-Id", session),) if session else ()
        if revisions.names_version(version):
            self.own = (*self.own, (b"MCP-Protocol-Version", version.encode()))
        self._all = ()

    def of(self, outgoing: Outgoing) -> Headers:
        """All headers for a message."""
        if outgoing.method == revisions.INITIALIZE:
            return (*outgoing.headers, *self._said)
        if outgoing.headers is not self._given or not self._all:
            self._given, self._all = outgoing.headers, (*outgoing.headers, *self._said, *self.own)
        return self._all


class Post(BackendRequest):
    """One message on its way, and what comes back.

    :param headers: all that goes with it.
    """

    __slots__ = (
        "_body",
        "_decoder",
        "_link",
        "_size",
        "identity",
        "is_answered",
        "is_late",
        "is_stream",
        "last_event",
        "outgoing",
        "request",
        "response",
        "resumes",
        "retry",
        "session",
    )

    def __init__(self, link: IPostOwner, outgoing: Outgoing, url: str, headers: Headers) -> None:
        super().__init__("POST", url, headers, outgoing.raw, reuse=outgoing.repeatable)
        self.outgoing = outgoing
        self.identity = _id_of(outgoing)
        self.request: ICancellable | None = None
        self.response: Response | None = None
        self.session = b""
        self.is_stream = self.is_answered = self.is_late = False
        self.last_event = ""
        self.retry: float | None = None
        self.resumes = 0
        self._link = link
        self._decoder: Decoder | None = None
        self._body: list[bytes] = []
        self._size = 0

    @property
    def exchange(self) -> Exchange | None:
        """The client's request that it carries, if it carries one."""
        return self.outgoing.exchange

    @property
    def source(self) -> object:
        """Where its messages go to at the client's side."""
        return self if self.exchange is None else self.exchange.reply  # what is ours, no client can hold up

    def is_answered_by(self, message: Message) -> bool:
        """Whether a message is the answer; an error may lack the id."""
        is_response = message.kind is Kind.RESPONSE
        return is_response and (message.id == self.identity or (message.id is None and message.is_error))

    def sending(self) -> None:
        """It is about to be handed to the network."""
        self._link.post_sending(self)

    def answered(self, response: Response) -> None:
        """The head of the answer has come."""
        self.request = None
        self._link.post_answered(self, response)

    def failed(self, error: RequestFailed) -> None:
        """There is no answer."""
        self._link.post_failed(self, error)

    def deliver(self, response: Response, decoder: Decoder | None) -> None:
        """The answer begins: a stream if there is a decoder for it."""
        self.response, self._decoder = response, decoder
        self.is_stream = decoder is not None
        response.deliver(self)

    def body_received(self, data: bytes) -> None:
        """More of the answer."""
        if self._decoder is None:
            self._size += len(data)
            if self._size <= self._link.max_event_bytes:
                self._body.append(data)
            return
        for event in self._decoder.feed(data):
            if isinstance(event, Event):
                if event.id:
                    self.last_event, self.resumes = event.id, 0
                if event.retry is not None:
                    self.retry = event.retry / 1000
            self._link.event_received(event, self)

    def body_ended(self, reason: str) -> None:
        """No more of the answer."""
        if self._decoder is None:
            self._link.body_received(self, b"".join(self._body), self._size)
        else:
            self._link.stream_ended(self, reason)

    def abort(self) -> None:
        """Want no answer any more."""
        if self.response is not None:
            self.response.abort()
        elif self.request is not None:
            self.request.cancel()


def _id_of(outgoing: Outgoing) -> bytes | None:
    """The id under which an answer will come; None if none will."""
    if outgoing.exchange is not None:
        return outgoing.exchange.backend_id if outgoing.exchange.is_request else None
    return jsonrpc.parse(outgoing.raw).id if outgoing.method else None
