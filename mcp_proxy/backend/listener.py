"""The GET stream of a Streamable HTTP link: what belongs to no request. It is asked for again when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.post import Post
from mcp_proxy.backend.response import Response
from mcp_proxy.timers import Timers
from mcp_proxy.wire.sse import Decoder, Event, Oversized

log = Logger()

#: How many seconds after its end a stream is asked for again, unless the backend says when.
FIRST_RETRY, MAX_RETRY = 0.2, 30.0


class IListening(Protocol):
    """Whom the GET stream belongs to; a link does this."""

    max_event_bytes: int

    def get(self, last_event: str, answered: Callable[[Response], None], failed: Callable[[Failure], None]) -> None:
        """Ask for a stream, from after this event on."""

    def event_received(self, event: Event | Oversized, post: Post | None) -> None:
        """An event of the stream."""

    def listening_settled(self) -> None:
        """It is known whether there is such a stream."""

    def listening_broke(self, reason: str) -> None:
        """It is over, and nobody knows why; :meth:`Listener.ask_later` when the backend is known to be there."""


class Listener:
    """See the module.

    :param link: whose it is.
    """

    __slots__ = (
        "_began",
        "_clock",
        "_decoder",
        "_delay",
        "_is_paused",
        "_last_event",
        "_link",
        "_response",
        "_retry",
        "_timers",
    )

    def __init__(self, link: IListening, clock: IReactorTime) -> None:
        self._link = link
        self._clock = clock
        self._timers = Timers(clock)
        self._began = 0.0
        self._response: Response | None = None
        self._decoder = Decoder(link.max_event_bytes)
        self._last_event = ""
        self._retry: float | None = None
        self._delay = FIRST_RETRY
        self._is_paused = False

    @property
    def is_open(self) -> bool:
        """Whether there is such a stream."""
        return self._response is not None

    def ask(self) -> None:
        """Ask for the stream."""
        self._link.get(self._last_event, self._answered, self._not_answered)

    def ask_later(self) -> None:
        """Ask for it again, when the backend wants that, or less and less often."""
        delay = self._delay if self._retry is None else self._retry
        self._delay = min(self._delay * 2, MAX_RETRY)
        self._timers.set("ask", min(delay, MAX_RETRY), self.ask)

    def pause(self) -> None:
        """The client does not read."""
        self._is_paused = True
        if self._response is not None:
            self._response.pause()

    def resume(self) -> None:
        """It reads again."""
        self._is_paused = False
        if self._response is not None:
            self._response.resume()

    def close(self) -> None:
        """Want it no longer; nothing is told any more."""
        self._timers.cancel_all()
        response, self._response = self._response, None
        if response is not None:
            response.abort()

    def _answered(self, response: Response) -> None:
        if response.is_event_stream:
            self._response, self._decoder = response, Decoder(self._link.max_event_bytes)
            self._began = self._clock.seconds()
            response.deliver(self)
            if self._is_paused:
                response.pause()
        else:
            response.abort()
            log.debug("backend answered {status} to GET", status=response.status)
            if response.status in (409, 429) or response.status >= 500:
                self.ask_later()
        self._link.listening_settled()

    def _not_answered(self, failure: Failure) -> None:
        self._link.listening_settled()
        self._link.listening_broke(RequestFailed.trapped(failure).reason)

    def body_received(self, data: bytes) -> None:
        """More of the stream."""
        for event in self._decoder.feed(data):
            if isinstance(event, Event):
                self._last_event = event.id or self._last_event
                self._retry = self._retry if event.retry is None else event.retry / 1000
            self._link.event_received(event, None)

    def body_ended(self, reason: str) -> None:
        """The stream is over."""
        self._response = None
        if self._clock.seconds() - self._began >= MAX_RETRY:
            self._delay = FIRST_RETRY  # what has lasted is asked for again at once
        self._link.listening_broke(reason)
