"""Imports run one way, and few places know which HTTP implementation there is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mcp_proxy

ROOT = Path(mcp_proxy.__file__).parent
#: What each room may import of ours, besides itself.
ARROWS = {
    "wire": set(),
    "timers": set(),
    "config": set(),
    "logs": set(),
    "session": {"wire", "timers"},
    "backend": {"session", "wire", "timers"},
    "frontend": {"session", "wire", "timers"},
    "service": {"frontend", "backend", "session", "wire", "timers", "config"},
    "tap": {"service", "config", "logs"},
    "demo": {"config"},
}
#: The only places that name the HTTP implementation.
HTTP = {"frontend/app.py", "frontend/stream.py", "backend/http.py"}
#: What makes state machines hard to test: networks, timers, whatever fires later.
OUTSIDE = ("twisted", "treq", "klein", "socket", "asyncio", "time")
#: The modules of a session that have effects; all others there are pure.
EFFECTS = {"session.py", "courier.py", "uplink.py", "interfaces.py", "registry.py"}


def modules() -> Iterator[tuple[str, str, list[str]]]:
    """Every module: its room, its path, and all that it imports."""
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT)
        if path.name == "__init__.py":
            continue
        names: list[str] = []
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield path.parts[0].removesuffix(".py"), path.as_posix(), names


class Layers(SynchronousTestCase):
    def test_arrows(self) -> None:
        """No room imports what is above it."""
        for room, path, names in modules():
            parts = [name.split(".") for name in names]
            used = {name[1] for name in parts if name[0] == "mcp_proxy" and len(name) > 1} - {"__version__"}
            self.assertEqual(used - ARROWS[room] - {room}, set(), path)

    def test_rooms(self) -> None:
        """Every room is known here."""
        self.assertEqual({room for room, _, _ in modules()}, set(ARROWS))

    def test_http(self) -> None:
        """Another HTTP implementation can take the place of this one without touching a session, front or link."""
        for _, path, names in modules():
            used = [name for name in names if name.split(".")[0] in ("klein", "treq") or name.startswith("twisted.web")]
            self.assertEqual(path in HTTP, bool(used), (path, used))

    def test_pure(self) -> None:
        """What decides has no effects, so that every order of events can be tried in it."""
        for room, path, names in modules():
            if room == "wire" or (room == "session" and Path(path).name not in EFFECTS):
                self.assertEqual([name for name in names if name.split(".")[0] in OUTSIDE], [], path)
            if room == "session":
                banned = ("twisted.internet.reactor", "twisted.internet.endpoints", "twisted.web", "treq", "klein")
                self.assertEqual([name for name in names if name.startswith(banned)], [], path)

    def test_reactor(self) -> None:
        """Only the command line takes the global reactor; everybody else is given one."""
        users = {path for _, path, names in modules() if "twisted.internet.reactor" in names}
        self.assertEqual(users, {"tap.py"})

    def test_size(self) -> None:
        """A module that has grown long wants to be two."""
        for _, path, _ in modules():
            length = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            self.assertLessEqual(length, 460, path)
