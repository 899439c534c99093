"""Child processes, waiting with a deadline, and ports; nothing in here knows of MCP."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping, Sequence
from inspect import isawaitable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

#: How many seconds anything may take that has no deadline of its own; a machine that is busy is slow.
PATIENCE = 20.0
#: Seconds between two looks at a condition.
INTERVAL = 0.02


async def until(condition: Callable[[], Any], what: str, deadline: float = PATIENCE) -> Any:
    """Wait until the condition, plain or asynchronous, gives something true, and return that.

    :raises AssertionError: it did not within the deadline; the message says what was waited for.
    """
    end = reactor.seconds() + deadline
    while True:
        value = condition()
        if isawaitable(value):
            value = await value
        if value:
            return value
        if reactor.seconds() > end:
            raise AssertionError(f"still not after {deadline:g} s: {what}")
        await deferLater(reactor, INTERVAL, lambda: None)


class Child(ProcessProtocol):
    """A process that runs from its making to `stop`.

    After its end, ``status`` is its exit status, None if a signal ended it.

    :param name: how messages call it.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.name = name
        self._output: list[bytes] = []
        self._waiting: list[Deferred[None]] = []
        self.ended = False
        self.status: int | None = None
        reactor.spawnProcess(self, arguments[0], arguments, dict(environment), str(folder))

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._pid

    @property
    def output(self) -> str:
        """What it has printed, except what a subclass took as its own."""
        return b"".join(self._output).decode(errors="replace")

    def connectionMade(self) -> None:
        self._pid = self.transport.pid

    def outReceived(self, data: bytes) -> None:
        self._output.append(data)

    def errReceived(self, data: bytes) -> None:
        self._output.append(data)

    def processEnded(self, reason: Failure) -> None:
        self._output.append(f"({self.name} {self.pid}: {reason.getErrorMessage()})\n".encode())
        self.ended = True
        self.status = getattr(reason.value, "exitCode", None)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def end(self) -> None:
        """Wait until the process has ended, which frees its port as well."""
        if not self.ended:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            await waiter

    async def stop(self, signal: str = "TERM") -> None:
        """End the process by this signal, or by SIGKILL if it does not obey."""
        murder = reactor.callLater(PATIENCE, self._signal, "KILL")
        self._signal(signal)
        await self.end()
        if murder.active():
            murder.cancel()
        else:
            raise AssertionError(f"{self.name} did not end within {PATIENCE:g} s of SIG{signal}")

    def _signal(self, name: str) -> None:
        if not self.ended:
            try:
                self.transport.signalProcess(name)
            except ProcessExitedAlready:
                """It has ended by itself, and we shall be told."""


def free_port() -> int:
    """Return a port that nobody listens on.

    It lies below the range from which the system takes ports for outgoing connections: else, while a server
    is down, its port may be given to someone who connects, even to the proxy that knocks at this very port.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
