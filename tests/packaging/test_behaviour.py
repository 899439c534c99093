"""The pages that promise behaviour name tests that exist."""

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
            self.check(names)

    def test_security(self) -> None:
        """So does every line of the checklist and of the limits."""
        tables = re.findall(
            r"^\|.* tests \|\n\|[-|]+\|\n((?:\|.*\n)+)", (ROOT / "docs/security.md").read_text("utf-8"), re.M
        )
        lines = "".join(tables).splitlines()
        self.assertGreater(len(lines), 30)
        for line in lines:
            names = re.findall(r"`([^`]+)`", line.rpartition(" | ")[2])
            self.assertTrue(names, line)
            self.check(names)

    def check(self, names: list[str]) -> None:
        for name in names:
            self.assertTrue(callable(namedAny(f"tests.{name}")), name)
