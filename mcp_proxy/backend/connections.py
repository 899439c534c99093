"""The connections to a backend without TLS, and the requests on them.

A request takes an idle connection if there is one. Should that one turn out to be closed, so that the request has
provably not arrived, it is sent on a fresh one. Anything else fails, and the caller is told that it may have arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed, describe
from mcp_proxy.backend.lean import Asked, Connection, Incoming
from mcp_proxy.backend.response import Response
from mcp_proxy.backend.target import Target, endpoint_to
from mcp_proxy.timers import Timers
from mcp_proxy.turn import Turn
from mcp_proxy.wire.headers import Headers, once

_SET_COOKIE = b"set-cookie"

#: How many connections may be idle, and for how many seconds; uvicorn closes them after 5 s.
MAX_IDLE = 512
IDLE_TIMEOUT = 4.0
#: For how many seconds it is sure that a backend will not close a connection because it is idle.
FRESH = 1.0
#: For how many seconds after its last answer nobody looks whether a connection lives: its end would have to be on the
#: way this very moment.
BUSY = 0.005


class Pool:
    """The connections to one backend.

    :param endpoint: makes a connection.
    """

    def __init__(self, reactor: IReactorTime, endpoint: IStreamClientEndpoint) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._idle: list[Connection] = []
        self._timers = Timers(reactor)
        self._turn = Turn(reactor)
        self._factory = Factory.forProtocol(self._make)
        self._factory.noisy = False

    def _make(self) -> Connection:
        return Connection(self._freed, self._gone, self._turn)

    def ask(
        self,
        data: bytes,
        sending: Callable[[], None],
        made: Callable[[Incoming], Response],
        *,
        has_body: bool,
        max_idle: float,
    ) -> Deferred[Response]:
        """Send a request; fires with what is made of the head of the answer.

        :param sending: called when it is about to be handed to the network.
        :param max_idle: for how many seconds the connection may have been idle.
        :raises RequestFailed: (by the Deferred) there is no answer.
        """
        return _Errand(self, data, sending, made, has_body).begin(max_idle)

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

    def _freed(self, connection: Connection) -> None:
        if len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = self._reactor.seconds()
        self._idle.append(connection)
        self._timers.keep("idle", IDLE_TIMEOUT, self._expire)

    def _gone(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        if not connection.is_ours:
            self._drop_idle()  # the backend may be dying, one connection after the other

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


class _Errand:
    """A request on its way: on an idle connection if there is one, else, or if it has not arrived, on a fresh one."""

    def __init__(
        self,
        pool: Pool,
        data: bytes,
        sending: Callable[[], None],
        made: Callable[[Incoming], Response],
        has_body: bool,
    ) -> None:
        self._pool = pool
        self._data = data
        self._sending = sending
        self._made = made
        self._has_body = has_body
        self._connecting: Deferred[Any] | None = None
        self._connection: Connection | None = None
        self._done: Deferred[Response] = Deferred(self._cancel)

    def begin(self, max_idle: float) -> Deferred[Response]:
        connection = self._pool.take(max_idle)
        if connection is None:
            self._connect()
        else:
            self._send(connection, is_last=False)
        return self._done

    def _connect(self) -> None:
        self._connecting = self._pool.connect()
        self._connecting.addCallbacks(self._connected, self._failed)

    def _connected(self, connection: Connection) -> None:
        self._connecting = None
        self._send(connection, is_last=True)

    def _send(self, connection: Connection, *, is_last: bool) -> None:
        self._connection = connection
        failed = self._broken if is_last else self._perhaps_again
        connection.ask(Asked(self._data, self._has_body, self._sending, self._answered, failed))

    def _answered(self, answer: Incoming) -> None:
        self._connection = None
        self._done.callback(self._made(answer))

    def _perhaps_again(self, error: RequestFailed) -> None:
        if error.sent:
            self._broken(error)
        else:
            self._connection = None
            self._connect()

    def _broken(self, error: RequestFailed) -> None:
        self._failed(Failure(error))

    def _failed(self, failure: Failure) -> None:
        self._connecting = self._connection = None
        if not self._done.called:
            error = failure.value
            self._done.errback(error if isinstance(error, RequestFailed) else _unsent(failure))

    def _cancel(self, done: Deferred[Response]) -> None:
        done.errback(_unsent(Failure(CancelledError())))  # whatever the attempt to connect makes of its own end
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._connection is not None:
            self._connection.abort()


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
    """

    def __init__(self, reactor: Any, target: Target, connect_timeout: float) -> None:
        self._pool = Pool(reactor, endpoint_to(reactor, target.host, target.port, connect_timeout))

    def requests(self) -> LeanRequests:
        """Requests of one session: cookies of the backend's stay within it."""
        return LeanRequests(self._pool)

    def close(self) -> Deferred[None]:
        """Close the idle connections."""
        self._pool.close()
        return succeed(None)


class LeanRequests:
    """Requests of one session."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._jar: IndexableCookieJar | None = None
        self._last: tuple[str, str, Headers] | None = None
        self._head = b""

    def open(
        self, method: str, url: str, headers: Headers, body: bytes | None, *, reuse: bool, sending: Callable[[], None]
    ) -> Deferred[Response]:
        """See :meth:`BackendClient.open`; a connection that was idle for a moment only is as good as a fresh one."""
        if self._jar is not None:
            headers = self._with_cookies(self._jar, url, headers)
        try:
            head = self._head_of(method, url, headers)
        except ValueError as error:
            return fail(RequestFailed(str(error), sent=False))
        data = head + b"\r\n" if body is None else b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        made = partial(self._answered, url)
        max_idle = IDLE_TIMEOUT if reuse else FRESH
        return self._pool.ask(data, sending, made, has_body=body is not None, max_idle=max_idle)

    def _head_of(self, method: str, url: str, headers: Headers) -> bytes:
        """The head of a request, which is often that of the one before."""
        last = (method, url, headers)
        if last != self._last:
            self._head, self._last = request_head(method, url, headers), last
        return self._head

    def _answered(self, url: str, answer: Incoming) -> Response:
        cookies = once(answer.headers, _cookies)
        if cookies:
            self._jar = self._jar or IndexableCookieJar()
            self._jar.extract_cookies(_Told(cookies), Request(url))  # type: ignore[arg-type]
        return Response(answer.status, answer.headers, answer)

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


def _unsent(failure: Failure) -> RequestFailed:
    error = RequestFailed(describe(failure), sent=False)
    error.__cause__ = failure.value
    return error
