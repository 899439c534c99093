"""The files through which a test and a backend talk; they outlive the backend's process.

- ``gates/NAME``: while this file exists, whatever waits for the gate NAME stays in flight
- ``tools.json``: names of tools to offer besides the fixed ones
- ``ledger.txt``: what the tool ``append`` has appended; this is the mutation that must not happen twice
- ``journal.jsonl``: one JSON object for each message received: pid and the message
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any


class Folder:
    """The folder, as the backend sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def journal(self, message: Any) -> None:
        """Note what was received."""
        self._append("journal.jsonl", json.dumps({"pid": os.getpid(), "message": message}))

    def add_to_ledger(self, line: str) -> None:
        """Perform the mutation."""
        self._append("ledger.txt", line)

    def extra_tools(self) -> list[str]:
        """Return the names of the tools to offer besides the fixed ones."""
        file = self._path / "tools.json"
        return list(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else []

    async def pass_gate(self, name: str) -> None:
        """Wait until the gate is open; without a name, there is none."""
        while name and (self._path / "gates" / name).exists():
            await asyncio.sleep(0.02)

    def _append(self, name: str, line: str) -> None:
        # One write of whole lines to a file opened for appending: a kill leaves a line complete or absent.
        with (self._path / name).open("ab", buffering=0) as file:
            file.write(line.encode() + b"\n")
