"""Runs the MCP conformance suite against a server, and against the same server behind the proxy.

``python -m tests.conformance.run --server-python PYTHON [--restart] [--only RUN]...``, or ``make conformance``.

What is asked is not whether the server passes, but whether the proxy can be told from it: every check of every
scenario must end with the proxy as it ends without. With ``--restart``, the server is killed before each scenario,
and the scenario begins while the server is still away.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from tests.e2e.actors import Proxy, environment, get_json
from tests.e2e.kinds import BackendKind
from tests.e2e.processes import Child, Command, free_port, until

HERE = Path(__file__).parent
NODE = HERE / "node_modules" / ".bin" / "node"

#: The most seconds for one start of the suite, which has limits of its own for each scenario.
LIMIT = 180.0
#: Attempts come fast, and are enough for a server that starts slowly on a busy machine.
SETTINGS = {
    "BACKEND_TRANSPORT": "streamable",
    "RECONNECT_DELAY": "0.2",
    "MAX_RECONNECT_ATTEMPTS": "100",
}


@frozen
class Run:
    """One way to start the suite.

    :ivar package: the npm package, as `package.json` calls it.
    :ivar all_scenarios: the options that select what is run.
    :ivar one_scenario: the options, besides ``--scenario``, that select one scenario of these.
    :ivar scenarios: how many scenarios there are.
    :ivar passed: how many checks pass without the proxy; a server that passes fewer proves nothing.
    :ivar failed: how many fail without it.
    """

    name: str
    package: str
    all_scenarios: Sequence[str]
    one_scenario: Sequence[str]
    scenarios: int
    passed: int
    failed: int = 0


def _revision(name: str, scenarios: int, passed: int, *options: str) -> Run:
    version = ("--spec-version", name)
    return Run(name, "conformance-next", options or ("--suite", "all", *version), version, scenarios, passed)


RUNS = (
    Run("stable", "conformance-stable", (), (), 30, 40),
    _revision("2025-11-25", 33, 84, "--requirements", "2025-11-25"),
    _revision("2025-06-18", 27, 56),
    _revision("2025-03-26", 1, 3),
    _revision("2026-07-28", 40, 152),
    Run(
        "2026-07-28-required",
        "conformance-next",
        ("--requirements", "2026-07-28"),
        ("--spec-version", "2026-07-28", "--force"),  # for the tasks, which no revision has
        scenarios=50,
        passed=196,
    ),
)
#: What a restart is tried with; the others would tell nothing new for the minutes that they take.
RESTART_RUNS = ("2025-11-25", "2026-07-28-required")
#: The run for a server behind the proxy that knows no handshake, and the checks that may then end otherwise.
LEGACY_ON_MODERN_RUN, LEGACY_ON_MODERN = "2025-11-25", "expected_legacy_on_modern.txt"
#: The same for a server that knows nothing but handshakes.
MODERN_ON_LEGACY_RUN, MODERN_ON_LEGACY = "2026-07-28-required", "expected_modern_on_legacy.txt"


@define
class Outcome:
    """How each check ended: by scenario and check, how often with which status, and what was said of it."""

    statuses: dict[tuple[str, str], Counter[str]]
    messages: dict[tuple[str, str], list[str]]

    @property
    def scenarios(self) -> list[str]:
        """The scenarios, in the order in which they were run."""
        return list(dict.fromkeys(scenario for scenario, _ in self.statuses))

    def count(self, status: str) -> int:
        """How many checks ended with this status."""
        return sum(counter[status] for counter in self.statuses.values())

    def __str__(self) -> str:
        return f"{self.count('SUCCESS')}/{self.count('FAILURE')}"


def read_outcome(folder: Path) -> Outcome:
    """Return what the suite has written into this folder."""
    outcome = Outcome({}, {})
    pattern = re.compile(r"server-(.+)-(\d{4}-\d\d-\d\dT[\d-]+Z)")
    found = [(match[2], match[1], path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    for _, scenario, path in sorted(found):
        for check in json.loads((path / "checks.json").read_text(encoding="utf-8")):
            key = (scenario, check["id"])
            outcome.statuses.setdefault(key, Counter())[check["status"]] += 1
            if check.get("errorMessage"):
                outcome.messages.setdefault(key, []).append(check["errorMessage"])
    return outcome


def differences(direct: Outcome, proxied: Outcome) -> Iterator[tuple[tuple[str, str], str]]:
    """Describe each check that did not end the same."""

    def judged(statuses: Counter[str]) -> Counter[str]:
        # INFO is a note of the suite's, one for each event of a stream for instance, and no judgement.
        return Counter({status: number for status, number in statuses.items() if status != "INFO"})

    def described(statuses: Counter[str]) -> str:
        parts = sorted((statuses or {"absent": 1}).items())
        return ", ".join(status if number == 1 else f"{number} {status}" for status, number in parts)

    for key in dict.fromkeys((*direct.statuses, *proxied.statuses)):
        before, after = (outcome.statuses.get(key, Counter()) for outcome in (direct, proxied))
        if judged(before) != judged(after):
            said = "".join(f"\n    {message}" for message in proxied.messages.get(key, ()))
            yield key, f"{', '.join(key)}: {described(before)} without the proxy, {described(after)} with it{said}"


@frozen
class Expected:
    """The checks that have to end otherwise with the proxy, with the reasons."""

    reasons: dict[tuple[str, str], str]

    @classmethod
    def read(cls, file: Path) -> Expected:
        """Read a file: in each line scenario, check and reason."""
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        rows = [re.split(r"\s+", line, maxsplit=2) for line in lines if line and not line.startswith("#")]
        return cls({(scenario, check): reason for scenario, check, reason in rows})

    def judge(self, direct: Outcome, proxied: Outcome) -> Iterator[str]:
        """Describe what is otherwise than expected."""
        found = dict(differences(direct, proxied))
        yield from (text for key, text in found.items() if key not in self.reasons)
        yield from (f"{', '.join(key)}: expected to end otherwise" for key in self.reasons if key not in found)


class Server:
    """The server under test, as its processes come and go on one port."""

    def __init__(self, python: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        program = Command([python, "-m", "tests.conformance.everything_server", "--port", str(self.port), *options])
        self.kind = BackendKind("everything", "streamable", lambda: program, (), "/mcp")
        self._folder = folder
        self._processes: list[Child] = []

    def start(self) -> None:
        """Start a process."""
        name = f"server {len(self._processes) + 1}"
        self._processes.append(Child(name, self.kind.program(), [], environment(), self._folder))

    async def serves(self) -> bool:
        """Whether the process that was started last serves."""
        process = self._processes[-1]
        assert not process.ended, f"{process.name} has ended:\n{process.output}"
        health = await get_json("GET", f"http://127.0.0.1:{self.port}/health")
        return health is not None and health["pid"] == process.pid

    async def restart(self) -> None:
        """Kill the process and start the next one, which needs a while until it serves."""
        await self._processes[-1].stop("KILL")
        self.start()

    async def end(self) -> None:
        """End the process."""
        await self._processes[-1].stop()


class Suite:
    """Runs scenarios; each time in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    async def all(self, run: Run, port: int) -> Outcome:
        """Run all scenarios of a run against the server at this port."""
        return await self._start(run, port, self._new_folder(), run.all_scenarios)

    async def one_by_one(self, run: Run, port: int, scenarios: Sequence[str], server: Server) -> Outcome:
        """Run these scenarios, and restart the server before each."""
        results = self._new_folder()
        outcome = Outcome({}, {})
        for scenario in scenarios:
            await server.restart()
            outcome = await self._start(run, port, results, ("--scenario", scenario, *run.one_scenario))
        return outcome

    def _new_folder(self) -> Path:
        self._number += 1
        results = self._folder / f"results-{self._number}"
        results.mkdir()
        return results

    async def _start(self, run: Run, port: int, results: Path, options: Sequence[str]) -> Outcome:
        program = HERE / "node_modules" / run.package / "dist" / "index.js"
        target = ("--url", f"http://127.0.0.1:{port}/mcp", "-o", str(results))
        words = Command([str(NODE), str(program), "server"])
        child = Child("suite", words, [*target, *options], environment(), self._folder)
        try:
            await until(lambda: child.ended, f"the suite ends ({run.name}, {' '.join(options)})", LIMIT)
        finally:
            await child.stop()
        # Its status is 1 if a check fails, which is for us to judge, and also if it dislikes its options.
        assert any(results.iterdir()), f"the suite has run nothing:\n{child.output}"
        return read_outcome(results)


