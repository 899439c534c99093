"""What was counted and what is so now, as Prometheus reads it.

What happens often is counted in plain numbers; prometheus-client makes text of them when somebody asks, and then the
sessions are looked at as well.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mcp_proxy import __version__
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.meter import Meter
from mcp_proxy.wire import revisions
from mcp_proxy.wire.errors import (
    BackendRefused,
    BackendUnavailable,
    EventTooLarge,
    NotRestorable,
    OutcomeUnknown,
    Overloaded,
    ProxyError,
)

PREFIX = "mcp_proxy_"
#: What a method is called that is none of the protocol's: clients shall not decide how much there is to keep.
OTHER = "other"
_METHODS = {method: method for method in revisions.METHODS}
#: What an error of ours is called.
OUTCOMES: Mapping[type[ProxyError], str] = {
    ProxyError: "failed",
    BackendUnavailable: "not_delivered",
    OutcomeUnknown: "unknown",
    NotRestorable: "not_restorable",
    Overloaded: "overloaded",
    BackendRefused: "refused",
}
#: What is told from the start, as 0: an alert on an increase misses the first of a kind otherwise.
_RARE = {
    (revisions.CALL_TOOL, outcome, delivery): 0
    for outcome, delivery in (
        ("not_delivered", "no"),
        ("overloaded", "no"),
        ("not_restorable", "no"),
        ("unknown", "maybe"),
        ("unknown", "yes"),
    )
}
#: Upper bounds, in seconds.
ADDED = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
ANSWERED = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
HELD = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0)
AWAY = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


class Histogram:
    """How many values are in which range.

    :param bounds: the upper bounds of the ranges, but for the last, which has none.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Iterable[str] = ()) -> None:
        """Say what there is."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), float(total)))
        family.add_metric([*labels], buckets, self._sum)


class Tally(Meter):
    """Counts what happens."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.refusals: Counter[str] = Counter()  # counted by the fronts as well
        self.answer_times: dict[str, Histogram] = {}
        self.added_times = Histogram(ADDED)
        self.hold_times = Histogram(HELD)
        self.outage_times = Histogram(AWAY)
        self.relayed_events = self.replayed_events = self.stalls = self.handshakes = self.attempts = 0

    def began(self, exchange: Exchange, session: str) -> None:
        """A request of a client's has arrived, which counts when it is over."""

    def answered_here(self, exchange: Exchange) -> None:
        """We have answered a request of a client's in the backend's place."""
        self.ended(exchange, "own", exchange.delivery.value)

    def answered(self, exchange: Exchange, received: float, done: float, *, is_error: bool) -> None:
        """The backend answered a request of a client's."""
        method = self.method_of(exchange)
        self.ended(exchange, "error" if is_error else "result", "yes")
        times = self.answer_times.get(method)
        if times is None:
            times = self.answer_times[method] = Histogram(ANSWERED)
        times.observe(done - exchange.arrived)
        if exchange.held_since is None and exchange.sent_at:
            self.added_times.observe(exchange.sent_at - exchange.arrived + done - received)

    def refused(self, exchange: Exchange) -> None:
        """The backend refused a request by HTTP, and the client was shown that."""
        self.ended(exchange, "refused", exchange.delivery.value)

    def failed(self, exchange: Exchange, error: ProxyError) -> None:
        """A request was answered by us, with an error."""
        outcome = next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES)
        self.ended(exchange, outcome, exchange.delivery.value)
        if isinstance(error, (Overloaded, EventTooLarge)):
            self.limited(error)

    def cancelled(self, exchange: Exchange) -> None:
        """The client wants no answer any more."""
        self.ended(exchange, "cancelled", exchange.delivery.value)

    def ended(self, exchange: Exchange, outcome: str, delivery: str) -> None:
        """A request is over, in one way or another."""
        self.requests[self.method_of(exchange), outcome, delivery] += 1

    @staticmethod
    def method_of(exchange: Exchange) -> str:
        """What its method is called here."""
        return _METHODS.get(exchange.message.method, OTHER)

    def limited(self, error: ProxyError) -> None:
        """A limit was reached."""
        self.refusals[error.reason] += 1

    def held(self, seconds: float) -> None:
        """A message was held for so long."""
        self.hold_times.observe(seconds)

    def relayed(self) -> None:
        """A notification or a request of the backend's was passed on to a client."""
        self.relayed_events += 1

    def replayed(self, events: int) -> None:
        """A client that came back was sent events that it had missed."""
        self.replayed_events += events

    def stalled(self) -> None:
        """A client does not keep up with what it is sent."""
        self.stalls += 1

    def restored(self) -> None:
        """A handshake was replayed."""
        self.handshakes += 1

    def attempted(self) -> None:
        """A lost backend is tried."""
        self.attempts += 1

    def outage_over(self, seconds: float) -> None:
        """The backend is back after so long."""
        self.outage_times.observe(seconds)


class ISession(Protocol):
    """A session."""

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""

    @property
    def held(self) -> int:
        """How many messages wait for a link."""

    @property
    def in_flight(self) -> int:
        """How many requests wait for the backend's answer."""


