"""The demo's other processes: how one is started, found to be up, killed and cleaned up."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

from mcp_proxy.config import VARIABLES

#: A process that is not up after so many seconds, or not gone, is considered broken.
PATIENCE = 15.0


class Broken(Exception):
    """A process did not do what the demo needs; the message says which one, and what it said."""


class Process:
    """A process with an HTTP port of its own, whose ``/health`` answers 200 when it is up.

    It is an asynchronous context manager: whatever runs at its end is ended.

    :param name: how messages call it.
    :param arguments: what Python is to run.
    :param folder: where it runs and where its output goes.
    """

    def __init__(self, name: str, port: int, arguments: list[str], folder: Path, **settings: str) -> None:
        self.name = name
        self.port = port
        self.pids: list[int] = []
        self._arguments = arguments
        self._settings = settings
        self._folder = folder
        self._output = folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process that was started last."""
        return self.pids[-1]

    async def start(self) -> None:
        """Start, and wait until it is up."""
        with self._output.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                cwd=self._folder,
                env={**_environment(), **self._settings},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for the demo alone, which ends its processes itself.
                start_new_session=True,
            )
        self.pids.append(self._process.pid)
        await self._wait_until_up(self._process)

    async def _wait_until_up(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + PATIENCE
        async with httpx.AsyncClient(trust_env=False) as http:
            while time.monotonic() < deadline:
                if process.returncode is not None:
                    raise Broken(f"the {self.name} ended with status {process.returncode}:\n{self.output()}")
                try:
                    if (await http.get(f"http://127.0.0.1:{self.port}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)
        raise Broken(f"the {self.name} is not up after {PATIENCE:.0f} seconds:\n{self.output()}")

    async def kill(self) -> None:
        """End it as a crash would: SIGKILL, no goodbye."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def output(self) -> str:
        """The last lines that it has printed."""
        lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-25:])

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 2)
        except asyncio.TimeoutError:
            await self.kill()


def _environment() -> dict[str, str]:
    """Return our environment without settings of a proxy, fit to run this package from another folder."""
    names = {variable.name for variable in VARIABLES}
    path = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens on.

    They lie below the range from which the system takes ports for outgoing connections: a proxy that knocks
    at the port of a dead server must not be given that very port to call from, or it would connect to itself.
    """
    found: set[int] = set()
    while len(found) < number:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.add(port)
    return list(found)
