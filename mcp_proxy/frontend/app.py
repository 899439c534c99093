"""Routes to handlers, and nothing else; whatever is raised on the way becomes a JSON answer.

Klein knows all routes. Plain requests for the MCP routes are found without it (:meth:`App.find`); they mean the same.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any, cast

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import Site
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from mcp_proxy.frontend.discovery import Discovery
from mcp_proxy.frontend.guard import Guard
from mcp_proxy.frontend.http_sse import HTTPSSEFront
from mcp_proxy.frontend.lean import LeanFactory
from mcp_proxy.frontend.limits import Rate, count
from mcp_proxy.frontend.routes import Handler
from mcp_proxy.frontend.status import StatusPages
from mcp_proxy.frontend.stream import ClientRequest
from mcp_proxy.frontend.streamable import SESSION_HEADER, StreamableFront
from mcp_proxy.frontend.web import LimitedRequest, TrackedChannel, WebRequest
from mcp_proxy.wire.errors import MethodRefused, NoSuchPath, ProxyError, TooManyConnections

log = Logger()

_MESSAGES = "/mcp/messages/"
#: What needs no decoding, which is Klein's business.
_PLAIN = re.compile("[A-Za-z0-9_-]+")


class App:
    """The site's resource is ``App(...).klein.resource()``.

    :param refusals: counts what is refused, by reason.
    :param tells_requests: whether each request is logged; the log's level drops it otherwise, but not for nothing.
    """

    klein = Klein()

    def __init__(
        self,
        guard: Guard,
        sse: HTTPSSEFront,
        streamable: StreamableFront,
        status: StatusPages,
        discovery: Discovery,
        clock: IReactorTime,
        stall_timeout: float,
        *,
        rate: Rate,
        refusals: Counter[str],
        tells_requests: bool = True,
    ) -> None:
        self._guard = guard
        self._rate = rate
        self._refusals = refusals
        self._sse = sse
        self._streamable = streamable
        self._status = status
        self._discovery = discovery
        self._clock = clock
        self._stall_timeout = stall_timeout
        self._tells_requests = tells_requests
        self._listener: _Site | LeanFactory | None = None
        self._plain: dict[tuple[str, str], Handler] = {
            ("GET", "/mcp"): streamable.listen,
            ("POST", "/mcp"): streamable.post,
            ("DELETE", "/mcp"): streamable.delete,
            ("GET", "/mcp/sse"): self._open_stream,
            ("POST", "/mcp/sse"): streamable.post,
            ("DELETE", "/mcp/sse"): streamable.delete,
        }

    def find(self, method: str, path: str) -> Handler | None:
        """The handler of a plain request for an MCP route; None for any other, which is Klein's."""
        handler = self._plain.get((method, path))
        if handler is None and method == "POST" and path.startswith(_MESSAGES):
            token = path[len(_MESSAGES) :]
            if _PLAIN.fullmatch(token):
                return partial(self._take_message, token)
        return handler

    def answer(self, taken: ClientRequest, handler: Handler) -> None:
        """Answer a request, now or later."""
        try:
            self._guard.admit(taken)
            self._guard.check_key(taken)
            self._rate.admit(taken)
            handler(taken)
        except ProxyError as error:
            count(self._refusals, error)
            taken.stream.fail(error)
        except Exception:
            log.failure("{method} {path} failed", method=taken.method, path=_route_of(taken.path))
            taken.stream.fail(ProxyError("The proxy failed; its log says why."))

    def _serve(self, request: IRequest, handler: Handler) -> Deferred[None]:
        """Answer a request. The Deferred fires when that is done; the work itself is not the route's to cancel."""
        taken = WebRequest(request, self._clock, self._stall_timeout, self.refused)
        self.answer(taken, handler)
        return taken.stream.done()

    @klein.route("/mcp", methods=["GET"])
    def listen(self, request: IRequest) -> Deferred[None]:
        """The stream of a Streamable HTTP client for what belongs to none of its requests."""
        return self._serve(request, self._streamable.listen)

    @klein.route("/mcp", methods=["POST"])
    @klein.route("/mcp/sse", methods=["POST"])
    def post(self, request: IRequest) -> Deferred[None]:
        """A message of a Streamable HTTP client; Cursor posts to the URL of the stream before it opens that."""
        return self._serve(request, self._streamable.post)

    @klein.route("/mcp", methods=["DELETE"])
    @klein.route("/mcp/sse", methods=["DELETE"])
    def delete(self, request: IRequest) -> Deferred[None]:
        """A Streamable HTTP client ends its session."""
        return self._serve(request, self._streamable.delete)

    @klein.route("/mcp/sse", methods=["GET"])
    def stream(self, request: IRequest) -> Deferred[None]:
        """The stream of an HTTP+SSE client, or of a Streamable HTTP client that was given this URL."""
        return self._serve(request, self._open_stream)

    @klein.route("/mcp/messages/<path:token>", methods=["POST"])
    def message(self, request: IRequest, token: str) -> Deferred[None]:
        """A message of an HTTP+SSE client."""
        return self._serve(request, partial(self._take_message, token))

    @klein.route("/.well-known/<path:page>", methods=["GET"])
    def well_known(self, request: IRequest, page: str) -> Deferred[None]:
        """Where does a client get a token?"""
        return self._serve(request, self._discovery.get)

    @klein.route("/health", methods=["GET"])
    def health(self, request: IRequest) -> Deferred[None]:
        """Is the proxy alive, and how is the backend?"""
        return self._serve(request, self._status.health)

    @klein.route("/ready", methods=["GET"])
    def ready(self, request: IRequest) -> Deferred[None]:
        """Can new clients be served?"""
        return self._serve(request, self._status.ready)

    @klein.route("/metrics", methods=["GET"])
    def metrics(self, request: IRequest) -> Deferred[None]:
        """What was counted?"""
        return self._serve(request, self._status.metrics)

    @klein.route("/", methods=["GET"])
    def index(self, request: IRequest) -> Deferred[None]:
        """What is this?"""
        return self._serve(request, self._status.index)

    @klein.handle_errors(HTTPException)
    def no_route(self, request: IRequest, failure: Failure) -> bytes:
        """Routing failed: no such path, or not with this method. Klein ends the answer."""
        taken = WebRequest(request, self._clock, self._stall_timeout, self.refused)
        try:
            self._guard.admit(taken)
            if isinstance(failure.value, MethodNotAllowed):
                if (preflight := self._guard.preflight(taken)) is not None:
                    return taken.web_stream.allow(preflight)
                allowed = ", ".join(sorted(failure.value.valid_methods or ()))
                refused = MethodRefused(f"{_shown(taken.method)} is not allowed here; use {allowed}.")
                count(self._refusals, refused)
                return taken.web_stream.refuse(refused, ((b"allow", allowed.encode()),))
            raise NoSuchPath()
        except ProxyError as error:
            count(self._refusals, error)
            return taken.web_stream.refuse(error)

    def _open_stream(self, taken: ClientRequest) -> None:
        front = self._streamable.listen if taken.header(SESSION_HEADER) else self._sse.open_stream
        front(taken)

    def _take_message(self, token: str, taken: ClientRequest) -> None:
        self._sse.post(taken, token)

    # -- what a port serves ------------------------------------------------------------------------------------

    def listener(self, stack: str, reactor: Any, max_body_bytes: int, max_connections: int = 0) -> IProtocolFactory:
        """What a port can serve: HTTP by the lean path, or all of it by Klein and twisted.web.

        :param max_connections: more clients are refused; 0 is no limit.
        """
        requests = type("_Request", (LimitedRequest,), {"max_body_bytes": max_body_bytes})
        site = _Site(self, requestFactory=requests, reactor=reactor)
        listener = site if stack == "klein" else LeanFactory(self, site, reactor, max_body_bytes, self._stall_timeout)
        listener.max_connections = max_connections
        self._listener = listener
        return cast(IProtocolFactory, listener)

    def hang_up(self) -> bool:
        """Close the connections on which no answer is awaited, without cutting off what clients have yet to take.

        Tells whether there is none any more.
        """
        return self._listener is None or self._listener.hang_up()

    def refused(self, error: ProxyError) -> None:
        """What is no request, or not a whole one, has been refused; or a client has been dropped."""
        count(self._refusals, error)
        log.debug("refused: {reason}", reason=error.reason)

    def told(self, method: str, path: str, status: int) -> None:
        """A request has been answered; the log is told no session that is in its path."""
        if self._tells_requests:
            log.debug("{method} {path} {status}", method=_shown(method), path=_route_of(path), status=status)


