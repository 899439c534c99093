"""What does the backend speak? Found out as clients do it (MCP specification, "Backwards compatibility").

The session's own initialize is sent to the MCP endpoint. If it is answered, that is Streamable HTTP; if it is refused
as a server of these revisions never would (400, 404, 405, or an error that speaks of the revision), ``server/discover``
tells whether the backend speaks revision 2026-07-28 only; then the HTTP+SSE stream is tried. Anything else (401, 403,
5xx, no answer) says nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from twisted.logger import Logger

from mcp_proxy.session.exchanges import Delivery, Exchange
from mcp_proxy.session.interfaces import ILink, ILinkHolder, ILinkOwner, Loss, Outgoing, Refusal
from mcp_proxy.wire import revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message
from mcp_proxy.wire.sse import Oversized

log = Logger()

#: How a server that has no such endpoint answers.
_NOT_THERE = (400, 404, 405)
#: The errors by which a server says that it does not know initialize, or not without what revision 2026-07-28 asks for.
_NOT_KNOWN = (-32601, -32602, -32020, -32021, -32022)
#: How many messages wait until the transport is known.
MAX_WAITING = 100


class ITransportLink(ILink, Protocol):
    """A link of one transport; it can get another owner."""

    owner: ILinkOwner


MakeTransport = Callable[[ILinkOwner, Headers], ITransportLink]


class Transport(Enum):
    """How a backend is spoken to for a client of the legacy revisions."""

    STREAMABLE = "streamable"
    MODERN = "revision 2026-07-28"
    SSE = "sse"


class Detection:
    """What is known of the backend's transport. It is forgotten in every outage: the next backend may be another.

    :param makers: make a link of each transport.
    :param make_stateless: makes a link for a request of a revision without sessions.
    :param fixed: what the operator said that it is; which revisions it speaks there is found out all the same.
    """

    def __init__(
        self,
        makers: dict[Transport, MakeTransport],
        make_stateless: MakeTransport,
        fixed: Transport | None = None,
    ) -> None:
        self.makers = makers
        self.transport = self._fixed = fixed
        self._make_stateless = make_stateless

    def forget(self) -> None:
        """Find out again."""
        self.transport = self._fixed

    def make_link(self, owner: ILinkHolder, headers: Headers, *, stateless: bool) -> ILink:
        """A link to the backend, whatever it speaks."""
        if stateless:
            return self._make_stateless(owner, headers)
        if self.transport is Transport.SSE:
            return self.makers[Transport.SSE](owner, headers)
        return AutoLink(self, owner, headers, self._order())

    def _order(self) -> tuple[Transport, ...]:
        """What is tried, in this order; a backend may become another one without being missed."""
        if self.transport is Transport.MODERN:
            return (Transport.MODERN, Transport.STREAMABLE)
        if self.transport is Transport.STREAMABLE:
            return (Transport.STREAMABLE, Transport.MODERN)
        return (Transport.STREAMABLE, Transport.MODERN, Transport.SSE)


class AutoLink:
    """A link that finds out. Until then it is the link to its owner, and the owner to the link inside."""

    is_judged = False
    is_owed = True
    is_blind = False

    def __init__(
        self, detection: Detection, owner: ILinkHolder, headers: Headers, order: tuple[Transport, ...]
    ) -> None:
        self._detection = detection
        self.owner: ILinkHolder = owner
        self._headers = headers
        self._order = order
        self._step = 0
        self._inner = detection.makers[order[0]](self, headers)
        self.correlates = True
        self._is_known = self._closed = False
        self._first: Outgoing | None = None  # the initialize that tells
        self._refusal: Refusal | None = None  # what the MCP endpoint said to it
        self._error: Message | None = None  # or what it answered
        self._waiting: list[Outgoing] = []
        self._pausers: list[object] = []

    # -- as the owner's link -----------------------------------------------------------------------------------

    def open(self) -> None:
        """See whether anybody listens; both transports begin there."""
        self._inner.open()

    def send(self, outgoing: Outgoing) -> None:
        """Send a message; until the transport is known, only an initialize goes out."""
        if self._closed:
            return
        if self._is_known:
            self._inner.send(outgoing)
        elif self._first is None and outgoing.method == revisions.INITIALIZE:
            self._first = outgoing
            self._inner.send(outgoing)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(outgoing)
        else:
            self.owner.link_refused(self, outgoing, Refusal(0, "too many messages wait for the backend"))

    def pause(self, source: object) -> None:
        """The client does not read."""
        self._pausers.append(source)
        self._inner.pause(source)

    def resume(self, source: object) -> None:
        """It reads again."""
        self._pausers = [each for each in self._pausers if each is not source]
        self._inner.resume(source)

    def close(self, *, done: bool = False) -> None:
        """The end."""
        self._closed = True
        self._waiting.clear()
        self._inner.close(done=done)

    # -- as the inner link's owner -----------------------------------------------------------------------------

    def link_opened(self, link: ILink) -> None:
        """The backend is there; if this is the event stream, it has told its transport."""
        if self._transport is not Transport.SSE:
            self.owner.link_opened(self)
            return
        self._known(Transport.SSE)
        if self._first is not None:
            self._inner.send(self._first)
        self._send_waiting()

    def link_received(self, link: ILink, message: Message, about: Exchange | None = None) -> None:
        """A message, which only a link of the right kind can bring."""
        if self._says_unknown(message):
            self._error = message
            self._try_next(Refusal(400, "the backend does not know initialize"))
        else:
            self._known(self._transport)
            self.owner.link_received(self._inner, message, about)
            self._send_waiting()

    def _says_unknown(self, message: Message) -> bool:
        """Whether an answer to initialize speaks of a backend without handshake, which is still to be tried."""
        if self._transport is not Transport.STREAMABLE or Transport.MODERN not in self._order[self._step :]:
            return False
        return message.is_error and message.params().get("code") in _NOT_KNOWN

    def link_streaming(self, link: ILink, about: Exchange) -> None:
        """An answer begins as a stream."""
        self.owner.link_streaming(self, about)

    def link_polling(self, link: ILink, about: Exchange, delay: float) -> None:
        """The rest of an answer is to be asked for later."""
        self.owner.link_polling(self, about, delay)

    def link_oversized(self, link: ILink, event: Oversized, about: Exchange | None = None) -> None:
        """An event is over the bound."""
        self.owner.link_oversized(self, event, about)

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """A message is handed to the network."""
        self.owner.link_sent(self, outgoing)

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """A message was taken."""
        self.owner.link_accepted(self, outgoing)

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """A message was not taken; if it was the one that tells, the next transport is tried."""
        if self._is_known or outgoing is not self._first:
            self.owner.link_refused(self, outgoing, refusal)
        elif refusal.status in _NOT_THERE:
            self._try_next(refusal)
        else:
            self._give_back(refusal)

    @property
    def _transport(self) -> Transport:
        return self._order[self._step]

    def _try_next(self, refusal: Refusal) -> None:
        """The backend does not speak this."""
        if self._transport is Transport.STREAMABLE:
            self._refusal = refusal
        if self._error is not None and self._transport is Transport.MODERN:
            self._is_answered()
            return
        if self._step + 1 == len(self._order):
            self._detection.forget()  # the backend has become another one, and nobody has noticed
            self._give_back(self._refusal or refusal)
            return
        self._use(self._step + 1)
        if self._transport is Transport.SSE:
            self._inner.open()
        elif self._first is not None:
            self._inner.send(self._first)

    def _use(self, step: int) -> None:
        if self._first is not None and self._first.exchange is not None:
            self._first.exchange.delivery = Delivery.NOT_SENT  # whoever refused it is no such endpoint
        self._step = step
        self._inner.close()
        self._inner = self._detection.makers[self._transport](self, self._headers)
        self.correlates = self._transport is not Transport.SSE
        for source in self._pausers:
            self._inner.pause(source)

    def _give_back(self, refusal: Refusal) -> None:
        """It is not known what the backend speaks; the next initialize tries it from the beginning."""
        first, self._first = self._first, None
        self._refusal = self._error = None
        if self._step:
            self._use(0)
        if first is not None:
            self.owner.link_refused(self, first, refusal)

    def _is_answered(self) -> None:
        """An error is an answer to initialize after all."""
        error, about = self._error, None if self._first is None else self._first.exchange
        self._use(self._order.index(Transport.STREAMABLE))
        self._known(Transport.STREAMABLE)
        if error is not None:
            self.owner.link_received(self._inner, error, about)
        self._send_waiting()

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """The link is over, or the other transport is not spoken either."""
        if link is not self._inner or self._closed:
            return
        is_last = self._transport is Transport.SSE
        if is_last and self._refusal is not None and not self._is_known and loss.reachable and loss.challenge is None:
            status = self._refusal.status
            loss = Loss(f"it speaks neither Streamable HTTP (HTTP {status}) nor HTTP+SSE: {loss.reason}", True)
            if status == 400 and self._first is not None:  # an MCP endpoint after all, which means this very message
                self.owner.link_refused(self, self._first, self._refusal)
        if not self._closed:
            self._closed = True
            self.owner.link_lost(self, loss)

    def _known(self, transport: Transport) -> None:
        self._is_known = True
        if self._detection.transport is not transport:
            self._detection.transport = transport
            log.info("backend speaks {transport}", transport=transport.value)
        self._inner.owner = self.owner  # nobody needs to stand between them any more
        self.owner.link_settled(self, self._inner)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outgoing in waiting:
            if not self._closed:
                self._inner.send(outgoing)
