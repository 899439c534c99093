"""Child processes, waiting with a deadline, and ports; nothing in here knows of MCP."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from inspect import isawaitable
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

from attrs import frozen
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.protocol import Protocol as Connection
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


class Running(Protocol):
    """A process, by whichever way it came to be. It calls ``said``, ``noised`` and ``has_ended`` of its `Child`."""

    pid: int

    def write(self, data: bytes) -> None:
        """Send this to its stdin."""

    def signal(self, name: str) -> None:
        """Send it this signal, if it still runs."""


class Program(Protocol):
    """Something that can be started as a process."""

    def start(self, child: Child, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Running:
        """Start it in this folder."""


class Child:
    """A process that runs from its making to `stop`.

    After its end, ``status`` is its exit status, None if a signal ended it.

    :param name: how messages call it.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.name = name
        self._output: list[bytes] = []
        self._waiting: list[Deferred[None]] = []
        self.ended = False
        self.status: int | None = None
        self._running = program.start(self, arguments, environment, folder)
        self.pid = self._running.pid

    @property
    def output(self) -> str:
        """What it has printed, except what a subclass took as its own."""
        return b"".join(self._output).decode(errors="replace")

    def write(self, data: bytes) -> None:
        """Send this to its stdin."""
        self._running.write(data)

    def said(self, data: bytes) -> None:
        """This came from its stdout."""
        self._output.append(data)

    def noised(self, data: bytes) -> None:
        """This came from its stderr."""
        self._output.append(data)

    def has_ended(self, status: int | None, how: str) -> None:
        """It has ended, and its output is complete."""
        self._output.append(f"({self.name} {self.pid}: {how})\n".encode())
        self.ended = True
        self.status = status
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    async def end(self) -> None:
        """Wait until the process has ended, which frees its port as well."""
        if not self.ended:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            await waiter

    def signal(self, name: str) -> None:
        """Send it this signal, if it still runs."""
        self._running.signal(name)

    async def stop(self, signal: str = "TERM") -> None:
        """End the process by this signal, or by SIGKILL if it does not obey."""
        if self.ended:
            return
        murder = reactor.callLater(PATIENCE, self._running.signal, "KILL")
        self._running.signal(signal)
        await self.end()
        if murder.active():
            murder.cancel()
        else:
            raise AssertionError(f"{self.name} did not end within {PATIENCE:g} s of SIG{signal}")


@frozen
class Command:
    """A program that is started as its users start it.

    :param words: what comes before the arguments; the first is the executable.
    """

    words: Sequence[str]

    def start(self, child: Child, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Running:
        """See `Program`."""
        process = _Spawned(child)
        words = [*self.words, *arguments]
        reactor.spawnProcess(process, words[0], words, dict(environment), str(folder))
        return process


class _Spawned(ProcessProtocol):
    def __init__(self, child: Child) -> None:
        self._child = child

    def connectionMade(self) -> None:
        self.pid = self.transport.pid

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def signal(self, name: str) -> None:
        try:
            self.transport.signalProcess(name)
        except ProcessExitedAlready:
            """It has ended by itself, and we shall be told."""

    def outReceived(self, data: bytes) -> None:
        self._child.said(data)

    def errReceived(self, data: bytes) -> None:
        self._child.noised(data)

    def processEnded(self, reason: Failure) -> None:
        self._child.has_ended(getattr(reason.value, "exitCode", None), reason.getErrorMessage())


@frozen
class Module:
    """A program that is forked from a process that has imported it already; see ``zygote.py``.

    :param python: the interpreter.
    :param name: the module; its ``main`` is the program.
    """

    python: str
    name: str

    def start(self, child: Child, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Running:
        """See `Program`."""
        control = _zygote(self.python, self.name)
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        request = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
        try:
            socket.send_fds(control, [json.dumps(request).encode() + b"\n"], [each.fileno() for each in theirs])
        finally:
            for each in theirs:
                each.close()
        return _Forked(child, *ours)


@cache
def _zygote(python: str, name: str) -> socket.socket:
    """Start a zygote; it ends with this process, which closes the socket. Its own stderr is ours."""
    ours, theirs = socket.socketpair()
    words = [python, "-m", "tests.e2e.zygote", str(theirs.fileno()), name]
    path = [str(Path(__file__).parents[2])]
    if python == sys.executable:  # Another has other libraries.
        path += filter(None, [os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    # Not by the reactor: trial ends what the reactor has started with the test that has started it.
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment, pass_fds=[theirs.fileno()]
    )
    process.returncode = 0  # Nobody waits for it.
    theirs.close()
    return ours


class _Forked:
    """A process that a zygote has become, at the other ends of its three sockets."""

    def __init__(self, child: Child, talk: socket.socket, noise: socket.socket, fate: socket.socket) -> None:
        self._child = child
        self._open = 3
        fate.settimeout(PATIENCE)
        try:
            pid, _, self._fate = fate.recv(100).partition(b"\n")
        except OSError as error:
            raise AssertionError(f"{child.name} was not forked within {PATIENCE:g} s") from error
        assert pid, f"what {child.name} is to be forked from has ended"
        self.pid = int(pid)
        self._talk = self._adopt(talk, child.said)
        self._adopt(noise, child.noised)
        self._adopt(fate, self._learn)

    def _adopt(self, end: socket.socket, receive: Callable[[bytes], None]) -> _End:
        connection = _End(receive, self._closed)
        end.setblocking(False)
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: connection))
        end.close()
        return connection

    def write(self, data: bytes) -> None:
        self._talk.transport.write(data)

    def signal(self, name: str) -> None:
        try:
            os.kill(self.pid, Signals[f"SIG{name}"])
        except ProcessLookupError:
            """It has ended by itself, and we shall be told."""

    def _learn(self, data: bytes) -> None:
        self._fate += data

    def _closed(self) -> None:
        self._open -= 1
        if self._open:
            return
        code = int(self._fate) if self._fate else -1
        how = f"status {code}" if code >= 0 else f"ended by {Signals(-code).name}"
        self._child.has_ended(code if code >= 0 else None, how)


class _End(Connection):
    """One socket to a forked process."""

    def __init__(self, receive: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self.dataReceived = receive  # type: ignore[method-assign]
        self._closed = closed

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._closed()


#: Sockets that keep the ports which were given out last from being given out by another process of tests.
_reserved: deque[socket.socket] = deque(maxlen=20)


def free_port() -> int:
    """Return a port that nobody listens on, and that nobody else gets from here.

    It lies below the range from which the system takes ports for outgoing connections: else, while a server
    is down, its port may be given to someone who connects, even to the proxy that knocks at this very port.
    """
    while True:
        port = random.randrange(20000, 32000)
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reservation.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        _reserved.append(reservation)
        return port
