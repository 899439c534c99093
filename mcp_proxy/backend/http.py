"""HTTP towards the backend: requests by treq, bodies as they come, and how far a failed request got.

Nothing here follows a redirect, decodes a stream, keeps a cookie beyond one session or sends a request twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import treq.client
from attrs import define, frozen
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    ConnectionDone,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers as WebHeaders
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from mcp_proxy.backend.bodies import Collector, IBodyReceiver, Nobody
from mcp_proxy.backend.target import Target
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire.headers import Headers

log = Logger()

#: Idle connections are given up before the backend does it; uvicorn closes them after 5 s.
IDLE_CONNECTION_TIMEOUT = 4.0
MAX_IDLE_CONNECTIONS = 32
#: Seconds between the addresses of a name; Twisted's 0.3 is also how late it tells of the last refusal.
ATTEMPT_DELAY = 0.05
#: How much of a refusal's body is kept for the client, for how many seconds it is waited for, and which headers count.
MAX_REFUSAL_BYTES = 64 * 1024
REFUSAL_WAIT = 2.0
_SHOWN = (b"www-authenticate", b"content-type", b"retry-after", b"cache-control")


class RequestFailed(Exception):
    """No answer came. ``sent`` tells whether the backend may have got the request all the same."""

    @classmethod
    def trapped(cls, failure: Failure) -> RequestFailed:
        """The failure as what it is; anything else is raised again."""
        failure.trap(cls)
        error = failure.value
        assert isinstance(error, cls)
        return error

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


@define
class Response:
    """An answer whose body is still to come; it must be delivered or discarded at once."""

    status: int
    headers: Headers
    _original: IResponse
    _body: _Body | None = None

    def header(self, name: bytes) -> bytes:
        """The value of a header, or nothing."""
        return next((value for own, value in self.headers if own.lower() == name), b"")

    @property
    def kind(self) -> bytes:
        """Its media type, in lower case and without parameters."""
        return self.header(b"content-type").partition(b";")[0].strip().lower()

    @property
    def is_event_stream(self) -> bool:
        """Whether its body is a stream of events."""
        return 200 <= self.status < 300 and self.kind == b"text/event-stream"

    def deliver(self, receiver: IBodyReceiver) -> None:
        """Hand the body over as it comes."""
        self._body = _Body(receiver)
        self._original.deliverBody(self._body)

    def pause(self) -> None:
        """Take nothing from the network for now."""
        if self._body is not None:
            self._body.pause(True)

    def resume(self) -> None:
        """Go on."""
        if self._body is not None:
            self._body.pause(False)

    def abort(self) -> None:
        """Close the connection; the receiver hears nothing more."""
        if self._body is None:
            self.deliver(Nobody())
        if self._body is not None:
            self._body.abort()

    def collect(self, limit: int, clock: IReactorTime, timeout: float) -> Deferred[bytes]:
        """The body, at most ``limit`` bytes of it, or what came of it within ``timeout`` seconds."""
        collector = Collector(limit)
        self.deliver(collector)
        deadline = clock.callLater(timeout, collector.body_ended, "timed out")

        def finished(data: bytes) -> bytes:
            if deadline.active():
                deadline.cancel()
            self.abort()
            return data

        return collector.done.addCallback(finished)

    def discard(self) -> None:
        """Read the body and forget it, so that the connection can be used again."""
        self.deliver(Nobody())


class _Body(TwistedProtocol):
    """Between Twisted's body protocol and a receiver."""

    def __init__(self, receiver: IBodyReceiver) -> None:
        self._receiver: IBodyReceiver = receiver
        self._paused = False

    def connectionMade(self) -> None:
        self._apply()

    def pause(self, paused: bool) -> None:
        if paused is not self._paused:
            self._paused = paused
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
        self._receiver = Nobody()
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        try:
            self._receiver.body_received(data)
        except Exception:  # Twisted loses what is raised here (#9187)
            log.failure("a message of the backend's could not be handled")
            receiver = self._receiver
            self.abort()
            receiver.body_ended("a message of the backend's could not be handled")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        receiver, self._receiver = self._receiver, Nobody()
        receiver.body_ended("the stream ended" if reason.check(ResponseDone) else describe(reason))


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
    _policy: BrowserLikePolicyForHTTPS

    def endpointForURI(self, uri: URI) -> Any:
        endpoint = HostnameEndpoint(
            self._reactor, uri.host.decode("ascii"), uri.port, timeout=self._timeout, attemptDelay=ATTEMPT_DELAY
        )
        if uri.scheme == b"http":
            return endpoint
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)


