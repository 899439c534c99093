"""Which transport does the backend speak? Found out as clients do it (MCP specification, "Backwards compatibility").

The session's own initialize is sent to the MCP endpoint. If it is answered, that is Streamable HTTP; if it is refused
as such an endpoint never would (400, 404, 405), the HTTP+SSE stream is tried. Anything else (401, 403, 5xx, no answer)
says nothing about the transport.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from twisted.logger import Logger

from mcp_proxy.session.exchanges import Delivery, Exchange
from mcp_proxy.session.interfaces import ILink, ILinkOwner, Loss, Outgoing, Refusal
from mcp_proxy.wire import revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message
from mcp_proxy.wire.sse import Oversized

log = Logger()

#: How a server that has no such endpoint answers.
_NOT_THERE = (400, 404, 405)
#: How many messages wait until the transport is known.
MAX_WAITING = 100

MakeTransport = Callable[[ILinkOwner, Headers], ILink]


class Transport(Enum):
    """How a backend of the legacy revisions is spoken to."""

    STREAMABLE = "streamable"
    SSE = "sse"


class Detection:
    """What is known of the backend's transport. It is forgotten in every outage: the next backend may be another.

    :param makers: make a link of each transport.
    :param make_stateless: makes a link for a request of a revision without sessions.
    :param fixed: what the operator said that it is.
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

    def make_link(self, owner: ILinkOwner, headers: Headers, *, stateless: bool) -> ILink:
        """A link to the backend, whatever it speaks."""
        if stateless:
            return self._make_stateless(owner, headers)
        if self.transport is None:
            return AutoLink(self, owner, headers)
        return self.makers[self.transport](owner, headers)


class AutoLink:
    """A link that finds out. To its owner it is the link, to the link inside it is the owner."""

    is_judged = False

    def __init__(self, detection: Detection, owner: ILinkOwner, headers: Headers) -> None:
        self._detection = detection
        self._owner = owner
        self._headers = headers
        self._inner = detection.makers[Transport.STREAMABLE](self, headers)
        self.correlates = True
        self._is_known = self._closed = False
        self._first: Outgoing | None = None  # the initialize that tells
        self._refusal: Refusal | None = None  # what the MCP endpoint said to it
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
            self._owner.link_refused(self, outgoing, Refusal(0, "too many messages wait for the backend"))

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
        if self._refusal is None:
            self._owner.link_opened(self)
            return
        self._known(Transport.SSE)
        if self._first is not None:
            self._inner.send(self._first)
        self._send_waiting()

    def link_received(self, link: ILink, message: Message, about: Exchange | None = None) -> None:
        """A message, which only a link of the right kind can bring."""
        if not self._is_known:
            self._known(Transport.STREAMABLE)
            self._owner.link_received(self, message, about)
            self._send_waiting()
        else:
            self._owner.link_received(self, message, about)

    def link_streaming(self, link: ILink, about: Exchange) -> None:
        """An answer begins as a stream."""
        self._owner.link_streaming(self, about)

    def link_polling(self, link: ILink, about: Exchange, delay: float) -> None:
        """The rest of an answer is to be asked for later."""
        self._owner.link_polling(self, about, delay)

    def link_oversized(self, link: ILink, event: Oversized, about: Exchange | None = None) -> None:
        """An event is over the bound."""
        self._owner.link_oversized(self, event, about)

    def link_sent(self, link: ILink, outgoing: Outgoing) -> None:
        """A message is handed to the network."""
        self._owner.link_sent(self, outgoing)

    def link_accepted(self, link: ILink, outgoing: Outgoing) -> None:
        """A message was taken."""
        self._owner.link_accepted(self, outgoing)

    def link_refused(self, link: ILink, outgoing: Outgoing, refusal: Refusal) -> None:
        """A message was not taken; if it was the one that tells, the other transport is tried."""
        if self._is_known or outgoing is not self._first or refusal.status not in _NOT_THERE:
            if outgoing is self._first:
                self._first = None
            self._owner.link_refused(self, outgoing, refusal)
            return
        self._refusal = refusal
        if outgoing.exchange is not None:
            outgoing.exchange.delivery = Delivery.NOT_SENT  # whoever refused it is no MCP endpoint
        self._inner.close()
        self._inner = self._detection.makers[Transport.SSE](self, self._headers)
        self.correlates = False
        for source in self._pausers:
            self._inner.pause(source)
        self._inner.open()

    def link_lost(self, link: ILink, loss: Loss) -> None:
        """The link is over, or the other transport is not spoken either."""
        if link is not self._inner or self._closed:
            return
        if self._refusal is not None and not self._is_known and loss.reachable and loss.challenge is None:
            status = self._refusal.status
            loss = Loss(f"it speaks neither Streamable HTTP (HTTP {status}) nor HTTP+SSE: {loss.reason}", True)
            if status == 400 and self._first is not None:  # an MCP endpoint after all, which means this very message
                self._owner.link_refused(self, self._first, self._refusal)
        if not self._closed:
            self._closed = True
            self._owner.link_lost(self, loss)

    def _known(self, transport: Transport) -> None:
        self._is_known = True
        if self._detection.transport is not transport:
            self._detection.transport = transport
            log.info("backend speaks {transport}", transport=transport.value)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outgoing in waiting:
            if not self._closed:
                self._inner.send(outgoing)
