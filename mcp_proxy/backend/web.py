"""HTTP towards the backend by treq: over TLS, and where the lean path is not wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import treq.client
from attrs import frozen
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    BrowserLikePolicyForHTTPS,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers as WebHeaders
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from mcp_proxy.backend.bodies import IBodyReceiver, Nobody
from mcp_proxy.backend.failures import RequestFailed, describe
from mcp_proxy.backend.request import BackendRequest, ICancellable, nothing
from mcp_proxy.backend.response import Response
from mcp_proxy.backend.target import endpoint_to
from mcp_proxy.wire.headers import Headers

log = Logger()

#: Idle connections are given up before the backend does it; uvicorn closes them after 5 s.
IDLE_CONNECTION_TIMEOUT = 4.0
MAX_IDLE_CONNECTIONS = 32


class _Answer(TwistedProtocol, Response):
    """An answer, and what Twisted hands its body to."""

    def __init__(self, original: IResponse, headers: Headers, broke: Callable[[], None]) -> None:
        super().__init__(original.code, headers)
        self._original = original
        self._broke = broke
        self._receiver: IBodyReceiver | None = None
        self._paused = False

    def deliver(self, receiver: IBodyReceiver) -> None:
        self.headers = ()  # whoever wanted to see them has; an answer may last
        self._begin(receiver)

    def _begin(self, receiver: IBodyReceiver) -> None:
        self._receiver = receiver
        self._original.deliverBody(self)
        if self._paused:
            self._apply()  # Twisted has just told its transport to go on

    def connectionMade(self) -> None:
        self._apply()

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._apply()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._apply()

    def _apply(self) -> None:
        transport: Any = self.transport
        if transport is None:
            return
        if self._paused:
            transport.pauseProducing()
        else:
            transport.resumeProducing()

    def abort(self) -> None:
        if self._receiver is None:
            self._begin(Nobody())  # what is not delivered cannot be ended
        self._receiver, self._broke = Nobody(), nothing
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        receiver = self._receiver or Nobody()
        try:
            receiver.body_received(data)
        except Exception:  # Twisted loses what is raised here (#9187)
            log.failure("a message of the backend's could not be handled")
            self.abort()
            receiver.body_ended("a message of the backend's could not be handled")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        receiver, self._receiver = self._receiver or Nobody(), Nobody()
        has_end = reason.check(ResponseDone, PotentialDataLoss)
        if not has_end:
            self._broke()
        receiver.body_ended("the stream ended" if has_end else describe(reason))


@implementer(IBodyProducer)
class _BytesBody:
    """A request body that tells when it is handed to the network."""

    def __init__(self, data: bytes, sending: Callable[[], None]) -> None:
        self.length = len(data)
        self.sent = False
        self._data = data
        self._sending = sending

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.sent = True
        self._sending()
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


@implementer(IAgent)
@frozen
class _PlainAgent:
    """An agent that asks for no compression: treq would, and a compressed event stream is a late one."""

    _agent: IAgent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: WebHeaders | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        headers = WebHeaders() if headers is None else headers.copy()
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        return self._agent.request(method, uri, headers, bodyProducer)


@implementer(IAgentEndpointFactory)
@frozen
class _Endpoints:
    """Connects like Twisted's own, but learns of a refused connection sooner."""

    _reactor: Any
    _timeout: float
    _policy: IPolicyForHTTPS

    def endpointForURI(self, uri: URI) -> Any:
        endpoint = endpoint_to(self._reactor, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return endpoint
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)


class TreqConnections:
    """The connections to the backend.

    :param reactor: makes connections (TCP, TLS, names) and keeps time.
    :param connect_timeout: seconds until a connection attempt is given up.
    :param broke: called when a connection has ended in the middle of something.
    :param trust: how the backend is recognized over TLS, and what it is shown; None: as browsers do, and nothing.
    """

    def __init__(
        self,
        reactor: Any,
        connect_timeout: float,
        broke: Callable[[], None],
        trust: IPolicyForHTTPS | None = None,
    ) -> None:
        self._reactor = reactor
        self._broke = broke
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.retryAutomatically = False
        self._pool.maxPersistentPerHost = MAX_IDLE_CONNECTIONS
        self._pool.cachedConnectionTimeout = IDLE_CONNECTION_TIMEOUT  # type: ignore[assignment]
        single_use = HTTPConnectionPool(reactor, persistent=False)
        endpoints = _Endpoints(reactor, connect_timeout, trust or BrowserLikePolicyForHTTPS())
        self._pooled = _PlainAgent(Agent.usingEndpointFactory(reactor, endpoints, self._pool))
        self._fresh = _PlainAgent(Agent.usingEndpointFactory(reactor, endpoints, single_use))

    def requests(self) -> TreqRequests:
        """Requests of one session: cookies of the backend's stay within it."""
        jar = IndexableCookieJar()
        return TreqRequests(
            self._reactor,
            pooled=treq.client.HTTPClient(self._pooled, jar, _as_is),
            fresh=treq.client.HTTPClient(self._fresh, jar, _as_is),
            broke=self._broke,
        )

    def close(self) -> Deferred[None]:
        """Close the idle connections."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing


def _as_is(body: Any) -> Any:
    return body


@frozen
class TreqRequests:
    """Requests of one session."""

    _reactor: Any
    _pooled: treq.client.HTTPClient
    _fresh: treq.client.HTTPClient
    _broke: Callable[[], None]

    def ask(self, request: BackendRequest, headers: Headers) -> ICancellable:
        """See :meth:`IRequests.ask`."""
        client = self._pooled if request.reuse else self._fresh
        producer = None if request.body is None else _BytesBody(request.body, request.sending)
        web_headers = WebHeaders()
        for name, value in headers:
            web_headers.addRawHeader(name, value)

        asked = _Asked()

        def come(response: IResponse) -> None:
            shown = tuple(
                (name.lower(), value) for name, values in response.headers.getAllRawHeaders() for value in values
            )
            found = _Answer(response, shown, self._broke)
            if asked.is_over:
                found.abort()
            else:
                request.answered(found)

        def broke(failure: Failure) -> None:
            error = RequestFailed(describe(failure), sent=producer is not None and producer.sent)
            error.__cause__ = failure.value
            if asked.is_over:
                return
            if failure.check(RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived):
                self._broke()
            request.failed(error)

        asked.requested = client.request(
            request.method,
            request.url,
            headers=web_headers,
            data=producer,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        asked.requested.addCallbacks(come, broke).addErrback(
            lambda failure: log.failure("an answer of the backend's could not be handled", failure)
        )
        return asked


class _Asked:
    """A request under way."""

    is_over = False
    requested: Deferred[Any]

    def cancel(self) -> None:
        """Want no answer any more; nothing is told."""
        self.is_over = True
        self.requested.cancel()
