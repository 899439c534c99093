"""Streamable HTTP clients of a backend that knows which of its messages are about which request."""

from __future__ import annotations

from typing import Any

from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.session.replies import StreamableOutlet
from mcp_proxy.session.session import Session
from tests.memory.test_streamable import StreamableCase, silent
from tests.support import messages
from tests.support.memory import Connection, House
from tests.support.messages import Json

Header = tuple[bytes, bytes]

TEXT = (b"content-type", b"text/plain")
REFUSED = HTTPAnswer(403, ((b"WWW-Authenticate", b'Bearer error="insufficient_scope"'), TEXT), b"not you")


class CorrelatedCase(StreamableCase):
    """A house whose links correlate, with a backend that answers no call before it is told to."""

    def setUp(self) -> None:
        """The house, ready."""
        super().setUp()
        self.ready()

    def ready(self) -> None:
        """Teach the backend its ways."""
        self.house.backend.correlates = True
        self.house.backend.answers["tools/call"] = silent

    def rebuild(self, **options: Any) -> House:
        """A house with these options, ready."""
        super().rebuild(**options)
        self.ready()
        return self.house

    def cancel(self, identity: Any, *headers: Header) -> None:
        """A client cancels a request."""
        cancelled = messages.notification("notifications/cancelled", {"requestId": identity})
        self.assertEqual(self.post(cancelled, *headers).answer.status, 202)

    def last_of(self, connection: Connection) -> Header:
        """What the client says who has seen this much of a stream."""
        return b"last-event-id", connection.events[-1].id.encode()

    def session_of(self, session: Header) -> Session:
        """The session behind its header."""
        return next(each for each in self.house.registry if each.id.encode() == session[1])

    def outlet_of(self, session: Header) -> StreamableOutlet:
        """Its side towards the client."""
        outlet = self.session_of(session).outlet
        assert isinstance(outlet, StreamableOutlet)
        return outlet

    def sent(self, method: str) -> list[Json]:
        """What all links together have got of a method."""
        return [each for link in self.house.backend.made for each in link.sent if each.get("method") == method]


def note(name: str) -> Json:
    """A notification of the backend's."""
    return messages.notification(f"notifications/{name}")


def shown(connection: Connection) -> list[Any]:
    """The messages of a stream in short: a method, or the id of what is answered."""
    return [each.get("method", "").rpartition("/")[2] or each.get("id") for each in connection.messages]
