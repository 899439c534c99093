"""The client's side of a session: at most one stream, and a log of what was sent for a client that comes back."""

from __future__ import annotations

from mcp_proxy.session.eventlog import EventLog
from mcp_proxy.session.interfaces import IClientStream
from mcp_proxy.wire import sse

#: What the event log of a session may keep.
MAX_EVENTS = 256
MAX_BYTES = 1024 * 1024


class Outlet:
    """Where messages for the client go.

    :param token: the session's id; event ids are made of it, so that they name the session.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._log = EventLog(MAX_EVENTS, MAX_BYTES)
        self.stream: IClientStream | None = None

    @property
    def last_event(self) -> int:
        """The number of the newest event."""
        return self._log.last

    @property
    def is_paused(self) -> bool:
        """Whether the client does not keep up."""
        return self.stream is not None and self.stream.paused

    def emit(self, raw: bytes) -> None:
        """Send a message, and keep it for a while."""
        number = self._log.append(raw)
        if self.stream is not None:
            self.stream.write(self._encoded(number, raw))

    def attach(self, stream: IClientStream, since: int) -> None:
        """Use this stream from now on; first it gets what it has missed since that event."""
        superseded, self.stream = self.stream, stream
        if superseded is not None:
            superseded.close()
        for number, raw in self._log.since(since):
            stream.write(self._encoded(number, raw))

    def close(self) -> None:
        """End the stream."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def _encoded(self, number: int, raw: bytes) -> bytes:
        return sse.encode(raw, identity=b"%b.%d" % (self._token, number))
