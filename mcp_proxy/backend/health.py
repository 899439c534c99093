"""Whether the backend is well: from live traffic, the shared view, and a page that is asked for now and then."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcp_proxy.backend.backend import STRIKES, Backend
from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.port import Port

log = Logger()


class Health:
    """What is known of the backend's health. Three bad answers in a row make it unhealthy, one good one healthy.

    Any answer below 500 is a good one: a backend without a health page answers 404, a dead one nothing.

    :param port: asks for the page.
    :param timeout: seconds until no answer is a bad one.
    """

    def __init__(self, backend: Backend, port: Port, clock: IReactorTime, timeout: float) -> None:
        self._backend = backend
        self._port = port
        self._clock = clock
        self._timeout = timeout
        self._strikes = 0
        self._checked: float | None = None
        self._status: int | None = None
        self._problem = "not checked yet"
        self._asking: Deferred[Any] | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether requests can be expected to reach it."""
        if self._backend.is_down or self._strikes >= STRIKES:
            return False
        return self._status is not None or self._backend.links > 0

    def check(self) -> Deferred[None]:
        """Ask for the page once; never fails."""
        self._asking = self._port.ask(self._timeout)
        return self._asking.addCallbacks(self._answered, self._unanswered).addErrback(self._failed)

    def stop(self) -> None:
        """Want to know no longer."""
        if self._asking is not None:
            self._asking.cancel()

    def _answered(self, status: int) -> None:
        self._checked = self._clock.seconds()
        self._status = status
        if status < 500:
            self._strikes, self._problem = 0, ""
        else:
            self._strikes += 1
            self._problem = f"its health page answers {status}"

    def _unanswered(self, failure: Failure) -> None:
        self._checked = self._clock.seconds()
        error = RequestFailed.trapped(failure)
        self._strikes += 1
        self._problem = error.reason
        if not error.sent and self._backend.links == 0:
            self._status = None  # a dead port needs no three strikes

    def _failed(self, failure: Failure) -> None:
        log.failure("health could not be checked", failure)
        self._problem = "the check failed"

    def describe(self) -> dict[str, Any]:
        """For the status page; times in ISO 8601."""
        healthy = self.is_healthy
        return {
            "healthy": healthy,
            "last_check": None
            if self._checked is None
            else datetime.fromtimestamp(self._checked, timezone.utc).isoformat(timespec="milliseconds"),
            "problem": None if healthy else self._problem or "it cannot be reached",
            "links": self._backend.links,
            "outages": self._backend.outages,
            "attempts": self._backend.attempts,
            "outage_seconds": round(self._backend.outage, 3),
        }
