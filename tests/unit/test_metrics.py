"""Counting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.metrics import OUTCOMES, Histogram, Metrics, Tally
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.meter import Meter
from mcp_proxy.wire import errors, jsonrpc


def exchange(method: str) -> Exchange:
    """A request."""
    return Exchange(jsonrpc.parse(jsonrpc.request(b"1", method)), (), arrived=10.0)


class Counting(SynchronousTestCase):
    def test_nothing_is_forgotten(self) -> None:
        """Whatever can be told is counted."""
        told = {name for name in vars(Meter) if not name.startswith("_")}
        self.assertEqual(told - set(vars(Tally)), set())

    def test_errors(self) -> None:
        """Each error that a request can be answered with has an outcome, and is one of few."""
        for kind in vars(errors).values():
            if isinstance(kind, type) and issubclass(kind, errors.ProxyError):
                tally = Tally()
                tally.failed(exchange("ping"), kind())
                ((_, outcome, _),) = tally.requests
                self.assertIn(outcome, OUTCOMES.values())
        tally = Tally()
        tally.failed(exchange("ping"), errors.NotDelivered())
        self.assertEqual([*tally.requests], [("ping", "not_delivered", "no")])

    def test_histogram(self) -> None:
        """Each value is in the first range that holds it and in all larger ones, the bounds included."""
        histogram, page = Histogram((1.0, 2.0)), Page()
        for value in (0.5, 1.0, 1.5, 2.0, 7.0):
            histogram.observe(value)
        page.tally.hold_times = histogram
        buckets = [sample.value for sample in page.samples("hold_seconds_bucket")]
        self.assertEqual(buckets, [2, 4, 5])
        self.assertEqual([page.value("hold_seconds_sum"), page.value("hold_seconds_count")], [12, 5])

    def test_added(self) -> None:
        """What was spent here is the time until the request was sent and that from its answer to the client."""
        page = Page()
        sent = exchange("tools/call")
        sent.was_sent(10.25)
        page.tally.answered(sent, 20.0, 20.5, is_error=False)
        self.assertEqual((page.value("added_seconds_sum"), page.value("request_seconds_sum")), (0.75, 10.5))


class Page:
    """The page of a proxy that nothing but the test happens to."""

    def __init__(self) -> None:
        self.tally = Tally()
        backend: Any = SimpleNamespace(outages=0, outage=0.0, links=0)
        registry: Any = []
        health: Any = SimpleNamespace(is_healthy=True)
        self._metrics = Metrics(self.tally, registry, [], backend, health, {}, 1000)

    def samples(self, name: str) -> list[Any]:
        """All samples of that name."""
        families = text_string_to_metric_families(self._metrics.render().decode())
        return [each for family in families for each in family.samples if each.name == f"mcp_proxy_{name}"]

    def value(self, name: str) -> float:
        """The only one."""
        (sample,) = self.samples(name)
        value: float = sample.value
        return value
