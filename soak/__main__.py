"""Run many clients over hundreds of restarts: ``python -m soak --help``."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import table

from .run import GROWING, IDLE_TIMEOUT, ROOT, Report, Soak

PAGE = ROOT / "docs" / "reliability.md"
KINDS = ("dual", "legacy", "modern", "sse")
SHOWN = 20


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long the clients work (default: 5)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of what is decided at random")
    parser.add_argument("--clients", type=int, default=24, help="how many at the same time (default: 24)")
    parser.add_argument("--pause", type=float, default=0.15, help="seconds between a client's calls (default: 0.15)")
    parser.add_argument(
        "--backends", nargs="+", choices=KINDS, default=["dual"], help="what a backend may speak (default: dual)"
    )
    parser.add_argument("--folder", type=Path, help="where logs are kept (default: nowhere)")
    parser.add_argument("--write", action="store_true", help=f"write the figures to {PAGE.relative_to(ROOT)}")
    return parser.parse_args(words)


def percentile(values: Sequence[float], share: float) -> str:
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return f"{1000 * ordered[min(int(len(ordered) * share), len(ordered) - 1)]:.0f}" if ordered else "-"


def describe(report: Report, options: argparse.Namespace) -> str:
    """Return the figures as they are printed and written."""
    judge = report.judge
    calls = sum(number for name, number in judge.outcomes.items() if name.split(":")[0] in ("write", "read", "list"))
    rows = [
        ["minutes", f"{report.minutes:g}"],
        ["restarts of the backend", f"{report.restarts} ({report.killed} by SIGKILL)"],
        ["of these, longer than HOLD_TIMEOUT", str(report.long_outages)],
        ["connections dropped by clients", str(report.drops)],
        ["sessions", str(report.sessions)],
        ["calls", str(calls)],
        ["events and progress compared", str(judge.events)],
        ["**lost**", f"**{judge.lost}**"],
        ["**answered, told or carried out twice**", f"**{judge.doubled}**"],
        ["**failures of any kind**", f"**{len(judge.failures)}**"],
        ["calls made while nobody listened, with a result", str(len(report.waits))],
        ["ms from listening again to their result: p50", percentile(report.waits, 0.5)],
        ["p99", percentile(report.waits, 0.99)],
    ]
    outcomes = [[name, str(number)] for name, number in sorted(judge.outcomes.items())]
    figures = []
    for name in GROWING if report.samples else ():
        first, last = report.window(name)
        figures.append([name, *(f"{value:.0f}" for value in (report.before[name], first, last, report.after[name]))])
    return "\n".join(
        [
            f"Seed {report.seed}, {options.clients} clients at a time, backends: {', '.join(options.backends)}.\n",
            table(["", ""], rows),
            table(["what became of it", "how often"], outcomes),
            table(["the proxy", "before", "first third", "last third", "after all have gone"], figures),
        ]
    )


def write(text: str, backends: Sequence[str]) -> None:
    """Put the figures between the markers of the page: some are for backends of one kind, others for several."""
    name = "soak" if len(set(backends)) == 1 else "soak of several kinds"
    before, begin, rest = PAGE.read_text("utf-8").partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->\n")
    if not begin or not end:
        raise ValueError(f"{PAGE} has no markers")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def main() -> int:
    """Soak; status 1 tells of failures."""
    options = parse(sys.argv[1:])
    report = Report(options.seed, options.minutes)
    print(f"seed {options.seed}; it ends about {IDLE_TIMEOUT + 5:g} s after the clients", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak") as temporary:
        folder = options.folder.resolve() if options.folder else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(Soak(report, folder, options.clients, options.pause, options.backends).run())
        examples = (f"{name}\n    {history}\n" for name, history in sorted(report.judge.examples.items()))
        (folder / "examples").write_text("".join(examples))
    text = describe(report, options)
    print(f"\n{text}")
    for failure in report.judge.failures[:SHOWN]:
        print(f"FAILED {failure}")
    if len(report.judge.failures) > SHOWN:
        print(f"... and {len(report.judge.failures) - SHOWN} more")
    if options.write and not report.judge.failures:
        write(text, options.backends)
    return 1 if report.judge.failures else 0


if __name__ == "__main__":
    sys.exit(main())
