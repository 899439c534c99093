"""Whether the backend is well: from live traffic, the shared view, and a page that is asked for now and then."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mcp_proxy.backend.backend import STRIKES, Backend
from mcp_proxy.backend.http import BackendClient, RequestFailed, Response
from mcp_proxy.wire.headers import Headers


class Health:
    """What is known of the backend's health. Three bad answers in a row make it unhealthy, one good one healthy.

    :param url: the backend's health page. Any answer below 500 is a good one: a backend without such a page
        answers 404, a dead one nothing.
    :param timeout: seconds until no answer is a bad one.
    """

    def __init__(
        self,
        backend: Backend,
        client: BackendClient,
        clock: IReactorTime,
        url: str,
        headers: Headers,
        timeout: float,
    ) -> None:
        self._backend = backend
        self._client = client
        self._clock = clock
        self._url = url
        self._headers = (*headers, (b"Accept", b"application/json, */*"))
        self._timeout = timeout
        self._strikes = 0
        self._checked: float | None = None
        self._status: int | None = None
        self._problem = "not checked yet"

    @property
    def is_healthy(self) -> bool:
        """Whether requests can be expected to reach it."""
        if self._backend.is_down or self._strikes >= STRIKES:
            return False
        return self._status is not None or self._backend.links > 0

    def check(self) -> Deferred[None]:
        """Ask for the page once; never fails."""
        asked = self._client.open("GET", self._url, self._headers)
        deadline = self._clock.callLater(self._timeout, asked.cancel)

        def over(result: object) -> None:
            if deadline.active():
                deadline.cancel()
            self._checked = self._clock.seconds()
            if isinstance(result, Failure):
                self._problem = "the check failed"

        return asked.addCallbacks(self._answered, self._unanswered).addBoth(over)

    def _answered(self, response: Response) -> None:
        response.abort()
        self._status = response.status
        if response.status < 500:
            self._strikes, self._problem = 0, ""
        else:
            self._strikes += 1
            self._problem = f"its health page answers {response.status}"

    def _unanswered(self, failure: Failure) -> None:
        error = RequestFailed.trapped(failure)
        self._strikes += 1
        self._problem = error.reason
        if not error.sent and self._backend.links == 0:
            self._status = None  # a dead port needs no three strikes

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
