"""A request for the backend."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.response import Response
from mcp_proxy.wire.headers import Headers


def nothing() -> None:
    """Nobody needs to know."""


class BackendRequest:
    """What is asked, and told what comes of it: :meth:`answered` or :meth:`failed`.

    One of them is called once, perhaps before asking has returned, and neither after it was cancelled.

    :param reuse: an idle connection will do that the backend may be about to close; nobody may know then whether the
        request got through, so only what can be repeated may be sent so.
    """

    __slots__ = ("body", "headers", "method", "reuse", "url")

    def __init__(self, method: str, url: str, headers: Headers, body: bytes | None, *, reuse: bool) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.reuse = reuse

    @abstractmethod
    def answered(self, response: Response) -> None:
        """The head of the answer has come."""

    @abstractmethod
    def failed(self, error: RequestFailed) -> None:
        """There is none."""

    @abstractmethod
    def sending(self) -> None:
        """The body is about to be handed to the network."""


class ICancellable(Protocol):
    """What can be given up."""

    def cancel(self) -> None:
        """Want no answer any more."""


class IRequests(Protocol):
    """Requests of one session."""

    def ask(self, request: BackendRequest, headers: Headers) -> ICancellable | None:
        """Send a request with these headers rather than its own."""
