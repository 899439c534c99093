"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.e2e.actors import environment
from tests.e2e.processes import Child, Command, until

#: The demo as it is for a newcomer who has not installed the extra.
WITHOUT_EXTRA = """
import sys
sys.modules["mcp"] = None
from mcp_proxy.demo.__main__ import main
sys.exit(main())
"""


class Demo(TestCase):
    """``python -m mcp_proxy.demo``."""

    timeout = 90.0

    def run_demo(self, *arguments: str) -> Child:
        """Return the running demo; it is ended with the test at the latest."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        python = Command([sys.executable])
        # The demo's proxy must not care for the settings of another one.
        demo = Child("demo", python, arguments, {**environment(), "PROXY_PORT": "1"}, folder)
        self.addCleanup(demo.stop)
        return demo

    async def test_verdict(self) -> None:
        """It ends with its verdict, and the status says the same."""
        demo = self.run_demo("-m", "mcp_proxy.demo")
        await demo.end()
        self.assertEqual(demo.status, 0, demo.output)
        self.assertRegex(demo.output, r"(?m)^VERDICT: OK\. Three servers \(pids \d+, \d+, \d+\), one session")
        self.assertNotIn("Traceback", demo.output)

    async def test_interrupted(self) -> None:
        """Ctrl-C ends it, and all that it has started."""
        for number in (signal.SIGINT, signal.SIGTERM):
            demo = self.run_demo("-m", "mcp_proxy.demo")
            await until(lambda demo=demo: "... 1 of 20" in demo.output, "the demo is in full swing")
            os.kill(demo.pid, number)
            await demo.end()
            self.assertEqual(demo.status, 130, demo.output)
            self.assertNotIn("Traceback", demo.output)
            started = set(re.findall(r"is up.*pid (\d+)", demo.output))
            self.assertEqual(len(started), 3, demo.output)
            for pid in started:
                self.assertRaises(ProcessLookupError, os.kill, int(pid), 0)

    async def test_missing_extra(self) -> None:
        """Without the extra, it tells what to install."""
        demo = self.run_demo("-c", WITHOUT_EXTRA)
        await demo.end()
        self.assertEqual(demo.status, 1)
        self.assertIn("pip install 'mcp-proxy[demo]'", demo.output)
        self.assertNotIn("Traceback", demo.output)
