"""Compose the program, start it in order, stop it in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy import metrics
from mcp_proxy.backend.auto import Detection, Transport
from mcp_proxy.backend.backend import Backend
from mcp_proxy.backend.health import Health
from mcp_proxy.backend.http import BackendHTTP
from mcp_proxy.backend.http_sse import HTTPSSELink
from mcp_proxy.backend.modern import ModernLink
from mcp_proxy.backend.port import Port
from mcp_proxy.backend.streamable import StreamableLink
from mcp_proxy.backend.target import Target
from mcp_proxy.backend.trust import BadFile, Trust
from mcp_proxy.config import ConfigError, Settings, read_keys
from mcp_proxy.frontend.app import App
from mcp_proxy.frontend.discovery import Discovery
from mcp_proxy.frontend.guard import AdminGuard, Guard
from mcp_proxy.frontend.http_sse import HTTPSSEFront
from mcp_proxy.frontend.limits import Rate, Streams
from mcp_proxy.frontend.modern import ModernFront
from mcp_proxy.frontend.status import StatusPages
from mcp_proxy.frontend.streamable import StreamableFront
from mcp_proxy.session import truth
from mcp_proxy.session.era import Era
from mcp_proxy.session.interfaces import ILinkOwner, IOutlet
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.pool import Pool
from mcp_proxy.session.registry import Registry
from mcp_proxy.session.room import Room
from mcp_proxy.session.session import Session
from mcp_proxy.wire.headers import Headers

log = Logger()

#: How often, in seconds, sessions without a client are looked through.
EXPIRY_INTERVAL = 5.0
#: How often, in seconds, it is looked whether requests in flight were answered when the program stops.
DRAIN_STEP = 0.1
#: For how many seconds at least clients may still take their last answers, and how often, in seconds, it is looked; and
#: for how many when there is no time.
LAST_WORDS = 5.0
LAST_STEP = 0.02
HASTE = 0.5
#: How far a delay is spread, as a part of itself.
JITTER = 0.2


def make_service(settings: Settings, reactor: Any, max_connections: int = 0) -> ProxyService:
    """Build the whole program for these settings; nothing is opened before the service starts.

    :param reactor: the only place where everything that needs a reactor gets it from.
    :param max_connections: how many clients may connect; 0 is no limit.
    :raises SystemExit: a file that a setting names cannot be used; the text says why.
    """
    rng = random.Random()
    jitter = partial(_spread, rng)
    tally = _tally()
    target = Target.of(settings.backend_url)
    http = BackendHTTP(reactor, target, settings.connect_timeout, _trust(settings) if target.is_secure else None)
    port = Port(reactor, target, http.client(), settings.backend_health_path, settings.backend_mcp_path,
                settings.connect_timeout)  # fmt: skip

    def make_sse(owner: ILinkOwner, headers: Headers) -> HTTPSSELink:
        return HTTPSSELink(
            owner,
            http.client(),
            reactor,
            target.url + settings.backend_sse_path,
            headers,
            max_event_bytes=settings.max_event_bytes,
            open_timeout=settings.connect_timeout,
        )

    def make_streamable(
        owner: ILinkOwner,
        headers: Headers,
        try_connect: Callable[[], Deferred[None]] = port.try_connect,
        is_away: Callable[[], bool] | None = None,
    ) -> StreamableLink:
        return StreamableLink(
            owner,
            http.client(),
            reactor,
            target.url + settings.backend_mcp_path,
            headers,
            try_connect,
            max_event_bytes=settings.max_event_bytes,
            open_timeout=settings.connect_timeout,
            is_away=is_away,
        )

    def make_modern(owner: ILinkOwner, headers: Headers) -> ModernLink:
        return ModernLink(owner, make_streamable, headers, reactor, settings.connect_timeout)

    def make_stateless(owner: ILinkOwner, headers: Headers) -> StreamableLink:
        return make_streamable(owner, headers, partial(port.discover, headers), is_away)

    def is_away() -> bool:
        return backend.outage > 0

    detection = Detection(
        {Transport.SSE: make_sse, Transport.STREAMABLE: make_streamable, Transport.MODERN: make_modern},
        make_stateless,
        None if settings.backend_transport == "auto" else Transport(settings.backend_transport),
    )

    era = Era(is_fixed=settings.backend_transport == Transport.SSE.value)

    def on_trouble() -> None:
        detection.forget()
        era.forget()

    backend: Backend = Backend(
        reactor,
        port,
        detection.make_link,
        max_attempts=settings.max_reconnect_attempts,
        delay=settings.reconnect_delay,
        jitter=jitter,
        on_trouble=on_trouble,
        meter=tally,
    )
    http.on_broken = backend.connection_broke
    policy = Policy(
        hold_timeout=settings.hold_timeout,
        max_held=settings.hold_max_requests,
        max_held_bytes=settings.hold_max_bytes,
        room=Room(settings.hold_max_total_bytes),
        max_attempts=settings.max_reconnect_attempts,
        reconnect_delay=settings.reconnect_delay,
        handshake_timeout=settings.connect_timeout,
        retry_annotated_tools=settings.retry_tool_calls == "annotated",
        jitter=jitter,
    )

    def make_session(token: str, owner: bytes, headers: Headers, outlet: IOutlet) -> Session:
        return Session(
            token,
            owner,
            headers,
            outlet,
            backend=backend,
            clock=reactor,
            policy=policy,
            forget=registry.forget,
            remember=registry.remember,
            recall=registry.recall,
            meter=tally,
        )

    registry: Registry = Registry(
        make_session, settings.max_sessions, settings.session_idle_timeout, settings.max_sessions_per_credential
    )
    health = Health(backend, port, reactor, settings.connect_timeout)
    room = Streams(settings.max_streams)
    sse = HTTPSSEFront(registry, reactor, room)
    make_pool = partial(
        Pool,
        registry.once,
        reactor,
        policy,
        max_sessions=settings.max_sessions,
        idle_timeout=settings.session_idle_timeout,
    )
    modern = ModernFront(registry, is_away, era, room, make_pool)
    streamable = StreamableFront(registry, modern, room, settings.max_batch)
    fronts: dict[str, IFront] = {"sse": sse, "streamable": streamable, "modern": modern}
    room.count = lambda: sum(front.open_streams for front in fronts.values())
    rate = Rate(reactor, settings.max_request_rate, settings.max_request_burst)
    counted = metrics.Metrics(tally, registry, modern.pool, backend, health, fronts, settings.max_sessions)
    admin = AdminGuard(settings.admin_token)
    status = StatusPages(registry, modern.pool, health, reactor, settings.backend_url_redacted, counted, admin,
                         tally.refusals)  # fmt: skip
    app = App(_guard(settings), sse, streamable, status, Discovery(port.fetch), reactor, settings.stall_timeout,
              rate=rate, refusals=tally.refusals, tells_requests=settings.log_level == "debug")  # fmt: skip
    return ProxyService(settings, reactor, app=app, backend=backend, http=http, health=health, registry=registry,
                        pool=modern.pool, fronts=[*fronts.values()], status=status,
                        max_connections=max_connections)  # fmt: skip


class IFront(metrics.IFront, Protocol):
    """What clients of one transport talk to."""

    def keep_alive(self) -> None:
        """Show every idle client that its stream lives."""


class ProxyService(MultiService):
    """The running program: one listening port, its timers, its sessions."""

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        *,
        app: App,
        backend: Backend,
        http: BackendHTTP,
        health: Health,
        registry: Registry,
        pool: Pool,
        fronts: Sequence[IFront],
        status: StatusPages,
        max_connections: int,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._reactor = reactor
        self._app = app
        self._backend = backend
        self._http = http
        self._health = health
        self._registry = registry
        self._pool = pool
        self._status = status
        self._max_connections = max_connections
        self._port: IListeningPort | None = None
        self._pause: Deferred[None] | None = None
        self._is_hurried = False
        self._loops = (
            *((LoopingCall(front.keep_alive), settings.keepalive_interval) for front in fronts),
            (LoopingCall(self._check_health), settings.health_interval),
            (LoopingCall(self._expire), EXPIRY_INTERVAL),
        )

    @property
    def port(self) -> IListeningPort | None:
        """The open port, once the service has started."""
        return self._port

    def startService(self) -> None:
        """Open the port, then start the timers.

        :raises SystemExit: the port cannot be opened; the text says why.
        """
        super().startService()
        listener = self._app.listener(
            self._settings.http_stack, self._reactor, self._settings.max_body_bytes, self._max_connections
        )
        endpoint = self._settings.endpoint
        listening = serverFromString(self._reactor, endpoint).listen(listener)
        failures: list[Failure] = []
        listening.addCallbacks(self._listening, failures.append)
        if failures:
            raise SystemExit(f"mcp-proxy: cannot listen on {endpoint}: {failures[0].getErrorMessage()}")

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        where = port.getHost()
        log.info("listening on {host}:{port}", host=getattr(where, "host", where), port=getattr(where, "port", ""))
        for loop, interval in self._loops:
            loop.clock = self._reactor
            loop.start(interval).addErrback(self._loop_failed)

    def _check_health(self) -> Deferred[None]:
        return self._health.check()

    def _expire(self) -> None:
        self._registry.expire(self._reactor.seconds())
        self._pool.expire(self._reactor.seconds())

    def _loop_failed(self, failure: Failure) -> None:
        log.failure("a timer failed and has stopped", failure)

    def stopService(self) -> Deferred[None]:
        """Accept nobody any more, answer whoever waits, end every stream, close every connection."""
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        """Wait no longer for requests in flight."""
        log.info("told to stop again, so requests in flight are waited for no longer")
        self._is_hurried = True
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.cancel()

    async def _rest(self, delay: float) -> None:
        self._pause = deferLater(self._reactor, delay)
        with suppress(CancelledError):
            await self._pause

    async def _drain(self, deadline: float) -> None:
        """Let whoever has nothing to wait for go at once, and the others when they are answered, or time is up."""
        registry = self._registry
        idle = set(registry)
        for session in idle:
            session.drain()
        while True:
            # an answer may lead its client to a last question, so it is looked twice
            was_idle, idle = idle, {session for session in registry if session.is_idle}
            for session in idle & was_idle:
                session.farewell()
            if self._is_hurried or not list(registry) or self._reactor.seconds() >= deadline:
                return
            await self._rest(DRAIN_STEP)

    async def _hang_up(self, deadline: float) -> None:
        """Close all connections when clients have taken what they were sent."""
        deadline = max(deadline, self._reactor.seconds() + LAST_WORDS)
        while not self._app.hang_up() and self._reactor.seconds() < deadline:
            if self._is_hurried:
                deadline = min(deadline, self._reactor.seconds() + HASTE)
            await self._rest(LAST_STEP)

    async def _stop(self) -> None:
        log.info("stopping", sessions=len(self._registry))
        self._status.is_stopping = self._registry.is_closing = True
        if self._port is not None:
            await (self._port.stopListening() or succeed(None))
        self._health.stop()
        deadline = self._reactor.seconds() + self._settings.drain_timeout
        await self._drain(deadline)
        for loop, _ in self._loops:
            if loop.running:
                loop.stop()
        self._backend.stop()
        for session in self._registry:
            session.close(truth.STOPPED)
        self._pool.stop()
        farewells = self._http.said_farewell()
        await self._hang_up(deadline)
        await farewells
        await self._http.forget_connections()
        await super().stopService()
        log.info("stopped")


def _tally() -> metrics.Tally:
    """What counts, and makes spans if the extra for that is installed."""
    try:
        from mcp_proxy import tracing
    except ImportError:
        return metrics.Tally()
    return tracing.tally()


def _trust(settings: Settings) -> Trust:
    """How the backend is recognized over TLS, and what it is shown."""
    try:
        return Trust.of(settings.backend_ca_file, settings.backend_client_cert, settings.backend_client_key)
    except BadFile as error:
        raise SystemExit(f"mcp-proxy: {error}") from error


def _spread(rng: random.Random, delay: float) -> float:
    """The delay, a little shorter or longer, so that many proxies do not knock at the same moment."""
    return delay * rng.uniform(1 - JITTER, 1 + JITTER)


def _guard(settings: Settings) -> Guard:
    """What is admitted: on an address of this machine only its own names, unless told otherwise."""
    hosts = settings.allowed_hosts
    if not hosts and (settings.listen or settings.proxy_host not in ("127.0.0.1", "::1", "localhost")):
        hosts = ("*",)
    name = settings.proxy_api_keys_file
    try:
        return Guard(settings.allowed_origins, hosts, read_keys(name) if name else ())
    except ConfigError as error:
        raise SystemExit(f"mcp-proxy: {error}") from error