def vacuous(run: Run, outcome: Outcome) -> Iterator[str]:
    """Tell if the server alone does not do as it should; then it proves nothing of the proxy."""
    if (
        len(outcome.scenarios) != run.scenarios
        or outcome.count("SUCCESS") != run.passed
        or outcome.count("FAILURE") != run.failed
    ):
        yield f"expected {run.scenarios} scenarios and {run.passed} passed checks without the proxy"
        for (scenario, check), messages in outcome.messages.items():
            yield from (f"    {scenario}, {check}: {message}" for message in messages)


async def compare(options: argparse.Namespace, folder: Path) -> int:
    """Do what was asked, print what was found, and return the exit status."""
    names = options.only or (RESTART_RUNS if options.restart else [run.name for run in RUNS])
    suite = Suite(folder)
    python = str(Path(options.server_python).absolute())
    server = Server(python, folder)
    server.start()
    proxied_server = server
    expected = Expected({})
    if options.legacy_on_modern:
        names, expected = options.only or (LEGACY_ON_MODERN_RUN,), Expected.read(HERE / LEGACY_ON_MODERN)
        proxied_server = Server(python, folder, "--modern-only")
        proxied_server.start()
    elif options.modern_on_legacy:
        names, expected = options.only or (MODERN_ON_LEGACY_RUN,), Expected.read(HERE / MODERN_ON_LEGACY)
        proxied_server = Server(python, folder, "--legacy-only")
        proxied_server.start()
    proxy: Proxy | None = None
    problems: list[str] = []
    try:
        if not options.direct:
            program = Command([sys.executable, "-c", "from mcp_proxy.tap import main; main()"])
            proxy = Proxy(program, proxied_server, folder, SETTINGS)
            await until(proxied_server.serves, "the server behind the proxy serves")
            await until(proxy.health, "the proxy is up")
        print(f"{'run':<20}{'scenarios':>10}{'direct':>10}{'proxy':>10}   (checks passed/failed)", flush=True)
        for run in (run for run in RUNS if run.name in names):
            await until(server.serves, "the server serves")
            direct = await suite.all(run, server.port)
            found = list(vacuous(run, direct))
            proxied: Outcome | None = None
            if proxy is not None:
                if options.restart:
                    proxied = await suite.one_by_one(run, proxy.port, direct.scenarios, proxied_server)
                else:
                    proxied = await suite.all(run, proxy.port)
                found += expected.judge(direct, proxied)
            print(f"{run.name:<20}{len(direct.scenarios):>10}{direct!s:>10}{proxied or '-'!s:>10}", flush=True)
            problems += (f"{run.name}: {each}" for each in found)
    finally:
        if proxy is not None:
            await proxy.stop()
        for each in {server, proxied_server}:
            await each.end()
    if proxy is not None and (proxy.status != 0 or "Traceback" in proxy.output):
        problems.append(f"the proxy did not end well, or has logged an exception:\n{proxy.output}")
    elif proxy is not None and problems and options.verbose:
        problems.append(f"what the proxy has logged:\n{proxy.output}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def main() -> None:
    """Read the command line, and exit with 0 if there is no difference, else with 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description="Compare, check by check.")
    parser.add_argument("--server-python", required=True, help="an interpreter that has the packages of the server")
    parser.add_argument("--restart", action="store_true", help="kill the server before each scenario")
    parser.add_argument(
        "--legacy-on-modern", action="store_true", help=f"the proxy's server knows no handshake; see {LEGACY_ON_MODERN}"
    )
    parser.add_argument(
        "--modern-on-legacy", action="store_true", help=f"the proxy's server knows only that; see {MODERN_ON_LEGACY}"
    )
    parser.add_argument("--direct", action="store_true", help="only run the suite without the proxy")
    parser.add_argument("--verbose", action="store_true", help="print the log of the proxy if there is a difference")
    choices = [run.name for run in RUNS]
    parser.add_argument("--only", action="append", choices=choices, metavar="RUN", help=f"of {', '.join(choices)}")
    options = parser.parse_args()

    def started(reactor: Any) -> Deferred[None]:
        ended: Deferred[None] = Deferred()

        async def compared() -> None:
            try:
                with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
                    sys.exit(await compare(options, Path(folder)))
            finally:
                ended.callback(None)

        def interrupt() -> Deferred[None]:
            # A signal; the processes that we have started end before we do.
            comparison.cancel()
            return ended

        comparison = Deferred.fromCoroutine(compared())
        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        return comparison

    react(started)


if __name__ == "__main__":
    main()