class BackendHTTP:
    """The connections to the backend.

    :param reactor: makes connections (TCP, TLS, names) and keeps time.
    :param target: whose credentials go with requests that have none.
    :param connect_timeout: seconds until a connection attempt is given up.
    """

    def __init__(self, reactor: Any, target: Target, connect_timeout: float) -> None:
        self._reactor = reactor
        self._target = target
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.retryAutomatically = False
        self._pool.maxPersistentPerHost = MAX_IDLE_CONNECTIONS
        self._pool.cachedConnectionTimeout = IDLE_CONNECTION_TIMEOUT  # type: ignore[assignment]
        single_use = HTTPConnectionPool(reactor, persistent=False)
        endpoints = _Endpoints(reactor, connect_timeout, BrowserLikePolicyForHTTPS())
        self._pooled = _PlainAgent(Agent.usingEndpointFactory(reactor, endpoints, self._pool))
        self._fresh = _PlainAgent(Agent.usingEndpointFactory(reactor, endpoints, single_use))
        self._farewells: set[Deferred[Any]] = set()

    def client(self) -> BackendClient:
        """Requests of one session: cookies of the backend's stay within it."""
        jar = IndexableCookieJar()
        return BackendClient(
            self._reactor,
            pooled=treq.client.HTTPClient(self._pooled, jar, _as_is),
            fresh=treq.client.HTTPClient(self._fresh, jar, _as_is),
            farewells=self._farewells,
            target=self._target,
        )

    def said_farewell(self) -> Deferred[Any]:
        """Fires when no goodbye is under way any more."""
        return DeferredList([farewell.addCallback(lambda _: None) for farewell in self._farewells])

    def forget_connections(self) -> Deferred[None]:
        """Close the idle connections: their other end has gone or is about to go."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing


def _nothing_to_do(failure: Failure) -> None:
    log.debug("goodbye to the backend failed: {reason}", reason=RequestFailed.trapped(failure).reason)


def _as_is(body: Any) -> Any:
    return body


@frozen
class BackendClient:
    """Requests of one session."""

    _reactor: Any
    _pooled: treq.client.HTTPClient
    _fresh: treq.client.HTTPClient
    _farewells: set[Deferred[Any]]
    _target: Target

    def farewell(self, method: str, url: str, headers: Headers, timeout: float) -> None:
        """Send a request whose answer nobody waits for, for at most so many seconds."""
        said: Deferred[Any] = self.open(method, url, headers)
        self._farewells.add(said)
        deadline = self._reactor.callLater(timeout, said.cancel)

        def over(_: object) -> None:
            self._farewells.discard(said)
            if deadline.active():
                deadline.cancel()

        said.addCallback(Response.abort).addErrback(_nothing_to_do).addBoth(over)

    def open(
        self,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None = None,
        *,
        reuse: bool = False,
        sending: Callable[[], None] = lambda: None,
    ) -> Deferred[Response]:
        """Send a request; fires with the answer's head.

        :param reuse: whether an idle connection will do. It may turn out to be closed, when nobody knows whether
            the request got through, so only what can be repeated may use it.
        :param sending: called when the body is about to be handed to the network.
        :raises RequestFailed: (by the Deferred) there is no answer.
        """
        client = self._pooled if reuse else self._fresh
        producer = None if body is None else _BytesBody(body, sending)
        web_headers = WebHeaders()
        for name, value in self._target.with_credentials(headers):
            web_headers.addRawHeader(name, value)

        def answered(response: IResponse) -> Response:
            return Response(
                response.code,
                tuple((name, value) for name, values in response.headers.getAllRawHeaders() for value in values),
                response,
            )

        def failed(failure: Failure) -> Response:
            raise RequestFailed(describe(failure), sent=producer is not None and producer.sent) from failure.value

        requested = client.request(
            method,
            url,
            headers=web_headers,
            data=producer,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )
        return requested.addCallbacks(answered, failed)


def shown_answer(response: Response, clock: IReactorTime) -> Deferred[HTTPAnswer]:
    """A refusal that the client should see as it came."""
    shown = tuple((name, value) for name, value in response.headers if name.lower() in _SHOWN)
    body = response.collect(MAX_REFUSAL_BYTES, clock, REFUSAL_WAIT)
    return body.addCallback(lambda text: HTTPAnswer(response.status, shown, text))


def describe(failure: Failure) -> str:
    """What went wrong, in a few words without addresses or secrets."""
    reasons = getattr(failure.value, "reasons", None)
    while reasons:
        failure = next((each for each in reasons if not each.check(ConnectionDone)), reasons[0])
        reasons = getattr(failure.value, "reasons", None)
    error = failure.value
    if isinstance(error, (CancelledError, ConnectingCancelledError)):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, DNSLookupError):
        return "its name cannot be resolved"
    if isinstance(error, ConnectionDone):
        return "the connection was closed"
    if isinstance(error, (ConnectError, ConnectionClosed)):
        return (type(error).__doc__ or "the connection failed").strip().rstrip(".").lower()
    if isinstance(error, ResponseFailed):
        return "the answer was cut off"
    if "certificate verify failed" in str(error):
        return "its TLS certificate could not be verified"
    return "the connection broke"
