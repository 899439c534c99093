"""An answer of the backend's, whoever brings it."""

from __future__ import annotations

from abc import abstractmethod

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mcp_proxy.backend.bodies import Collector, IBodyReceiver, Nobody
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire.headers import Headers, first_of, once

#: How much of a refusal's body is kept for the client, for how many seconds it is waited for, and which headers count.
MAX_REFUSAL_BYTES = 64 * 1024
REFUSAL_WAIT = 2.0
EVENT_STREAM = b"text/event-stream"
#: From this status on it is a gateway that answers.
GATEWAY = 502
_SHOWN = (b"www-authenticate", b"content-type", b"retry-after", b"cache-control")


class Response:
    """An answer whose body is still to come; it must be delivered or discarded at once.

    :param headers: with names in lower case.
    """

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers

    def header(self, name: bytes) -> bytes:
        """The value of a header, or nothing; ``name`` in lower case."""
        return first_of(self.headers).get(name, b"")

    @property
    def kind(self) -> bytes:
        """Its media type, in lower case and without parameters."""
        return once(self.headers, _kind_of)

    @property
    def is_event_stream(self) -> bool:
        """Whether its body is a stream of events."""
        return 200 <= self.status < 300 and self.kind == EVENT_STREAM

    @abstractmethod
    def deliver(self, receiver: IBodyReceiver) -> None:
        """Hand the body over as it comes."""

    @abstractmethod
    def pause(self) -> None:
        """Take nothing from the network for now."""

    @abstractmethod
    def resume(self) -> None:
        """Go on."""

    @abstractmethod
    def abort(self) -> None:
        """Close the connection; the receiver hears nothing more."""

    def collect(self, limit: int, clock: IReactorTime, timeout: float) -> Deferred[bytes]:
        """The body, at most ``limit`` bytes of it, or what came of it within ``timeout`` seconds."""
        collector = Collector(limit)
        self.deliver(collector)
        deadline = clock.callLater(timeout, collector.body_ended, "timed out")

        def finished(data: bytes) -> bytes:
            if deadline.active():
                deadline.cancel()
            self.abort()
            return data

        return collector.done.addCallback(finished)

    def discard(self) -> None:
        """Read the body and forget it, so that the connection can be used again."""
        self.deliver(Nobody())


def _kind_of(headers: Headers) -> bytes:
    return first_of(headers).get(b"content-type", b"").partition(b";")[0].strip().lower()


def shown_answer(response: Response, clock: IReactorTime) -> Deferred[HTTPAnswer]:
    """A refusal that the client should see as it came."""
    shown = tuple((name, value) for name, value in response.headers if name in _SHOWN)
    body = response.collect(MAX_REFUSAL_BYTES, clock, REFUSAL_WAIT)
    return body.addCallback(lambda text: HTTPAnswer(response.status, shown, text))
