"""Who is told how clients take their answers: the front that counts them, and the session."""

from __future__ import annotations

from typing import Any

from mcp_proxy.frontend.stream import ClientStream, Watcher
from mcp_proxy.session.session import Session


class Present(Watcher):
    """A client that a front knows of as long as it is there.

    :param streams: those of the front, each with what it is about.
    """

    __slots__ = ("_stream", "_streams")

    def __init__(self, streams: dict[ClientStream, Any], stream: ClientStream, about: object) -> None:
        self._streams = streams
        self._stream = stream
        streams[stream] = about

    def gone(self) -> None:
        """It has left, or has what it wanted."""
        self._streams.pop(self._stream, None)


class Listening(Present):
    """A client with a stream for what belongs to no request of its session."""

    __slots__ = ("_session",)

    def __init__(self, streams: dict[ClientStream, Any], stream: ClientStream, about: object, session: Session) -> None:
        super().__init__(streams, stream, about)
        self._session = session

    def gone(self) -> None:
        """It has left this stream."""
        super().gone()
        self._session.detach(self._stream)

    def paused(self) -> None:
        """It does not read."""
        self._session.stream_paused()

    def resumed(self) -> None:
        """It reads again."""
        self._session.stream_resumed()
