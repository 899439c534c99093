"""The page that promises behaviour names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parents[2]


class Behaviour(SynchronousTestCase):
    def test_names(self) -> None:
        """Every promise has at least one test, and every test that is named is there."""
        rows = re.findall(r"^\| (Given|The same).*\|$", (ROOT / "docs/behaviour.md").read_text("utf-8"), re.MULTILINE)
        self.assertGreater(len(rows), 60)
        for line in (ROOT / "docs/behaviour.md").read_text("utf-8").splitlines():
            if not line.startswith(("| Given", "| The same")):
                continue
            names = re.findall(r"`([^`]+)`", line.rpartition(" | ")[2])
            self.assertTrue(names, line)
            for name in names:
                self.assertTrue(callable(namedAny(f"tests.{name}")), name)
