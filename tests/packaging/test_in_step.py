"""The four places that list the settings name the same variables with the same defaults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dotenv import dotenv_values
from twisted.trial.unittest import SynchronousTestCase

import mcp_proxy
from mcp_proxy.config import VARIABLES

ROOT = Path(__file__).parents[2]
TABLE = [(variable.name, variable.default) for variable in VARIABLES]


class InStep(SynchronousTestCase):
    def test_env_example(self) -> None:
        """.env.example sets each variable to its default, in the order of the table."""
        self.assertEqual(list(dotenv_values(ROOT / ".env.example", interpolate=False).items()), TABLE)

    def test_env_example_explains(self) -> None:
        """.env.example says of each variable what the table says, and what is allowed."""
        text = re.sub(r"\n# ", " ", (ROOT / ".env.example").read_text(encoding="utf-8"))
        for variable in VARIABLES:
            self.assertIn(f" {variable.help} Allowed: {variable.kind.allowed}.\n{variable.name}=", text)

    def test_readme(self) -> None:
        """The README's table has a row for each variable with its default, in the order of the table."""
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| `([A-Z][A-Z_]+)` \| (?:`([^`|]*)`|[^`|]*) \|", text, re.MULTILINE)
        self.assertEqual(rows, TABLE)

    def test_help(self) -> None:
        """``twistd mcp-proxy --help`` has a flag for each variable, and names variable and default."""
        # A wide terminal, so that no line is wrapped; the tree that is tested, so that its plugin is found.
        search = os.pathsep.join([str(Path(mcp_proxy.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        shown = subprocess.run(
            [sys.executable, "-m", "twisted", "mcp-proxy", "--help"],
            env={**os.environ, "COLUMNS": "500", "PYTHONPATH": search},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        rows = re.findall(r"^ +--([a-z-]+)=.* \[([A-Z_]+), (?:default: (.*)|no default)\]$", shown, re.MULTILINE)
        self.assertEqual([flag.upper().replace("-", "_") for flag, _, _ in rows], [name for _, name, _ in rows])
        self.assertEqual(sorted((name, default) for _, name, default in rows), sorted(TABLE))
