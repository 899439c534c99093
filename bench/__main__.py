"""Measure the proxy beside nginx: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from .load import Refused, Tally
from .processes import (
    CORES,
    DIRECT,
    LOAD_CORE,
    OURS,
    PEER_SUBJECTS,
    REFERENCE,
    ROOT,
    Missing,
    Rig,
    Subject,
    find_nginx,
    ours,
)
from .report import machine, outage_table, problems, rounds_table, weight_table, write
from .scenarios import SCENARIOS, Outage, Scenario, restart, restart_crowd, weigh

PAGE = ROOT / "docs" / "performance.md"
STEPS = (100, 1000, 5000)
WARM_UP = 0.5
MEMORY = "Memory of idle sessions, each with its GET stream"
RESTART = "The backend is killed under load, and listens again after 1.5 s"
CROWD = "1000 sessions call while the backend is away for 1.5 s"


@attrs.define
class Bench:
    """A run of the whole: who is measured, how long, and what has been written."""

    subjects: list[Subject]
    references: list[str]
    rounds: int
    seconds: float
    folder: Path
    pages: list[str] = attrs.Factory(list)
    loads: list[float] = attrs.Factory(list)
    mistakes: int = 0

    def show(self, title: str, text: str) -> None:
        """Print a table, and keep it for the page."""
        self.loads.append(os.getloadavg()[0])
        print(f"\n## {title}\n\n{text}", end="", flush=True)
        self.pages.append(f"### {title}\n\n{text}")

    @contextmanager
    def start(self, subject: Subject, transport: str = "streamable") -> Iterator[Rig | None]:
        """Start a subject with a stub; None, and a line that says why, if it does not work."""
        with ExitStack() as stack:
            rig = None
            try:
                rig = subject.start(self.folder, transport)
                stack.callback(rig.close)
            except Missing as problem:
                print(f"{subject.name} is left out: {problem}", file=sys.stderr)
            yield rig

    def measure(self, scenario: Scenario) -> None:
        """Measure a scenario in rounds, the subjects in turn."""
        results: dict[str, list[Tally]] = {subject.name: [] for subject in self.subjects}
        with ExitStack() as stack:
            rounds = []
            for subject in self.subjects:
                rig = stack.enter_context(self.start(subject, scenario.transport))
                try:
                    run = rig and scenario.prepare(rig)
                    tally = run and run(WARM_UP, 1 << 62)
                    if run and tally and not tally.lost:
                        rounds.append((subject.name, run))
                    elif tally:
                        # What loses answers would make every round wait for them.
                        results[subject.name] = [tally]
                except (Refused, OSError) as problem:
                    print(f"{subject.name} is left out: {problem}", file=sys.stderr)
            for _ in range(self.rounds):
                for name, run in rounds:
                    results[name].append(run(self.seconds, 1 << 62))
        results = {name: found for name, found in results.items() if found}
        text = rounds_table(scenario.unit, results, self.references)
        self.show(scenario.title, text)
        for line in problems(results):
            print(line, file=sys.stderr)
        self.mistakes += sum(tally.mistakes for subject in OURS for tally in results.get(subject.name, []))

    def weigh(self) -> None:
        """Weigh idle sessions."""
        results = {}
        for subject in self.subjects:
            if subject.command is not None:
                with self.start(subject) as rig:
                    if rig is not None:
                        results[subject.name] = weigh(rig, STEPS[:1] if subject.is_slow else STEPS)
        self.show(MEMORY, weight_table(results, self.references[0]))

    def restart(self) -> None:
        """Restart the backend under load, as often as there are rounds."""
        self._restart(RESTART, restart, [subject for subject in self.subjects if subject.command is not None])

    def restart_crowd(self) -> None:
        """Restart it while many sessions wait."""
        quick = [subject for subject in self.subjects if subject.command is not None and not subject.is_slow]
        self._restart(CROWD, restart_crowd, quick)

    def _restart(self, title: str, run: Callable[[Rig], Outage], subjects: Sequence[Subject]) -> None:
        results: dict[str, Outage] = {}
        for _ in range(self.rounds):
            for subject in subjects:
                with self.start(subject) as rig:
                    if rig is not None:
                        results.setdefault(subject.name, Outage()).add(run(rig))
        self.show(title, outage_table(results))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's run, for whoever changes the hot path")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure another checkout as well")
    parser.add_argument("--peers", action="store_true", help="measure other MCP proxies as well")
    parser.add_argument("--only", metavar="TEXT", default="", help="only the scenarios with this in their titles")
    parser.add_argument("--rounds", type=int, help="how often each subject is measured")
    parser.add_argument("--seconds", type=float, help="how long a round is")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.relative_to(ROOT)}")
    return parser.parse_args(words)


def main() -> int:
    """Run the bench; status 1 tells of wrong, lost or superfluous answers of this proxy's."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    os.sched_setaffinity(0, LOAD_CORE)
    if len(CORES) < 2:
        print("There is one core only: proxy and load share it, and rates say little.", file=sys.stderr)
    subjects = [DIRECT, REFERENCE, *OURS]
    references = [(REFERENCE if find_nginx() else DIRECT).name]
    if options.against:
        if not (options.against / "mcp_proxy" / "tap.py").exists():
            sys.exit(f"{options.against} is no checkout")
        subjects.append(Subject("the other checkout", ours(options.against)))
        references.append(subjects[-1].name)
    if options.peers:
        subjects += PEER_SUBJECTS
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        bench = Bench(
            subjects,
            references,
            rounds=options.rounds or (3 if options.quick else 5),
            seconds=options.seconds or (1.0 if options.quick else 2.0),
            folder=Path(folder),
        )
        for scenario in SCENARIOS:
            if options.only in scenario.title and (scenario.is_quick or not options.quick):
                bench.measure(scenario)
        for title, measure in ((MEMORY, bench.weigh), (RESTART, bench.restart), (CROWD, bench.restart_crowd)):
            if options.only in title and not options.quick:
                measure()
    if not bench.loads:
        sys.exit(f"no scenario has {options.only!r} in its title")
    where = machine(bench.loads, bench.rounds, bench.seconds, references[0])
    print(f"\n{where}")
    if options.write:
        write(PAGE, "\n".join([where, *bench.pages]))
    return 1 if bench.mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