class _Site(Site):
    """A site that logs no path with a session in it, and shows no traceback."""

    noisy = False
    max_connections = 0
    displayTracebacks = False
    protocol = TrackedChannel  # type: ignore[assignment]

    def __init__(self, app: App, **options: Any) -> None:
        super().__init__(app.klein.resource(), **options)
        self._app = app
        self.channels: set[TrackedChannel] = set()

    def joined(self, channel: TrackedChannel) -> None:
        """A client has connected; nobody is let in where there is no room."""
        self.channels.add(channel)
        if 0 < self.max_connections < len(self.channels):
            self._app.refused(TooManyConnections())
            channel.loseConnection()

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS, whatever else is installed."""
        return [b"http/1.1"]

    def hang_up(self) -> bool:
        """The same as that of the lean path (:class:`~mcp_proxy.frontend.lean.LeanFactory`)."""
        for channel in list(self.channels):
            channel.hang_up()
        return not self.channels

    def log(self, request: Any) -> None:
        """A request has been answered."""
        method, path = request.method.decode("ascii", "replace"), request.path.decode("ascii", "replace")
        self._app.told(method, path, request.code)


def _route_of(path: str) -> str:
    """A path without the session in it."""
    return path[: path.rfind("/") + 1] + "..." if path.startswith(_MESSAGES) else path


def _shown(method: Any) -> str:
    return "".join(char for char in str(method)[:20] if char.isprintable())
