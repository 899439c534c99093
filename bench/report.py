"""What was measured, as tables in Markdown; and the page of the documentation that holds them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from .load import Tally
from .scenarios import Outage, Weight

BEGIN = "<!-- bench: begin -->\n"
END = "<!-- bench: end -->\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def short(number: float) -> str:
    """Return a number with three digits that count."""
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"


def beside(values: Mapping[str, float | None], name: str, reference: str) -> str:
    """Return a subject's value, and in brackets its ratio to the reference's."""
    value, other = values[name], values.get(reference)
    if value is None:
        return "-"
    ratio = f" ({short(value / other)})" if other and name != reference else ""
    return short(value) + ratio


def medians(rounds: Sequence[Tally], has_proxy: bool) -> dict[str, float | None]:
    """Return what a row says of a subject's rounds; without answers there is nothing to say."""
    with_answers = [tally for tally in rounds if tally.done]

    def median(value: Callable[[Tally], float], is_known: bool = True) -> float | None:
        return statistics.median(map(value, with_answers)) if with_answers and is_known else None

    return {
        "/s": median(lambda tally: tally.done / tally.elapsed),
        "p50 ms": median(lambda tally: tally.percentile(0.5)),
        "p99 ms": median(lambda tally: tally.percentile(0.99)),
        "CPU s per 1000": median(lambda tally: 1000 * tally.cpu / tally.done, has_proxy),
        "of a core": median(lambda tally: tally.cpu / tally.elapsed, has_proxy),
    }


def rounds_table(unit: str, results: Mapping[str, Sequence[Tally]], references: Sequence[str]) -> str:
    """Return the table of a scenario in rounds; the first of the references is what all is compared with."""
    rows = {name: medians(rounds, name != "direct") for name, rounds in results.items()}
    heads = list(next(iter(rows.values())))
    lines = []
    for name, row in rows.items():
        columns = {head: {each: rows[each][head] for each in rows} for head in heads}
        cells = [beside(columns[head], name, references[0] if head != "of a core" else "") for head in heads]
        mistakes = sum(tally.mistakes for tally in results[name])
        compared = [
            f"{row['CPU s per 1000'] / theirs:.2f}"
            if (theirs := rows[other]["CPU s per 1000"]) and row["CPU s per 1000"]
            else "-"
            for other in references[1:]
            if other in rows
        ]
        lines.append([name, *cells, str(mistakes), *compared])
    shown = [unit + head if head == "/s" else head for head in heads]
    return table(["", *shown, "mistakes", *(f"CPU, x {other}" for other in references[1:] if other in rows)], lines)


def problems(results: Mapping[str, Sequence[Tally]]) -> list[str]:
    """Return the first problem of each subject that had one."""
    firsts = {
        name: [tally.first_problem for tally in rounds if tally.first_problem] for name, rounds in results.items()
    }
    return [f"{name}: {found[0]}" for name, found in firsts.items() if found]


def weight_table(results: Mapping[str, Weight], reference: str) -> str:
    """Return the table of idle sessions: kB for each of them."""
    steps = sorted({step for weight in results.values() for step in weight.bytes_at} - {0})
    rows = []
    for name, weight in results.items():
        cells = [f"{weight.bytes_at[0] / 1e6:.0f}"]
        for step in steps:
            at = {each: other.each(step) / 1000 for each, other in results.items() if step in other.bytes_at}
            cells.append(beside(at, name, reference) if name in at else "-")
        is_whole = max(weight.bytes_at) == steps[-1]
        last = {each: other.marginal() / 1000 for each, other in results.items() if max(other.bytes_at) == steps[-1]}
        rows.append([name, *cells, beside(last, name, reference) if is_whole else "-"])
    heads = ["", "base MB", *(f"kB each, {step}" for step in steps), f"kB each, from {steps[-2]} on"]
    return table(heads, rows)


def outage_table(results: Mapping[str, Outage]) -> str:
    """Return the table of restarts."""
    rows = []
    for name, seen in results.items():
        waits = seen.waits
        median, most = (short(statistics.median(waits)), short(max(waits))) if waits else ("-", "-")
        answered = f"{len(waits)} of {len(waits) + seen.refused}"
        rows.append([name, answered, median, most, f"{seen.survivors} of {seen.sessions}"])
    heads = [
        "",
        "first calls while it was away, answered",
        "ms from listening to answer",
        "longest",
        "sessions that live",
    ]
    return table(heads, rows)


def machine(loads: Sequence[float], rounds: int, seconds: float, reference: str) -> str:
    """Describe in general words where and how it was measured."""
    models = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    versions = f"Python {platform.python_version()}, Twisted {version('twisted')}"
    return (
        f"{os.cpu_count()} cores ({models[0] if models else platform.machine()}), {versions}; "
        f"{rounds} rounds of {seconds:g} s, medians. "
        f"Load average meanwhile (the bench itself makes about 2): {min(loads):.1f} to {max(loads):.1f}. "
        f"In brackets: the ratio to {reference}.\n"
    )


def write(page: Path, text: str) -> None:
    """Put the text between the markers of a page."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no markers")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")
