"""How many files the process may have open: all that the system allows, and a word if that is not enough."""

from __future__ import annotations

import resource
import subprocess
import sys
from errno import EMFILE
from pathlib import Path

from twisted.internet.error import ConnectBindError, getConnectError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy import files
from mcp_proxy.backend.failures import describe

ROOT = Path(files.__file__).parents[1]
PROGRAM = """
import resource, sys
from mcp_proxy import files
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:])))
print(files.allow_all(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


class Files(SynchronousTestCase):
    def allowed(self, now: int, most: int) -> list[int]:
        """What is allowed in a process with these limits, and its limits afterwards."""
        words = [sys.executable, "-c", PROGRAM, str(now), str(most)]
        ran = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
        return [int(word) for word in ran.stdout.split()]

    def test_all(self) -> None:
        """As many as the system allows, which stays what it was."""
        self.assertEqual(self.allowed(64, 200), [200, 200, 200])
        self.assertEqual(self.allowed(200, 200), [200, 200, 200])

    def test_stubborn(self) -> None:
        """A system that refuses its own limit is asked for less; if it refuses all, what there is has to do."""
        now, hard = 256, resource.RLIM_INFINITY
        for refused, wanted in ((files.MODEST + 1, files.MODEST), (1, 256)):
            limits = [now, hard]

            def change(which: int, new: tuple[int, int], limits: list[int] = limits, refused: int = refused) -> None:
                if new[0] >= refused:
                    raise ValueError("exceeds maximum limit")
                limits[:] = new

            self.patch(files.resource, "getrlimit", lambda which, limits=limits: tuple(limits))
            self.patch(files.resource, "setrlimit", change)
            self.assertEqual(files.allow_all(), wanted)
            self.assertEqual(limits, [wanted, hard])

    def test_for_clients(self) -> None:
        """Enough are left for the backend; if there are not enough for both, each side gets half."""
        self.assertEqual([files.for_clients(allowed, 1000) for allowed in (0, 64, 3100, 65536)], [0, 32, 2000, 64436])

    def test_none_left(self) -> None:
        """A backend is not blamed for what the proxy lacks, on either reactor."""
        for error in (
            ConnectBindError(EMFILE, "Too many open files"),
            getConnectError((EMFILE, "Too many open files")),
        ):
            self.assertEqual(describe(Failure(error)), "the proxy may open no more files (ulimit -n)")
