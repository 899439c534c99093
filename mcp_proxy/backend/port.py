"""The backend's port: is it open, does somebody answer there, and a connection that notices when it is closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.http import BackendClient
from mcp_proxy.backend.post import OF_A_MESSAGE
from mcp_proxy.backend.request import nothing
from mcp_proxy.backend.response import GATEWAY, Response, shown_answer
from mcp_proxy.backend.target import Target, endpoint_to
from mcp_proxy.session.bridge import to_modern
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire import revisions
from mcp_proxy.wire.headers import Headers


class Sentinel(Protocol):
    """An idle connection; ``closed`` is called when the other side ends it."""

    def __init__(self, closed: Callable[[], None]) -> None:
        self._closed = closed

    def close(self) -> None:
        """End it; ``closed`` is not called."""
        self._closed = nothing
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection has ended."""
        self._closed()


class Port:
    """What can be tried without a session.

    :param reactor: makes connections and keeps time.
    :param client: asks for the health page.
    :param health_path: where that is.
    :param mcp_path: where the MCP endpoint is.
    :param timeout: seconds until a connection attempt or a question is given up.
    """

    def __init__(
        self, reactor: Any, target: Target, client: BackendClient, health_path: str, mcp_path: str, timeout: float
    ) -> None:
        self._reactor = reactor
        self._target = target
        self._client = client
        self._health_url = target.url + health_path
        self._mcp_url = target.url + mcp_path
        self._headers: Headers = ((b"Accept", b"application/json, */*"),)
        self._timeout = timeout
        self._origin = target.origin

    def try_connect(self) -> Deferred[None]:
        """Connect and hang up; fails if nobody listens."""
        return Deferred.fromCoroutine(self._try_connect())

    async def _try_connect(self) -> None:
        (await self._connect(nothing)).close()

    def discover(self, headers: Headers) -> Deferred[None]:
        """Ask the MCP endpoint what it speaks: whatever it says, a backend is there, unless a gateway says it.

        :param headers: with a client's credential.
        :raises RequestFailed: (by the Deferred) nobody is there.
        """
        own = (*to_modern.standing(headers), *OF_A_MESSAGE, *to_modern.Tools().headers(revisions.DISCOVER, b""))
        question = to_modern.Client().request(b'"mcp-proxy"', revisions.DISCOVER)

        def answered(response: Response) -> None:
            if response.is_event_stream:
                response.abort()
            else:
                response.discard()
            if response.status >= GATEWAY:
                raise RequestFailed(f"the backend answered {response.status} to a question of ours", sent=True)

        return self._client.open("POST", self._mcp_url, own, question).addCallback(answered)

    def stand_watch(self, closed: Callable[[], None]) -> Deferred[Sentinel]:
        """Connect and stay; ``closed`` is called when the backend ends the connection.

        A server that shuts down closes its idle connections first, so this is how it says so.
        """
        return Deferred.fromCoroutine(self._connect(closed))

    async def _connect(self, closed: Callable[[], None]) -> Sentinel:
        factory = Factory.forProtocol(lambda: Sentinel(closed))
        factory.noisy = False
        endpoint = endpoint_to(self._reactor, self._target.host, self._target.port, self._timeout)
        protocol: Any = await endpoint.connect(factory)
        sentinel: Sentinel = protocol
        return sentinel

    def ask(self, timeout: float) -> Deferred[int]:
        """Get the health page; fires with its status.

        :param timeout: seconds until no answer is a failure.
        :raises RequestFailed: (by the Deferred) nobody answered.
        """
        asked = self._client.open("GET", self._health_url, self._headers)
        deadline = self._reactor.callLater(min(timeout, self._timeout), asked.cancel)

        def over(result: Any) -> Any:
            if deadline.active():
                deadline.cancel()
            return result

        def answered(response: Response) -> int:
            response.abort()
            return response.status

        return asked.addBoth(over).addCallback(answered)

    def fetch(self, path: str, headers: Headers) -> Deferred[HTTPAnswer]:
        """Get a page, as it is, from the root of the backend's origin.

        :raises RequestFailed: (by the Deferred) nobody answered in time.
        """
        asked = self._client.open("GET", self._origin + path, (*headers, (b"Accept", b"application/json, */*")))
        deadline = self._reactor.callLater(self._timeout, asked.cancel)

        def over(result: Any) -> Any:
            if deadline.active():
                deadline.cancel()
            return result

        return asked.addBoth(over).addCallback(shown_answer, self._reactor)
