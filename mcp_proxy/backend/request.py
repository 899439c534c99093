"""A request for the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.response import Response
from mcp_proxy.wire.headers import Headers


def nothing() -> None:
    """Nobody needs to know."""


class BackendRequest(msgspec.Struct, frozen=True, eq=False):
    """What is asked, and who is told what comes of it. (A struct, for these are made fastest.)

    ``answered`` is called with the head of the answer, or ``failed`` if there is none; one of them once, perhaps before
    asking has returned, and neither after it was cancelled. ``sending`` is called when the body is about to be handed
    to the network. ``reuse``: an idle connection will do that the backend may be about to close; nobody may know then
    whether the request got through, so only what can be repeated may be sent so.
    """

    method: str
    url: str
    headers: Headers
    body: bytes | None
    answered: Callable[[Response], None]
    failed: Callable[[RequestFailed], None]
    sending: Callable[[], None] = nothing
    reuse: bool = False


class ICancellable(Protocol):
    """What can be given up."""

    def cancel(self) -> None:
        """Want no answer any more."""


class IRequests(Protocol):
    """Requests of one session."""

    def ask(self, request: BackendRequest, headers: Headers) -> ICancellable | None:
        """Send a request with these headers rather than its own."""
