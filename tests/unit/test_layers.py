"""The layers: who may import whom. ``service`` puts together fronts, sessions and links; the arrows run one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

import mcp_proxy

ROOT = Path(mcp_proxy.__file__).parent
MAX_LINES = 450

#: What each package, or module of its own, may import of ours beside itself. What is not named here has no place yet.
ARROWS: dict[str, set[str]] = {
    "": set(),
    "wire": set(),
    "timers": set(),
    "awake": set(),
    "direct": {"awake"},
    "turn": set(),
    "files": set(),
    "fast": {"awake"},
    "logs": set(),
    "config": set(),
    "metrics": {"wire", "session", ""},
    "tracing": {"metrics", "session", "wire", ""},
    "session": {"wire", "timers", ""},
    "backend": {
        "wire",
        "timers",
        "session.interfaces",
        "session.exchanges",
        "session.bridge",
        "session.meter",
        "direct",
        "turn",
    },
    "frontend": {"wire", "session", "direct", "turn", ""},
    "service": {"wire", "session", "backend", "frontend", "config", "metrics", "tracing"},
    "tap": {"service", "config", "direct", "fast", "files", "logs", ""},
    "demo": {"config"},
}
#: What each may import of others beside the standard library.
VALUES = {"attrs", "msgspec"}
OTHERS: dict[str, set[str]] = {
    "": set(),
    "wire": VALUES,
    "session": {*VALUES, "automat", "cryptography"},
    "timers": {"twisted.internet.interfaces"},
    "awake": set(),
    "direct": {"twisted.internet", "twisted.logger"},
    "turn": {"twisted.internet.interfaces", "twisted.logger"},
    "files": set(),
    "fast": {"twisted", "uvloop", "zope.interface"},
    "logs": {"twisted.logger", "zope.interface"},
    "config": {"attrs", "dotenv", "twisted.internet.endpoints"},
    "metrics": {"prometheus_client"},
    "tracing": {"opentelemetry"},
    "backend": {*VALUES, "OpenSSL", "cryptography", "httptools", "hyperlink", "treq", "twisted", "zope.interface"},
    "frontend": {*VALUES, "klein", "twisted", "werkzeug", "zope.interface"},
    "service": {"twisted"},
    "tap": {"twisted"},
    "demo": {"httpx", "mcp", "starlette", "uvicorn"},
}
#: The parts of a session that act; the others are machines and values, which know nothing of Twisted.
SHELLS = {
    "session.session", "session.courier", "session.answers", "session.deliveries", "session.uplink",
    "session.group", "session.pool", "session.pooled",
}  # fmt: skip
SHELL_TWISTED = {"twisted.internet.defer", "twisted.internet.interfaces", "twisted.logger"}
#: What speaks to the network; none of it is for the wire or the session, by whatever way.
NETWORK = {"socket", "ssl", "select", "selectors", "asyncio", "http.client", "http.server", "urllib.request"}
#: What makes the difference between a moment and a value: the wire knows no time.
CLOCKS = {"time", "datetime", "sched"}


@frozen
class Module:
    """One of our modules; ``ours`` and ``others`` are the modules that it imports, at any depth of its code."""

    name: str
    lines: int
    ours: frozenset[str]
    others: frozenset[str]

    @property
    def layer(self) -> str:
        """The package that it is in, or itself."""
        return self.name.partition(".")[0]


def is_in(name: str, homes: set[str]) -> bool:
    """Whether a module is one of these or inside one of them."""
    return any(name == home or (home and name.startswith(f"{home}.")) for home in homes)


def imported(tree: ast.AST, package: list[str], known: set[str]) -> Iterator[str]:
    """The full names of the modules that a text imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if inner in known or inner == "twisted.internet.reactor" else source


