"""What operators and their machines ask: ``/health``, ``/ready``, ``/metrics`` and ``/``."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from mcp_proxy import __version__
from mcp_proxy.frontend.guard import AdminGuard
from mcp_proxy.frontend.stream import ClientRequest
from mcp_proxy.session.registry import Registry


class IHealth(Protocol):
    """What is known of the backend's health."""

    @property
    def is_healthy(self) -> bool:
        """Whether requests can be expected to reach it."""

    def describe(self) -> dict[str, Any]:
        """For the page."""


class IMetrics(Protocol):
    """What was counted."""

    content_type: str

    def render(self) -> bytes:
        """All of it, as text."""


class StatusPages:
    """The pages.

    :param pool: the sessions that serve clients which know of none.
    :param backend_url: as it may be shown, without credentials.
    :param admin: who may see more than how it is.
    :param refusals: how many requests were refused, by reason.
    """

    def __init__(
        self,
        registry: Registry,
        pool: Sized,
        health: IHealth,
        clock: IReactorTime,
        backend_url: str,
        metrics: IMetrics,
        admin: AdminGuard,
        refusals: Mapping[str, int],
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._health = health
        self._clock = clock
        self._backend_url = backend_url
        self._metrics = metrics
        self._admin = admin
        self._refusals = refusals
        self._started = clock.seconds()
        self.is_stopping = False

    def health(self, request: ClientRequest) -> None:
        """The proxy lives, whatever the backend does; a restarted proxy would cost every client its session."""
        _answer(
            request,
            200,
            {
                "status": "ok" if self._health.is_healthy else "degraded",
                "proxy": {
                    "healthy": True,
                    "version": __version__,
                    "active_connections": self._registry.connected,
                    "sessions": len(self._registry),
                    "pooled_sessions": len(self._pool),
                    "refusals": dict(self._refusals),
                    "uptime_seconds": round(self._clock.seconds() - self._started, 1),
                },
                "backend": {"url": self._backend_url, **self._health.describe()},
            },
        )

    def ready(self, request: ClientRequest) -> None:
        """Whether a new client would find the backend."""
        is_ready = self._health.is_healthy and not self.is_stopping
        reason = "" if is_ready else "shutting down" if self.is_stopping else "Backend unavailable"
        _answer(request, 200 if is_ready else 503, {"ready": is_ready, **({"reason": reason} if reason else {})})

    def metrics(self, request: ClientRequest) -> None:
        """What was counted, for Prometheus.

        :raises ProxyError: this is not for whoever asks.
        """
        self._admin.admit(request)
        kind = self._metrics.content_type.encode()
        headers = ((b"content-type", kind), (b"cache-control", b"no-store"))
        request.stream.respond(200, self._metrics.render(), headers)

    def index(self, request: ClientRequest) -> None:
        """What this is."""
        _answer(
            request,
            200,
            {
                "name": "mcp-proxy",
                "version": __version__,
                "description": "Keeps MCP clients connected while the MCP server behind it restarts.",
                "endpoints": {
                    "mcp": "POST, GET, DELETE /mcp",
                    "sse": "GET /mcp/sse",
                    "messages": "POST /mcp/messages/{session}",
                    "health": "GET /health",
                    "ready": "GET /ready",
                    "metrics": "GET /metrics",
                },
            },
        )


def _answer(request: ClientRequest, status: int, value: dict[str, Any]) -> None:
    headers = ((b"cache-control", b"no-store"),)
    request.stream.respond_json(status, msgspec.json.encode(value) + b"\n", headers)
