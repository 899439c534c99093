"""How much is admitted: requests of one credential, and event streams in all; and a count of what was refused."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from attrs import define, field, frozen
from twisted.internet.interfaces import IReactorTime

from mcp_proxy.frontend.guard import FOR_OPERATORS
from mcp_proxy.frontend.stream import ClientRequest
from mcp_proxy.wire.errors import ProxyError, TooManyRequests, TooManyStreams
from mcp_proxy.wire.headers import CREDENTIALS

#: How many credentials are kept in mind; of more, whoever has asked longest ago counts as new.
MAX_KNOWN = 10_000
_CREDENTIALS = tuple(CREDENTIALS)


@define
class _Bucket:
    """How many requests may come at once, as of a moment."""

    left: float
    at: float


@frozen
class Rate:
    """How often one credential may ask (a token bucket for each). Clients without one count by their address.

    :ivar per_second: requests a second; 0 is no limit.
    :ivar burst: how many may come at once.
    """

    clock: IReactorTime
    per_second: float = 0.0
    burst: int = 100
    _known: OrderedDict[int, _Bucket] = field(init=False, factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._known)

    def admit(self, request: ClientRequest) -> None:
        """Let a request pass.

        :raises TooManyRequests: there were too many before it; it tells when there is room.
        """
        if not self.per_second or request.path in FOR_OPERATORS:
            return
        shown = tuple(map(request.header, _CREDENTIALS))
        # a hash, for a secret is not kept longer than needed; Python's is keyed
        key = hash(shown if any(shown) else request.peer)
        now = self.clock.seconds()
        bucket = self._known.get(key)
        if bucket is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.popitem(last=False)
            bucket = self._known[key] = _Bucket(self.burst, now)
        else:
            self._known.move_to_end(key)
            bucket.left = min(self.burst, bucket.left + (now - bucket.at) * self.per_second)
            bucket.at = now
        if bucket.left < 1:
            wait = (1 - bucket.left) / self.per_second
            raise TooManyRequests(retryAfterMs=max(1, round(wait * 1000)))
        bucket.left -= 1


@define
class Streams:
    """How many event streams clients may open; what a reply becomes is bounded by its session.

    :ivar limit: 0 is no limit.
    :ivar count: how many there are.
    """

    limit: int = 0
    count: Callable[[], int] = lambda: 0

    def admit(self) -> None:
        """Let another one be opened.

        :raises TooManyStreams: there is no room.
        """
        if self.limit and self.count() >= self.limit:
            raise TooManyStreams()


def count(refusals: Counter[str], error: ProxyError) -> None:
    """A request was refused: once more for this reason."""
    refusals[error.reason] += 1
