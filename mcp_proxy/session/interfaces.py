"""What a session needs of the world: a link to the backend, a stream to the client, and its turn to connect.

``backend`` and ``frontend`` implement these; the tests have small fakes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from attrs import frozen

from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.wire.errors import ProxyError
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message
from mcp_proxy.wire.sse import Oversized


class Outgoing(msgspec.Struct, frozen=True, eq=False):
    """One message for the backend.

    ``exchange`` is the request that it carries, if it carries a client's. ``repeatable``: it may be lost and sent
    again, so an idle connection may be used for it. ``barrier``: it must stay in its place among the others.
    ``own_id`` names a request of our own whose acceptance matters. ``method`` is empty for an answer.
    """

    raw: bytes
    headers: Headers
    method: str = ""
    exchange: Exchange | None = None
    repeatable: bool = False
    barrier: bool = True
    own_id: bytes = b""


@frozen
class HTTPAnswer:
    """What the backend answered instead of taking a message, to be shown to the client as it came."""

    status: int
    headers: Headers
    body: bytes


@frozen
class Loss:
    """Why there is no link any more, or none yet.

    ``reachable``: the backend answered, so others may well have a link. ``unseen``: messages that it refused without a
    look at them, because it does not know the session.
    """

    reason: str
    reachable: bool
    challenge: HTTPAnswer | None = None
    unseen: tuple[Outgoing, ...] = ()


@frozen
class Refusal:
    """What became of a message that the backend did not accept: its status (0 for none), why, and what it said.

    ``is_genuine``: the backend is known to know the session, so the message itself was refused.
    """

    status: int
    reason: str
    answer: HTTPAnswer | None = None
    is_genuine: bool = False

    @property
    def challenge(self) -> HTTPAnswer | None:
        """What it said, if it wants to see another credential."""
        return self.answer if self.status in (401, 403) else None


class ILinkOwner(Protocol):
    """Whom a link tells what happens; each call names the link, so an old one is told from the current one."""

    def link_opened(self, link: ILink) -> None:
        """Messages can be sent."""

    def link_received(self, link: ILink, message: Message, about: Exchange | None = None) -> None:
        """The backend sent a message; ``about`` is the request on whose own stream it came, if it has one."""

    def link_streaming(self, link: ILink, about: Exchange) -> None:
        """The backend answers this request with a stream of messages."""

    def link_polling(self, link: ILink, about: Exchange, delay: float) -> None:
        """The backend has ended the stream of this request, and brings the rest to whoever asks for it later.

        :param delay: after how many seconds it wants to be asked.
        """

    def link_oversized(self, link: ILink, event: Oversized, about: Exchange | None = None) -> None:
        """The backend sent an event over the bound; its edges are all that is left of it."""

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """The first byte of the message is about to be handed to the network."""

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """The backend has taken the message (2xx)."""

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """The backend has not taken the message, or nobody knows."""

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """The link is over or was never opened; nothing follows."""


class ILinkHolder(ILinkOwner, Protocol):
    """The same for one that takes whatever link there is to this backend."""

    def link_settled(self, link: ILink, settled: ILink) -> None:
        """The link that this one has found out to be is the link from now on, and this one is of no use any more."""


class ILink(Protocol):
    """A connection, in MCP terms, to the backend.

    ``correlates``: it knows which of the backend's messages belong to which request. ``is_judged``: once it is open,
    the backend has seen the client's credentials and does not object. ``is_owed``: the backend may owe it answers.
    ``is_blind``: nothing is open between it and the backend, so it does not notice if that is another one now.
    """

    correlates: bool
    is_judged: bool

    @property
    def is_owed(self) -> bool: ...

    @property
    def is_blind(self) -> bool: ...

    def open(self) -> None:
        """Connect; what becomes of it is told to the owner."""

    def send(self, outgoing: Outgoing) -> None:
        """Send a message; what becomes of it is told to the owner."""

    def pause(self, source: object) -> None:
        """Receive no more for now: the client does not read what comes from this source (see :class:`IOutlet`)."""

    def resume(self, source: object) -> None:
        """Receive again."""

    def close(self, *, done: bool = False) -> None:
        """End it. Nothing is told to the owner any more; what was not yet sent never will be.

        :param done: the client needs the backend's session no longer, so the backend may forget it.
        """


class IClientStream(Protocol):
    """The stream on which a client receives messages."""

    paused: bool

    def write(self, data: bytes) -> None:
        """Send bytes; never raises, also when the client has gone."""

    def close(self) -> None:
        """End it. Nothing is told to the session any more."""


class IReplyStream(IClientStream, Protocol):
    """The answer to one request of HTTP: whole, or a stream."""

    def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Answer whole."""

    def start(self, headers: Headers = ()) -> None:
        """Begin a stream."""

    @property
    def refused(self) -> Callable[[ProxyError], None]:
        """Counts that what was asked is refused."""


