"""One soak: the proxy, its backends, the clients, and what is measured meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import attrs

from .clients import Client, HttpSse, Modern, Streamable, World
from .judge import Call, Judge, Tolerance, growth, windows
from .wire import Closed, Http

ROOT = Path(__file__).parents[1]
#: Shorter than the defaults, so that a run of minutes sees outages that are too long, and sessions that expire.
HOLD_TIMEOUT, IDLE_TIMEOUT, MARGIN = 6.0, 15.0, 10.0
SETTINGS = {
    "HOLD_TIMEOUT": f"{HOLD_TIMEOUT:g}",
    "SESSION_IDLE_TIMEOUT": f"{IDLE_TIMEOUT:g}",
    "RECONNECT_DELAY": "1",
    "MAX_RECONNECT_ATTEMPTS": "5",
    "PROXY_HOST": "127.0.0.1",
    "LOG_LEVEL": "warn",
}
#: Where a figure may end, given where it began: a share of it, and something for what goes up and down.
GROWING = {
    "rss_kb": Tolerance(0.05, 4096),
    "fds": Tolerance(0.15, 15),
    "delayed": Tolerance(0.15, 15),
    "objects": Tolerance(0.10, 5000),
    "sessions": Tolerance(0.25, 15),
}
#: Where it may end when all clients have gone, given where it was before they came.
RESTING = {"fds": Tolerance(0.0, 4), "delayed": Tolerance(0.0, 4), "sessions": Tolerance(0.0, 0)}
GAUGES = ("mcp_proxy_held", "mcp_proxy_in_flight", "mcp_proxy_streams", "mcp_proxy_session_phases")
CLIENTS: tuple[type[Client], ...] = (Streamable, HttpSse, Modern)
LONG_OUTAGE = 1 / 60


@attrs.define
class Report:
    """What a soak has found; the figures are those of the proxy."""

    seed: int
    minutes: float
    judge: Judge = attrs.Factory(Judge)
    restarts: int = 0
    killed: int = 0
    long_outages: int = 0
    drops: int = 0
    sessions: int = 0
    waits: list[float] = attrs.Factory(list)
    before: dict[str, float] = attrs.Factory(dict)
    samples: list[dict[str, float]] = attrs.Factory(list)
    after: dict[str, float] = attrs.Factory(dict)
    types: list[dict[str, int]] = attrs.Factory(list)

    def judge_growth(self) -> None:
        """Compare what was measured."""
        if len(self.samples) >= 30:
            for line in growth(self.samples, GROWING):
                self.judge.fail(f"{line}; {self._grown_types()}")
        for name, tolerance in RESTING.items():
            if not tolerance.allows(self.before[name], self.after[name]):
                self.judge.fail(f"{name} was {self.before[name]:g} before the clients, {self.after[name]:g} after")
        for name in GAUGES:
            if self.after[name]:
                self.judge.fail(f"{name} is {self.after[name]:g} when all clients have gone")

    def _grown_types(self) -> str:
        if len(self.types) < 2:
            return "no types"
        first, last = self.types[0], self.types[-1]
        more = sorted(((last[name] - first.get(name, 0), name) for name in last), reverse=True)[:8]
        return ", ".join(f"{number:+} {name}" for number, name in more)

    def window(self, name: str) -> tuple[float, float]:
        """Return the medians of a figure in the first and in the last third."""
        return windows([sample[name] for sample in self.samples])


class Soak:
    """See the module.

    :param kinds: what the backends speak, at random.
    """

    def __init__(self, report: Report, folder: Path, clients: int, pause: float, kinds: list[str]) -> None:
        self.report = report
        self.folder = folder
        self._clients = clients
        self._pause = pause
        self._kinds = kinds
        self._chance = random.Random(report.seed)
        self._backend_port, self._port = free_port(), free_port()
        self._ledger = folder / "ledger"
        self._ledger.write_text("")  # that of an earlier run is of no use
        self._read = self._ledger.open()
        self._rest = ""
        self._outage = (0.0, 0.0)
        self._backend: asyncio.subprocess.Process | None = None
        self._spare: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Do it all, and end all that was started."""
        judge = self.report.judge
        log = (self.folder / "proxy.log").open("w")
        settings = {"BACKEND_URL": f"http://127.0.0.1:{self._backend_port}", "PROXY_PORT": str(self._port), **SETTINGS}
        proxy = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "soak.watched", str(self.folder / "watched")),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
            stdout=log,
            stderr=log,
        )
        self._pid = proxy.pid
        try:
            await self._start()
            while not await self._metrics():
                if proxy.returncode is not None:
                    raise RuntimeError(f"the proxy did not start: see {log.name}")
                await asyncio.sleep(0.1)
            await asyncio.sleep(3)
            self.report.before = await self._sample()
            await self._load()
            await self._rest_now()
            self.report.judge_growth()
            proxy.terminate()
            code = await asyncio.wait_for(proxy.wait(), 20)
            if code:
                judge.fail(f"the proxy ended with status {code}")
        finally:
            for process in (proxy, self._backend, self._spare):
                if process is not None and process.returncode is None:
                    process.kill()
                    await process.wait()
            log.close()
        text = Path(log.name).read_text()
        if "Traceback" in text:
            judge.fail(f"the proxy's log has a traceback:\n{text[text.index('Traceback') - 300 :][:3000]}")

    # -- load -------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        report, enough = self.report, asyncio.Event()
        world = World(
            self._port,
            report.judge,
            random.Random(report.seed + 1),
            HOLD_TIMEOUT + MARGIN,
            self._pause,
            self._answered,
            "sse" not in self._kinds,
            enough,
        )
        clients = [asyncio.create_task(self._client(world, number)) for number in range(self._clients)]
        others = [asyncio.create_task(each) for each in (self._restart(), self._watch(world))]
        ended, _ = await asyncio.wait(others, timeout=report.minutes * 60, return_when=asyncio.FIRST_COMPLETED)
        for each in ended:
            report.judge.fail(f"the soak itself is broken: {each.exception()!r}")
        enough.set()
        await asyncio.wait(clients, timeout=60)
        for task in (*clients, *others):
            if not task.done():
                if task in clients:
                    report.judge.fail("a client did not come to its end")
                task.cancel()
        await asyncio.gather(*clients, *others, return_exceptions=True)
        if self._backend is None or self._backend.returncode is not None:
            await self._start()
        self._look(time.monotonic() + 1)
        report.drops, report.sessions = world.drops, world.sessions

    async def _client(self, world: World, number: int) -> None:
        """Be one client after the other."""
        await asyncio.sleep(world.chance.uniform(0, 3))
        while not world.enough.is_set():
            client = CLIENTS[number % len(CLIENTS)](world)
            try:
                await client.live()
            except Exception as error:
                world.judge.fail(f"{client.name}: {error!r}")
                await asyncio.sleep(1)
            await world.rest()

    def _answered(self, call: Call) -> None:
        """A call has its result: if it was made while nobody listened, that took some time from when somebody did."""
        dead, listened = self._outage
        if call.is_quick and dead < call.sent < listened:
            self.report.waits.append(time.monotonic() - listened)

    # -- backends ---------------------------------------------------------------------------------------------

    async def _spawn(self) -> asyncio.subprocess.Process:
        """Start a process that listens when it is told to, so that a restart need not wait for Python."""
        words = [str(self._backend_port), str(self._ledger), self._chance.choice(self._kinds)]
        with (self.folder / "backend.log").open("a") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "soak.backend", *words),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )

    async def _start(self) -> None:
        """Have a backend that listens."""
        self._backend = process = self._spare or await self._spawn()
        self._spare = None
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"\n")
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("a backend did not start: see backend.log")
        self._outage = (self._outage[0], float(line))
        self._spare = await self._spawn()

    async def _restart(self) -> None:
        """End the backend and start it again, for ever."""
        report, chance = self.report, self._chance
        while True:
            await asyncio.sleep(chance.uniform(0.2, 1.2) if chance.random() < 0.92 else 3.0)
            process = self._backend
            assert process is not None
            kills = chance.random() < 0.8
            process.send_signal(signal.SIGKILL if kills else signal.SIGTERM)
            await process.wait()
            self._outage = (time.monotonic(), self._outage[1])
            is_long = chance.random() < LONG_OUTAGE
            await asyncio.sleep(HOLD_TIMEOUT + 3 if is_long else chance.uniform(0.0, 0.5))
            await self._start()
            report.restarts += 1
            report.killed += kills
            report.long_outages += is_long

    def _look(self, until: float) -> None:
        """Read what backends have written to the ledger, and judge."""
        *lines, self._rest = (self._rest + self._read.read()).split("\n")
        self.report.judge.carried_out(lines)
        self.report.judge.check_results(until)
        self.report.judge.overdue(time.monotonic())

    # -- figures ----------------------------------------------------------------------------------------------

    async def _watch(self, world: World) -> None:
        """Look at everything once a second; what comes before the end of the warm-up does not count."""
        warm = time.monotonic() + min(self.report.minutes * 60 / 4, 90)
        while True:
            await asyncio.sleep(1)
            self._look(time.monotonic() - 1)
            sample = await self._sample()
            if time.monotonic() > warm:
                self.report.samples.append(sample)

    async def _sample(self) -> dict[str, float]:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        kept = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        watched = json.loads((self.folder / "watched").read_text().splitlines()[-1])
        if "types" in watched and watched["types"] not in self.report.types[-1:]:
            self.report.types.append(watched["types"])
        return {
            "rss_kb": kept,
            "fds": len(os.listdir(f"/proc/{self._pid}/fd")),
            "delayed": watched["delayed"],
            "objects": watched["objects"],
            **await self._metrics(),
        }

    async def _metrics(self) -> dict[str, float]:
        """Return what /metrics says; nothing if the proxy does not listen yet."""
        try:
            http = await Http.open(self._port)
            await http.ask("GET", "/metrics", "")
            text = (await http.body()).decode()
            http.close()
        except (OSError, Closed):
            return {}
        found = dict.fromkeys(("sessions", *GAUGES), 0.0)
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            name = "sessions" if name == "mcp_proxy_sessions" else name
            if name in found:
                found[name] += float(value)
        return found

    async def _rest_now(self) -> None:
        """All clients have gone: wait until the proxy has forgotten them."""
        end = time.monotonic() + 2 * IDLE_TIMEOUT + 10
        while time.monotonic() < end:
            await asyncio.sleep(1)
            self.report.after = sample = await self._sample()
            is_quiet = not any(sample[name] for name in GAUGES)
            if is_quiet and all(RESTING[name].allows(self.report.before[name], sample[name]) for name in RESTING):
                break
        self._look(time.monotonic() + 1)


def free_port() -> int:
    """Return a free port outside of the range for outgoing connections, from which a restart could find it taken."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
