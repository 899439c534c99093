"""Writes docs/machines.md: the lifecycle of a session as a diagram, and as a table, from the program's own table."""

from __future__ import annotations

import inspect
from collections import defaultdict
from pathlib import Path

from mcp_proxy.session.lifecycle import TABLE, Effects, Lifecycle, Phase

HEAD = """# The lifecycle of a session

Made of `TABLE` in `mcp_proxy/session/lifecycle.py` by `python docs/machines.py`; do not edit. What the phases mean to
operators is told in [continuity.md](continuity.md#a-sessions-life). An input that has no row for a phase changes
nothing there.
"""


def page() -> str:
    """The whole page."""
    rows = "\n".join(
        f"| {phase.value} | {told} | {target.value} | {', '.join(effects)} |"
        for (phase, told), (target, *effects) in TABLE.items()
    )
    return (
        f"{HEAD}\n```mermaid\n{_diagram()}\n```\n\n"
        f"## Inputs\n\n{_words(Lifecycle)}\n\n## Effects\n\n{_words(Effects)}\n\n"
        f"## Transitions\n\n| phase | input | next phase | effects, in order |\n|---|---|---|---|\n{rows}\n"
    )


def _diagram() -> str:
    arrows: defaultdict[tuple[Phase, Phase], list[str]] = defaultdict(list)
    for (phase, told), (target, *_) in TABLE.items():
        arrows[phase, target].append(told)
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.DORMANT.value}"]
    lines += [f"    {phase.value} --> {target.value}: {', '.join(told)}" for (phase, target), told in arrows.items()]
    return "\n".join([*lines, f"    {Phase.CLOSED.value} --> [*]"])


def _words(protocol: type) -> str:
    methods = {name: each for name, each in vars(protocol).items() if inspect.isfunction(each) and name[0] != "_"}
    return "\n".join(f"- `{name}`: {inspect.getdoc(each)}" for name, each in methods.items())


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
