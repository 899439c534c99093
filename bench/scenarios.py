"""What is measured: calls and events in rounds, idle sessions by their number, and a backend that is killed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence

import attrs

from . import load
from .load import PATIENCE, Pushes, Session, SseSession, Tally, Work, call_all, connect, exchange, messages_in
from .processes import Rig

#: Runs one round: so many seconds, or at most so many calls.
Round = Callable[[float, int], Tally]


@attrs.frozen
class Scenario:
    """Something that is done in rounds.

    :param unit: what is counted.
    :param prepare: opens the sessions and returns what runs a round over them; None if the subject cannot do it.
    :param transport: what the backend is to speak.
    """

    title: str
    unit: str
    prepare: Callable[[Rig], Round | None]
    is_quick: bool = False
    transport: str = "streamable"


def calls(clients: int, events: int = 0, size: int = 0) -> Callable[[Rig], Round]:
    """Return a scenario of so many clients that call over Streamable HTTP."""

    def prepare(rig: Rig) -> Round:
        sessions = [Session.open(rig.port) for _ in range(clients)]
        return lambda seconds, most: call_all(sessions, Work(events, size), seconds, rig.cpu, most)

    return prepare


def sse_calls(clients: int) -> Callable[[Rig], Round | None]:
    """Return a scenario of so many clients that call over HTTP+SSE."""

    def prepare(rig: Rig) -> Round | None:
        path = rig.subject.sse
        if path is None:
            return None
        sessions = [SseSession.open(rig.port, path) for _ in range(clients)]
        return lambda seconds, most: call_all(sessions, Work(), seconds, rig.cpu, most)

    return prepare


def pushes(clients: int) -> Callable[[Rig], Round]:
    """Return a scenario of so many clients to which the backend pushes events."""

    def prepare(rig: Rig) -> Round:
        sessions = Pushes(rig.stub.port, [Session.open(rig.port) for _ in range(clients)])
        return lambda seconds, most: sessions.run(seconds, rig.cpu, most)

    return prepare


SCENARIOS = [
    Scenario("Small call, answered as JSON, 1 at a time", "calls", calls(1), is_quick=True),
    Scenario("Small call, 32 at a time", "calls", calls(32), is_quick=True),
    Scenario("Small call, 256 at a time", "calls", calls(256)),
    Scenario("Result of 64 kB, 8 at a time", "calls", calls(8, size=65536)),
    Scenario("Result of 1 MB, 4 at a time", "calls", calls(4, size=1 << 20)),
    Scenario("Answer as a stream of 10 events, 8 at a time", "calls", calls(8, events=10)),
    Scenario("Answer as a stream of 100 events, 8 at a time", "calls", calls(8, events=100), is_quick=True),
    Scenario("HTTP+SSE round trip, 32 at a time", "calls", sse_calls(32), is_quick=True, transport="sse"),
    Scenario("Events pushed to 50 sessions", "events", pushes(50)),
]


@attrs.frozen
class Weight:
    """What idle sessions weigh: bytes of the proxy with that many of them, 0 first."""

    bytes_at: dict[int, int]

    def each(self, sessions: int) -> float:
        """Return the bytes for each of so many sessions."""
        return (self.bytes_at[sessions] - self.bytes_at[0]) / sessions

    def marginal(self) -> float:
        """Return the bytes for each session of the last step."""
        *_, (few, before), (many, after) = sorted(self.bytes_at.items())
        return (after - before) / (many - few)


def weigh(rig: Rig, steps: Sequence[int], settle: float = 1.0) -> Weight:
    """Open idle sessions, each with its GET stream, and weigh the proxy at each step."""
    assert rig.proxy is not None
    # What is allocated once, with the first session, is no session's weight.
    streams = [Session.open(rig.port).open_stream()]
    bytes_at = {0: rig.proxy.memory()}
    for step in steps:
        while len(streams) < step + 1:
            streams.append(Session.open(rig.port).open_stream())
        time.sleep(settle)
        bytes_at[step] = rig.proxy.memory()
    for stream in streams:
        stream.socket.close()
    return Weight(bytes_at)


@attrs.define
class Outage:
    """What clients saw of a restart.

    :ivar waits: milliseconds from the backend's listening to the answer of the first call that each client had open
        while it was away.
    :ivar refused: how many such calls got an error instead, or nothing.
    :ivar survivors: how many of the sessions worked afterwards.
    """

    waits: list[float] = attrs.Factory(list)
    refused: int = 0
    survivors: int = 0
    sessions: int = 0

    def add(self, other: Outage) -> None:
        """Add what was seen of another one."""
        self.waits += other.waits
        self.refused += other.refused
        self.survivors += other.survivors
        self.sessions += other.sessions


@attrs.frozen
class Attempt:
    """A call: when it was made and answered (``time.monotonic_ns``), and whether the answer was right."""

    sent: int
    answered: int
    is_right: bool


def call_on(session: Session, until: threading.Event, attempts: list[Attempt]) -> None:
    """Call again and again, with a pause of 10 ms, until it is enough."""
    work = Work()
    sock = None
    while not until.is_set():
        sent = time.monotonic_ns()
        number = next(load.numbers)
        try:
            sock = sock or connect(session.port)
            is_right = not work.problem(number, messages_in(*exchange(sock, session.post(work.call(number)))))
        except (OSError, load.Refused):
            is_right, sock = False, None
        attempts.append(Attempt(sent, time.monotonic_ns(), is_right))
        until.wait(0.01)
    if sock is not None:
        sock.close()


def restart(rig: Rig, clients: int = 8, down: float = 1.5, after: float = 2.0) -> Outage:
    """Kill the backend under load, start it again on its port, and tell what the clients saw."""
    sessions = [Session.open(rig.port) for _ in range(clients)]
    attempts: list[list[Attempt]] = [[] for _ in sessions]
    enough = threading.Event()
    threads = [
        threading.Thread(target=call_on, args=(session, enough, mine), daemon=True)
        for session, mine in zip(sessions, attempts, strict=True)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    rig.stub.process.end(signal.SIGKILL)
    killed = time.monotonic_ns()  # what was sent before may have reached it
    time.sleep(down)
    rig.stub.start()
    listens = rig.stub.listens()
    time.sleep(after)
    enough.set()
    for thread in threads:
        thread.join(PATIENCE)

    seen = Outage(sessions=clients)
    for mine in attempts:
        held = (each for each in mine if each.sent < listens and (each.sent > killed or each.answered > listens))
        for call in [*held][:1]:
            if call.is_right:
                seen.waits.append((call.answered - listens) / 1e6)
            else:
                seen.refused += 1
        seen.survivors += bool(mine and mine[-1].is_right)
    return seen


def restart_crowd(rig: Rig, clients: int = 1000, down: float = 1.5) -> Outage:
    """Kill the backend, let each of many sessions call once, start it again, and tell what the clients saw."""
    sessions = [Session.open(rig.port) for _ in range(clients)]
    rig.stub.process.end(signal.SIGKILL)
    listens: list[int] = []

    def come_back() -> None:
        time.sleep(down)
        rig.stub.start()
        listens.append(rig.stub.listens())

    thread = threading.Thread(target=come_back, daemon=True)
    thread.start()
    tally = call_all(sessions, Work(), down, most=clients)
    thread.join(PATIENCE)
    again = call_all(sessions, Work(), down, most=clients)
    waits = [(moment - listens[0]) / 1e6 for moment in tally.moments[tally.wrong :]]
    return Outage(waits, clients - len(waits), again.done - again.wrong, clients)
