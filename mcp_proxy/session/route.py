"""What those who carry a session's messages see of the session."""

from __future__ import annotations

from typing import Protocol

from mcp_proxy.session.credentials import Credentials
from mcp_proxy.session.handshake import Memory
from mcp_proxy.session.interfaces import HTTPAnswer, ILink, IOutlet
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.wire.headers import Headers


class IRoute(Protocol):
    """What the courier sees of its session."""

    @property
    def phase(self) -> Phase:
        """Where the session is."""

    @property
    def generation(self) -> int:
        """The number of the link."""

    @property
    def label(self) -> str:
        """How logs name the session."""

    @property
    def credentials(self) -> Credentials:
        """Whose the session is."""

    @property
    def headers(self) -> Headers:
        """The standing headers of the client."""

    @property
    def memory(self) -> Memory:
        """What is remembered for the next link."""

    @property
    def link(self) -> ILink | None:
        """The link, if there is one."""

    @property
    def outage(self) -> float:
        """For how many seconds the backend has been away."""

    @property
    def trouble(self) -> str:
        """Why there is no link, in words."""

    @property
    def ending(self) -> str:
        """Why the session is about to be over, as the beginning of a sentence; empty while it is not."""

    @property
    def outlet(self) -> IOutlet:
        """Where messages for the client go."""

    def lost(self, reason: str, challenge: HTTPAnswer | None = None, *, is_away: bool = False) -> None:
        """The link has turned out to be of no use."""

    def initialized(self) -> None:
        """The client's own initialize was answered."""