def read_modules() -> dict[str, Module]:
    """All our modules, by their names without the package's; its own ``__init__`` has the empty name."""
    files = {path: path.relative_to(ROOT.parent).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))}
    parts = {path: [*name[:-1]] if name[-1] == "__init__" else [*name] for path, name in files.items()}
    known = {".".join(name) for name in parts.values()}
    modules = {}
    for path, name in parts.items():
        text = path.read_text()
        names = set(imported(ast.parse(text), [*files[path][:-1]], known))
        ours = {each for each in names if is_in(each, {"mcp_proxy"})}
        short = ".".join(name[1:])
        modules[short] = Module(
            short,
            text.count("\n"),
            frozenset(each.partition(".")[2] for each in ours),
            frozenset(names - ours - {"__future__"}),
        )
    return modules


def is_standard(name: str) -> bool:
    """Whether it comes with Python."""
    return name.partition(".")[0] in sys.stdlib_module_names


class Layers(SynchronousTestCase):
    modules = read_modules()

    def test_reader(self) -> None:
        """The reader of imports sees what the tests are about, in whatever form it is written."""
        text = (
            "import a.b\nfrom . import x, y\nfrom ..p import q\ndef f():\n  from twisted.internet import reactor, defer"
        )
        names = set(imported(ast.parse(text), ["mcp_proxy", "wire"], {"mcp_proxy.wire.x", "mcp_proxy.p.q"}))
        expected = {"a.b", "mcp_proxy.wire.x", "mcp_proxy.wire", "mcp_proxy.p.q"}
        self.assertEqual(names, expected | {"twisted.internet.reactor", "twisted.internet"})
        self.assertIn("session.truth", self.modules["session.session"].ours)
        self.assertIn("", self.modules["frontend.status"].ours)
        self.assertIn("service", self.modules["tap"].ours, "an import inside a function counts")

    def test_every_module_has_a_place(self) -> None:
        """The tests know every package and module."""
        layers = {module.layer for module in self.modules.values()}
        self.assertEqual((layers, set(OTHERS)), (set(ARROWS), set(ARROWS)))

    def test_arrows(self) -> None:
        """No module imports one of ours that its layer may not know; fronts and links do not know each other."""
        wrong = {
            (module.name, target)
            for module in self.modules.values()
            for target in module.ours
            if not is_in(target, {module.layer or "-", *ARROWS[module.layer]})
        }
        self.assertEqual(wrong, set())

    def test_others(self) -> None:
        """No module imports a library that is not for its layer; the session's machines know nothing of Twisted."""
        wrong = {
            (module.name, target)
            for module in self.modules.values()
            for target in module.others
            if not is_standard(target)
            and not is_in(target, OTHERS[module.layer] | (SHELL_TWISTED if module.name in SHELLS else set()))
        }
        self.assertEqual(wrong, set())

    def test_pure(self) -> None:
        """The wire and the session open no sockets, and the wire reads no clock."""
        wrong = {
            (module.name, target)
            for module in self.modules.values()
            if module.layer in ("wire", "session")
            for target in module.others
            if is_in(target, NETWORK | (CLOCKS if module.layer == "wire" else set()))
        }
        self.assertEqual(wrong, set())

    def test_reactor(self) -> None:
        """The global reactor is the command line's business alone; everybody else is given what they need."""
        owners = {module.name for module in self.modules.values() if "twisted.internet.reactor" in module.others}
        self.assertEqual(owners, {"tap"})

    def test_no_cycles(self) -> None:
        """No module needs, by whatever detour, itself."""
        order = TopologicalSorter({module.name: module.ours for module in self.modules.values()})
        self.assertEqual(set(order.static_order()), set(self.modules))

    def test_length(self) -> None:
        """A module is one noun: one that has grown too long wants to be two."""
        self.assertEqual([(m.name, m.lines) for m in self.modules.values() if m.lines > MAX_LINES], [])

    def test_plugin(self) -> None:
        """What twistd imports for every command tells of us and imports nothing of ours."""
        plugins = ROOT.parent / "twisted" / "plugins"
        if plugins.is_dir():
            (path,) = plugins.glob("mcp_proxy*.py")
            names = set(imported(ast.parse(path.read_text()), [], set()))
            self.assertEqual(names, {"twisted.application.service", "twisted.application.reactors"})
