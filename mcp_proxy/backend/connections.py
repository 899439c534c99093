"""The connections to a backend without TLS, and the requests on them.

A request takes an idle connection if there is one. Should that one turn out to be closed, so that the request has
provably not arrived, it is sent on a fresh one. Anything else fails, and the caller is told that it may have arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed, describe
from mcp_proxy.backend.lean import Asked, Connection
from mcp_proxy.backend.request import BackendRequest, ICancellable, nothing
from mcp_proxy.backend.response import Response
from mcp_proxy.backend.target import Target, endpoint_to
from mcp_proxy.timers import Timers
from mcp_proxy.turn import Turn
from mcp_proxy.wire.headers import Headers, once

log = Logger()

_SET_COOKIE = b"set-cookie"

#: How many connections may be idle, and for how many seconds; uvicorn closes them after 5 s.
MAX_IDLE = 512
IDLE_TIMEOUT = 4.0
#: For how many seconds it is sure that a backend will not close a connection because it is idle.
FRESH = 1.0
#: For how many seconds after its last answer nobody looks whether a connection lives: its end would have to be on the
#: way this very moment.
BUSY = 0.005


class _Making(Factory):
    """Makes the protocols of a pool."""

    noisy = False

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def buildProtocol(self, addr: object) -> Connection:  # type: ignore[override]  # it is no Protocol, but IProtocol
        """A connection is about to be made."""
        return Connection(self._pool)


class Pool:
    """The connections to one backend.

    :param endpoint: makes a connection.
    :param broke: called when one has ended in the middle of something.
    """

    def __init__(self, reactor: IReactorTime, endpoint: IStreamClientEndpoint, broke: Callable[[], None]) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._broke = broke
        self._idle: list[Connection] = []
        self._timers = Timers(reactor)
        self.turn = Turn(reactor)
        self._factory = _Making(self)

    def take(self, max_idle: float) -> Connection | None:
        """An idle connection that nothing speaks against."""
        while self._idle:
            idle = self._reactor.seconds() - self._idle[-1].idle_since
            if idle > max_idle:
                break
            connection = self._idle.pop()
            if idle < BUSY or connection.is_alive:
                return connection
            connection.abort()
        return None

    def connect(self) -> Deferred[Any]:
        """A fresh connection."""
        return self._endpoint.connect(self._factory)

    def freed(self, connection: Connection) -> None:
        """It can serve another request."""
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = self._reactor.seconds()
        self._idle.append(connection)
        self._timers.keep("idle", IDLE_TIMEOUT, self._expire)

    def gone(self, connection: Connection) -> None:
        """It is over."""
        if connection in self._idle:
            self._idle.remove(connection)
        if not connection.is_ours:
            self._drop_idle()  # the backend may be dying, one connection after the other
        if connection.is_broken:
            self._broke()

    def _expire(self) -> None:
        """Those that were idle for longest are at the front."""
        now = self._reactor.seconds()
        while self._idle and now - self._idle[0].idle_since >= IDLE_TIMEOUT:
            self._idle.pop(0).close()
        if self._idle:
            self._timers.set("idle", IDLE_TIMEOUT - (now - self._idle[0].idle_since), self._expire)

    def close(self) -> None:
        """Close what is idle."""
        self._timers.cancel_all()
        self._drop_idle()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class _Errand(Asked):
    """A request on its way: on an idle connection if there is one, else, or if it has not arrived, on a fresh one."""

    __slots__ = (
        "_connecting",
        "_connection",
        "_is_last",
        "_is_over",
        "_pool",
        "_request",
        "_whose",
    )

    def __init__(self, whose: LeanRequests, pool: Pool, request: BackendRequest, data: bytes) -> None:
        super().__init__(data, request.sending, has_body=request.body is not None)
        self._whose = whose
        self._pool = pool
        self._request: BackendRequest | None = request  # as long as there is no answer
        self._connecting: Deferred[Any] | None = None
        self._connection: Connection | None = None
        self._is_last = self._is_over = False

    def begin(self, max_idle: float) -> None:
        """Go.

        :param max_idle: for how many seconds the connection may have been idle.
        """
        connection = self._pool.take(max_idle)
        if connection is None:
            self._connect()
        else:
            self._connection = connection
            connection.ask(self)

    def cancel(self) -> None:
        """Want no answer any more; nothing is told."""
        self._is_over = True
        connecting, connection = self._connecting, self._connection
        self._connecting = self._connection = None
        if connecting is not None:
            connecting.cancel()
        elif connection is not None:
            connection.abort()

    def _connect(self) -> None:
        self._is_last = True
        self._connecting = self._pool.connect()
        self._connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, connection: Connection) -> None:
        self._connecting = None
        if self._is_over:
            connection.abort()
            return
        self._connection = connection
        connection.ask(self)

    def _not_connected(self, failure: Failure) -> None:
        error = RequestFailed(describe(failure), sent=False)
        error.__cause__ = failure.value
        self._connecting = None
        self._fail(error)

    # -- from the connection -----------------------------------------------------------------------------------

    def answered(self, answer: Response) -> None:
        """The head of the answer has come."""
        self._connection = None
        self._is_over = True
        request, self._request = self._request, None
        self.data, self.sending = b"", nothing  # an answer may last, and needs none of it
        if request is None:
            return
        try:
            cookies = once(answer.headers, _cookies)
            if cookies:
                self._whose.keep(request.url, cookies)
            request.answered(answer)
        except Exception:
            log.failure("an answer of the backend's could not be handled")

    def failed(self, error: RequestFailed) -> None:
        """There is none."""
        self._connection = None
        if error.sent or self._is_last:
            self._fail(error)
        elif not self._is_over:
            self._connect()

    def _fail(self, error: RequestFailed) -> None:
        if not self._is_over and self._request is not None:
            self._is_over = True
            self._request.failed(error)


@lru_cache(maxsize=1024)
def _where(url: str) -> tuple[bytes, bytes]:
    """The host and the path of a URL, as a request names them."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.netloc.encode("ascii"), path.encode("ascii")