class IRegistry(Protocol):
    """All sessions; the length is the number of those that clients know of."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ISession]: ...


class IBackend(Protocol):
    """The view of the backend that all sessions share."""

    outages: int

    @property
    def outage(self) -> float:
        """For how many seconds it has been away."""

    @property
    def links(self) -> int:
        """How many sessions have a live link."""


class IHealth(Protocol):
    """What is known of the backend's health."""

    @property
    def is_healthy(self) -> bool:
        """Whether requests can be expected to reach it."""


class IFront(Protocol):
    """What clients of one transport talk to."""

    @property
    def open_streams(self) -> int:
        """How many event streams they have open."""


class Metrics(Collector):
    """All that Prometheus is told.

    :param pool: the sessions that serve clients which know of none.
    :param fronts: by the name of their transport.
    :param max_sessions: how many sessions of either kind there may be.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self,
        tally: Tally,
        registry: IRegistry,
        pool: Sized,
        backend: IBackend,
        health: IHealth,
        fronts: Mapping[str, IFront],
        max_sessions: int,
    ) -> None:
        self._tally = tally
        self._registry = registry
        self._pool = pool
        self._backend = backend
        self._health = health
        self._fronts = fronts
        self._max_sessions = max_sessions
        self._collectors = CollectorRegistry()
        self._collectors.register(self)
        ProcessCollector(registry=self._collectors)

    def render(self) -> bytes:
        """All of it, as text."""
        return generate_latest(self._collectors)

    def collect(self) -> Iterator[Metric]:
        """All of ours, for the library."""
        yield _gauge("build_info", "What runs.", {(__version__,): 1}, ("version",))
        yield from self._sessions()
        yield from self._requests()
        yield from self._events()
        yield from self._outages()

    def _sessions(self) -> Iterator[Metric]:
        sessions = list(self._registry)
        phases = Counter({(phase.value,): 0 for phase in Phase})
        phases.update((session.phase.value,) for session in sessions)
        streams = {(name,): front.open_streams for name, front in self._fronts.items()}
        yield _gauge("sessions", "Sessions that clients know of.", {(): len(self._registry)})
        text = "Sessions at a backend of an older revision, for clients of revision 2026-07-28."
        yield _gauge("pooled_sessions", text, {(): len(self._pool)})
        yield _gauge("sessions_max", "How many of either there may be (MAX_SESSIONS).", {(): self._max_sessions})
        yield _gauge(
            "session_phases",
            "Sessions by the phase of their life; with those that serve single requests of revision 2026-07-28.",
            phases,
            ("phase",),
        )
        yield _gauge("streams", "Event streams that clients have open.", streams, ("transport",))
        yield _gauge("held", "Messages that wait for a link.", {(): sum(session.held for session in sessions)})
        in_flight = sum(session.in_flight for session in sessions)
        yield _gauge("in_flight", "Requests that wait for the backend's answer.", {(): in_flight})

    def _requests(self) -> Iterator[Metric]:
        tally = self._tally
        text = "Requests of clients that are over: what became of them, and whether they were delivered."
        yield _counter("requests", text, _RARE | tally.requests, ("method", "outcome", "delivery"))
        text = "Requests refused before they belonged to a session, or by a limit."
        refusals = {(reason,): count for reason, count in tally.refusals.items()}
        yield _counter("refusals", text, refusals, ("reason",))
        text = "From a request to its answer, the backend's time and that of a hold included."
        answers = HistogramMetricFamily(PREFIX + "request_seconds", text, labels=("method",))
        for method, times in tally.answer_times.items():
            times.add_to(answers, (method,))
        yield answers
        yield _histogram("added_seconds", "What an answered request that was not held spent here.", tally.added_times)
        yield _histogram("hold_seconds", "For how long messages were held.", tally.hold_times)

    def _events(self) -> Iterator[Metric]:
        tally = self._tally
        text = "Notifications and requests of the backend's that were passed on to clients."
        yield _counter("events_relayed", text, {(): tally.relayed_events})
        text = "Events sent again, or late, to clients that came back."
        yield _counter("events_replayed", text, {(): tally.replayed_events})
        yield _counter("client_stalls", "Times that a client did not keep up.", {(): tally.stalls})

    def _outages(self) -> Iterator[Metric]:
        tally, backend = self._tally, self._backend
        yield _gauge("backend_healthy", "Whether requests can reach the backend.", {(): int(self._health.is_healthy)})
        yield _gauge("backend_links", "Sessions with a live link to the backend.", {(): backend.links})
        yield _counter("outages", "Outages of the backend that have begun.", {(): backend.outages})
        yield _histogram("outage_seconds", "How long outages were that are over.", tally.outage_times)
        yield _gauge("current_outage_seconds", "For how long the backend has been away.", {(): backend.outage})
        yield _counter("reconnect_attempts", "Attempts to reach a lost backend.", {(): tally.attempts})
        yield _counter("handshakes_replayed", "Sessions restored at another backend.", {(): tally.handshakes})


_Values = Mapping[tuple[()], float] | Mapping[tuple[str], float] | Mapping[tuple[str, str, str], float]


def _gauge(name: str, text: str, values: _Values, labels: tuple[str, ...] = ()) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([*key], value)
    return family


def _counter(name: str, text: str, values: _Values, labels: tuple[str, ...] = ()) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([*key], value)
    return family


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=())
    values.add_to(family)
    return family
