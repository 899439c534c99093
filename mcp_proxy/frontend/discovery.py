"""OAuth discovery: clients ask the proxy where to get a token, and the backend knows.

The answers pass unchanged, so the backend must be configured with the URL under which clients know the proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.frontend.stream import ClientRequest, Watcher
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire.errors import BackendUnavailable, NoSuchPath
from mcp_proxy.wire.headers import Headers, end_to_end

log = Logger()

Fetch = Callable[[str, Headers], Deferred[HTTPAnswer]]


class _Waiting(Watcher):
    """A client that waits for a page."""

    __slots__ = ("_fetched",)

    def __init__(self, fetched: Deferred[HTTPAnswer]) -> None:
        self._fetched = fetched

    def gone(self) -> None:
        """It does not want the page any more."""
        self._fetched.cancel()


class Discovery:
    """``GET /.well-known/...``.

    :param fetch: gets a page from the root of the backend's origin; fails if there is no answer.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def get(self, request: ClientRequest) -> None:
        """Pass a page on.

        :raises NoSuchPath: the path leads elsewhere.
        """
        if {".", ".."} & set(unquote(request.path).replace("\\", "/").split("/")):
            raise NoSuchPath()
        stream = request.stream
        fetched = self._fetch(request.path, end_to_end(request.headers))
        stream.watcher = _Waiting(fetched)

        def failed(failure: Failure) -> None:
            log.debug("discovery page not to be had: {reason}", reason=failure.getErrorMessage())
            stream.fail(BackendUnavailable())

        fetched.addCallbacks(lambda page: stream.respond(page.status, page.body, page.headers), failed)
        fetched.addErrback(lambda failure: log.failure("discovery page could not be passed on", failure))
