"""The client's side of an HTTP+SSE session: one stream for everything."""

from __future__ import annotations

from typing import Any

from mcp_proxy.session.eventlog import EventLog
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, IClientStream
from mcp_proxy.wire import sse
from mcp_proxy.wire.errors import ProxyError

#: What the event log of a channel may keep.
MAX_EVENTS = 256
MAX_BYTES = 1024 * 1024


class Channel:
    """Numbered messages for a client, on at most one stream at a time, and a log for a client that comes back.

    :param name: event ids are made of it: ``name.number``.
    """

    __slots__ = ("_log", "_name", "_written", "stream")

    def __init__(self, name: bytes) -> None:
        self.stream: IClientStream | None = None
        self._name = name
        self._log = EventLog(MAX_EVENTS, MAX_BYTES)
        self._written = 0

    @property
    def last_event(self) -> int:
        """The number of the newest event."""
        return self._log.last

    @property
    def size(self) -> int:
        """How many bytes the log keeps."""
        return self._log.size

    def event_id(self, number: int) -> bytes:
        """The id of an event."""
        return b"%b.%d" % (self._name, number)

    def emit(self, raw: bytes) -> None:
        """Send a message, and keep it for a while."""
        number = self._log.append(raw)
        if self.stream is not None:
            self._written = number
            self.stream.write(sse.encode(raw, identity=self.event_id(number)))

    def attach(self, stream: IClientStream, since: int | None) -> int:
        """Use this stream from now on; first it gets what it has missed since that event, or what nobody has got.

        Tells how much that is.
        """
        superseded, self.stream = self.stream, stream
        if superseded is not None:
            superseded.close()
        missed = self._log.since(self._written if since is None else since)
        for number, raw in missed:
            stream.write(sse.encode(raw, identity=self.event_id(number)))
        self._written = self._log.last
        return len(missed)

    def detach(self, stream: IClientStream) -> bool:
        """The client has left this stream; tells whether it was in use."""
        if stream is not self.stream:
            return False
        self.stream = None
        return True

    def close(self) -> None:
        """End the stream."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def forget(self) -> None:
        """Nobody comes back: end the stream, and keep nothing."""
        self.close()
        self._log.clear()


class SSEOutlet:
    """See the module.

    :param token: the session's id; event ids are made of it, so that they name the session.
    """

    __slots__ = ("_channel",)

    needs_handshake = True
    outlives_streams = False
    patient = True

    def __init__(self, token: str) -> None:
        self._channel = Channel(token.encode())

    @property
    def attached(self) -> bool:
        """Whether the client listens."""
        return self._channel.stream is not None

    @property
    def paused(self) -> list[object]:
        """Whether the client does not read."""
        return [None] if self._channel.stream is not None and self._channel.stream.paused else []

    @property
    def last_event(self) -> int:
        """The number of the newest event."""
        return self._channel.last_event

    def attach(self, stream: IClientStream, since: int | None) -> int:
        """The client listens on this stream."""
        return self._channel.attach(stream, since)

    def detach(self, stream: IClientStream) -> bool:
        """It has left it."""
        return self._channel.detach(stream)

    def emit(self, raw: bytes, about: Exchange | None = None) -> None:
        """Send a message."""
        self._channel.emit(raw)

    def answer(self, exchange: Exchange, raw: bytes, error: ProxyError | None = None) -> None:
        """Send an answer."""
        self._channel.emit(raw)

    def refuse(self, exchange: Exchange, answer: HTTPAnswer) -> bool:
        """The client's POST was answered long ago."""
        return False

    def abandon(self, exchange: Exchange) -> None:
        """Nothing is open for it."""

    def begin_stream(self, exchange: Exchange) -> None:
        """There is always a stream."""

    def restored(self, initialized: dict[str, Any]) -> None:
        """The client has seen what the first backend said."""

    def pause_stream(self, exchange: Exchange, delay: float) -> None:
        """It is for everything else as well."""

    def say_retry(self) -> None:
        """The stream began with that."""

    def close(self) -> None:
        """Nobody comes back."""
        self._channel.forget()
