"""HTTP towards the backend: requests as sessions make them, and how far a failed request got.

Nothing here follows a redirect, decodes a stream, keeps a cookie beyond one session or sends a request twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.connections import LeanConnections
from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.request import BackendRequest, ICancellable, IRequests, nothing
from mcp_proxy.backend.response import Response
from mcp_proxy.backend.target import Target
from mcp_proxy.backend.web import TreqConnections
from mcp_proxy.wire.headers import Headers, without_own_key

log = Logger()


class IConnections(Protocol):
    """The connections to the backend."""

    def requests(self) -> IRequests:
        """Requests of one session: cookies of the backend's stay within it."""

    def close(self) -> Deferred[None]:
        """Close the idle connections."""


class BackendHTTP:
    """The one way to the backend.

    :param reactor: makes connections (TCP, TLS, names) and keeps time.
    :param target: whose credentials go with requests that have none.
    :param connect_timeout: seconds until a connection attempt is given up.
    :param trust: how the backend is recognized over TLS, and what it is shown.
    :param is_lean: whether requests take the lean path, where there is no TLS.
    """

    def __init__(
        self, reactor: Any, target: Target, connect_timeout: float, trust: Any = None, *, is_lean: bool = True
    ) -> None:
        self._reactor = reactor
        self._target = target
        #: Is told when a connection has ended in the middle of something.
        self.on_broken: Callable[[], None] = nothing
        self._connections: IConnections
        if is_lean and not target.is_secure:
            self._connections = LeanConnections(reactor, target, connect_timeout, self._broke)
        else:
            self._connections = TreqConnections(reactor, connect_timeout, self._broke, trust)
        self._farewells: set[Deferred[Any]] = set()

    def _broke(self) -> None:
        self.on_broken()

    def client(self) -> BackendClient:
        """Requests of one session: cookies of the backend's stay within it."""
        return BackendClient(self._reactor, self._connections.requests(), self._farewells, self._target)

    def said_farewell(self) -> Deferred[Any]:
        """Fires when no goodbye is under way any more."""
        return DeferredList([farewell.addCallback(lambda _: None) for farewell in self._farewells])

    def forget_connections(self) -> Deferred[None]:
        """Close the idle connections: their other end has gone or is about to go."""
        return self._connections.close()


def _nothing_to_do(failure: Failure) -> None:
    log.debug("goodbye to the backend failed: {reason}", reason=RequestFailed.trapped(failure).reason)


def _abort(response: Response) -> None:
    response.abort()


class _Opening(BackendRequest):
    """A request whose answer's head somebody waits for."""

    __slots__ = ("_opened", "_sending")

    def __init__(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None,
        opened: Deferred[Response],
        sending: Callable[[], None],
        *,
        reuse: bool,
    ) -> None:
        super().__init__(method, url, headers, body, reuse=reuse)
        self._opened = opened
        self._sending = sending

    def answered(self, response: Response) -> None:
        """Here it is."""
        self._opened.callback(response)

    def failed(self, error: RequestFailed) -> None:
        """It will not come."""
        self._opened.errback(error)

    def sending(self) -> None:
        """It goes."""
        self._sending()


class BackendClient:
    """Requests of one session."""

    __slots__ = ("_farewells", "_given", "_reactor", "_ready", "_requests", "_target")

    def __init__(self, reactor: Any, requests: IRequests, farewells: set[Deferred[Any]], target: Target) -> None:
        self._reactor = reactor
        self._requests = requests
        self._farewells = farewells
        self._target = target
        self._given: Headers = ()  # those of the last request
        self._ready: Headers = target.with_credentials(())  # what went out for them

    def farewell(self, method: str, url: str, headers: Headers, timeout: float) -> None:
        """Send a request whose answer nobody waits for, for at most so many seconds."""
        said: Deferred[Any] = self.open(method, url, headers)
        self._farewells.add(said)
        deadline = self._reactor.callLater(timeout, said.cancel)

        def over(_: object) -> None:
            self._farewells.discard(said)
            if deadline.active():
                deadline.cancel()

        said.addCallback(_abort).addErrback(_nothing_to_do).addBoth(over)

    def open(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None = None,
        *,
        reuse: bool = False,
        sending: Callable[[], None] = nothing,
    ) -> Deferred[Response]:
        """Send a request (see :class:`BackendRequest`); fires with the answer's head.

        :raises RequestFailed: (by the Deferred) there is no answer.
        """
        asked: list[ICancellable | None] = []

        def cancel(opened: Deferred[Response]) -> None:
            if asked and asked[0] is not None:
                asked[0].cancel()
            opened.errback(RequestFailed("no answer in time", sent=False))

        opened: Deferred[Response] = Deferred(cancel)
        asked.append(self.ask(_Opening(method, url, headers, body, opened, sending, reuse=reuse)))
        return opened

    def ask(self, request: BackendRequest) -> ICancellable | None:
        """Send a request."""
        headers = request.headers
        if headers is not self._given:
            self._given, self._ready = headers, self._target.with_credentials(without_own_key(headers))
        return self._requests.ask(request, self._ready)