def request_head(method: str, url: str, headers: Headers) -> bytes:
    """A request as it goes over the network, up to what depends on its body.

    :raises ValueError: a header would be more than one.
    """
    host, path = _where(url)
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), path), b"Host: " + host]
    lines += [b"%b: %b" % header for header in headers if header[0].lower() != b"accept-encoding"]
    lines.append(b"Accept-Encoding: identity\r\n")  # a compressed event stream is a late one
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise ValueError("a header has a line break in it")
    return head


class LeanConnections:
    """The connections to the backend.

    :param reactor: makes connections (TCP, names) and keeps time.
    :param connect_timeout: seconds until a connection attempt is given up.
    :param broke: called when a connection has ended in the middle of something.
    """

    def __init__(self, reactor: Any, target: Target, connect_timeout: float, broke: Callable[[], None]) -> None:
        self._pool = Pool(reactor, endpoint_to(reactor, target.host, target.port, connect_timeout), broke)

    def requests(self) -> LeanRequests:
        """Requests of one session: cookies of the backend's stay within it."""
        return LeanRequests(self._pool)

    def close(self) -> Deferred[None]:
        """Close the idle connections."""
        self._pool.close()
        return succeed(None)


class LeanRequests:
    """Requests of one session."""

    __slots__ = ("_head", "_jar", "_last", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._jar: IndexableCookieJar | None = None
        self._last: tuple[str, str, Headers] | None = None
        self._head = b""

    def ask(self, request: BackendRequest, headers: Headers) -> ICancellable | None:
        """See :meth:`IRequests.ask`; a connection that was idle for a moment only is as good as a fresh one."""
        if self._jar is not None:
            headers = self._with_cookies(self._jar, request.url, headers)
        try:
            head = self._head_of(request.method, request.url, headers)
        except ValueError as error:
            request.failed(RequestFailed(str(error), sent=False))
            return None
        body = request.body
        data = head + b"\r\n" if body is None else b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        errand = _Errand(self, self._pool, request, data)
        errand.begin(IDLE_TIMEOUT if request.reuse else FRESH)
        return errand

    def _head_of(self, method: str, url: str, headers: Headers) -> bytes:
        """The head of a request, which is often that of the one before."""
        last = (method, url, headers)
        if last != self._last:
            self._head, self._last = request_head(method, url, headers), last
        return self._head

    def keep(self, url: str, cookies: list[bytes]) -> None:
        """Cookies have come."""
        self._jar = self._jar or IndexableCookieJar()
        self._jar.extract_cookies(_Told(cookies), Request(url))  # type: ignore[arg-type]

    @staticmethod
    def _with_cookies(jar: IndexableCookieJar, url: str, headers: Headers) -> Headers:
        request = Request(url)
        jar.add_cookie_header(request)
        cookies = request.get_header("Cookie")
        if not cookies:
            return headers
        own = b"; ".join(value for name, value in headers if name.lower() == b"cookie")
        others = tuple(header for header in headers if header[0].lower() != b"cookie")
        return (*others, (b"Cookie", b"; ".join(filter(None, (own, cookies.encode("latin-1"))))))


def _cookies(headers: Headers) -> list[bytes]:
    return [value for name, value in headers if name == _SET_COOKIE]


class _Told:
    """An answer as a jar reads it."""

    def __init__(self, cookies: list[bytes]) -> None:
        self._message = Message()
        for cookie in cookies:
            self._message["Set-Cookie"] = cookie.decode("latin-1")

    def info(self) -> Message:
        return self._message
