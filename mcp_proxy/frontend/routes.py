"""Where requests go, as whoever reads them sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mcp_proxy.frontend.stream import ClientRequest
from mcp_proxy.wire.errors import ProxyError

Handler = Callable[[ClientRequest], None]


class IRoutes(Protocol):
    """Where requests go."""

    def find(self, method: str, path: str) -> Handler | None:
        """The handler of a plain request for an MCP route; None for any other request."""

    def answer(self, taken: ClientRequest, handler: Handler) -> None:
        """Answer a request, now or later."""

    def told(self, method: str, path: str, status: int) -> None:
        """A request has been answered."""

    def refused(self, error: ProxyError) -> None:
        """What is no request, or not a whole one, has been refused; or a client has been dropped."""