class IOutlet(Protocol):
    """The client's side of a session: where messages for the client go.

    ``outlives_streams``: a client without a stream is still a client. ``patient``: the client gives up on an error
    where it waits for initialize, so it is not to get one before the very end. ``needs_handshake``: nothing but
    initialize makes sense before that.
    """

    needs_handshake: bool
    outlives_streams: bool
    patient: bool

    @property
    def attached(self) -> bool:
        """Whether the client listens."""

    @property
    def paused(self) -> list[object]:
        """The sources that the client does not read: requests' replies, or None for all that belongs to none."""

    @property
    def last_event(self) -> int:
        """The number of the newest event that belongs to no request."""

    def attach(self, stream: IClientStream, since: int | None) -> int:
        """Use this stream for what belongs to no request; tells how many events the client had missed.

        :param since: the last event that the client has seen; None if it does not say.
        """

    def detach(self, stream: IClientStream) -> bool:
        """The client has left this stream; tells whether it was in use."""

    def emit(self, raw: bytes, about: Exchange | None = None) -> None:
        """Send a message, on the stream of the request that it is about."""

    def answer(self, exchange: Exchange, raw: bytes, error: ProxyError | None = None) -> None:
        """Send the answer to a request.

        :param error: why it is an error of our own.
        """

    def refuse(self, exchange: Exchange, answer: HTTPAnswer) -> bool:
        """Show the client what the backend said instead of taking the request; False if it cannot be shown."""

    def abandon(self, exchange: Exchange) -> None:
        """The client has cancelled the request and waits for no answer."""

    def begin_stream(self, exchange: Exchange) -> None:
        """The answer will take a while, or consists of several messages."""

    def restored(self, initialized: dict[str, Any]) -> None:
        """Another backend knows the session now.

        :param initialized: what it says of itself.
        """

    def pause_stream(self, exchange: Exchange, delay: float) -> None:
        """The answer takes so long that the backend wants no stream for it meanwhile.

        :param delay: after how many seconds the client may come back for the rest.
        """

    def say_retry(self) -> None:
        """Tell the client when to come back, where its revision knows how; the end of its stream follows."""

    def close(self) -> None:
        """End all streams."""


class ISeeker(Protocol):
    """Who waits for a turn to connect."""

    def backend_turn(self) -> None:
        """Try now."""

    def backend_gave_up(self) -> None:
        """The budget of the outage is spent; the backend is still watched."""

    def backend_doubted(self) -> None:
        """It may be about to stop: send nothing until that is known."""

    def backend_ending(self) -> None:
        """It answers nothing new although links live."""

    def backend_not_ending(self, *, was_gone: bool) -> None:
        """It answers.

        :param was_gone: for a moment at least nobody was there, so it may be another one.
        """


class IBackend(Protocol):
    """The one view of the backend that all sessions share.

    ``is_doubted``: nothing is to be sent until it has answered something; whoever succeeds is told of that.
    """

    is_doubted: bool

    @property
    def outage(self) -> float:
        """For how many seconds the backend has been away; 0 when it is not."""

    @property
    def spent(self) -> bool:
        """Whether the budget of the current outage is spent."""

    def seek(self, seeker: ISeeker) -> None:
        """Ask for a turn; asking twice is asking once."""

    def withdraw(self, seeker: ISeeker) -> None:
        """Ask no longer, or give back a turn with nothing to report."""

    def succeeded(self, seeker: ISeeker) -> None:
        """The turn led to a live link."""

    def failed(self, seeker: ISeeker, loss: Loss) -> None:
        """The turn led to nothing."""

    def lost(self, loss: Loss) -> None:
        """A live link was lost."""

    def make_link(self, owner: ILinkHolder, headers: Headers, *, stateless: bool) -> ILink:
        """A link for a session, with its standing headers; it is still to be opened.

        :param stateless: for a request of a revision without sessions.
        """
