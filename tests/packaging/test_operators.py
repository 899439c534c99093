"""What operators are given, pages and files, agrees with the program."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.core import Metric
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.metrics import Metrics, Tally

ROOT = Path(__file__).parents[2]


def families() -> list[Metric]:
    """All metrics of ours."""
    backend: Any = SimpleNamespace(outages=0, outage=0.0, links=0)
    registry: Any = []
    health: Any = SimpleNamespace(is_healthy=True)
    return list(Metrics(Tally(), registry, backend, health, {}, 1000).collect())


def name_of(family: Metric) -> str:
    """What it is called on the page; the library keeps a counter's name without its end."""
    return family.name + ("_total" if family.type == "counter" else "")


class Pages(SynchronousTestCase):
    def test_metrics(self) -> None:
        """The page about metrics has each, with its type and the program's own words, in the same order."""
        text = (ROOT / "docs/metrics.md").read_text("utf-8")
        rows = re.findall(r"^\| `(mcp_proxy_\w+)` \| (\w+) \| [^|]*\| (.*) \|$", text, re.MULTILINE)
        self.assertEqual(rows, [(name_of(each), each.type, each.documentation) for each in families()])
