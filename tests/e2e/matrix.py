"""Every kind of client with every kind of backend, through the proxy: what works, as a table.

``python -m tests.e2e.matrix``, or ``make matrix``. The table is written to ``docs/compatibility.md``; a failure that
was not there before makes the exit status 1.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import react

from tests.e2e.actors import ROOT, Backend, Client, ClientProcess, Proxy
from tests.e2e.kinds import (
    BOTH,
    EVERYTHING_SSE,
    EVERYTHING_STREAMABLE,
    FASTMCP,
    FASTMCP_STATELESS,
    MODERN,
    PROXY,
    PYTHON2_MODERN,
    PYTHON2_STREAMABLE,
    PYTHON_SSE,
    PYTHON_STREAMABLE,
    SSE,
    STREAMABLE,
    TYPESCRIPT2_AUTO,
    TYPESCRIPT2_BOTH,
    TYPESCRIPT2_MODERN,
    TYPESCRIPT2_STATELESS,
    TYPESCRIPT_SSE,
    TYPESCRIPT_STREAMABLE,
    BackendKind,
    ClientKind,
)
from tests.e2e.processes import until

reactor: Any = _reactor

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- begin: make matrix -->\n", "<!-- end: make matrix -->\n"
#: Seconds that one feature may take, and how many cells are under way at the same time.
LIMIT, AT_ONCE = 30.0, 2
SETTINGS = {"RECONNECT_DELAY": "0.2", "MAX_RECONNECT_ATTEMPTS": "100", "DRAIN_TIMEOUT": "1"}

CLIENTS: dict[str, ClientKind] = {
    "Python 1.x, HTTP+SSE": PYTHON_SSE,
    "Python 1.x, Streamable": PYTHON_STREAMABLE,
    "Python 2.x, legacy": PYTHON2_STREAMABLE,
    "Python 2.x, 2026-07-28": PYTHON2_MODERN,
    "TypeScript 1.x, HTTP+SSE": TYPESCRIPT_SSE,
    "TypeScript 1.x, Streamable": TYPESCRIPT_STREAMABLE,
    "TypeScript 2.x, auto": TYPESCRIPT2_AUTO,
}
BACKENDS: dict[str, BackendKind] = {
    "HTTP+SSE only (Python 1.x)": SSE,
    "Streamable only (Python 1.x)": STREAMABLE,
    "both eras (Python 2.x)": BOTH,
    "2026-07-28 only (Python 2.x)": MODERN,
    "both eras (TypeScript 2.x)": TYPESCRIPT2_BOTH,
    "both eras, without sessions (TypeScript 2.x)": TYPESCRIPT2_STATELESS,
    "2026-07-28 only (TypeScript 2.x)": TYPESCRIPT2_MODERN,
    "FastMCP": FASTMCP,
    "FastMCP, stateless": FASTMCP_STATELESS,
    "server-everything, HTTP+SSE": EVERYTHING_SSE,
    "server-everything, Streamable": EVERYTHING_STREAMABLE,
}
#: Those that offer everything; the others have tools, and some a question.
FULL = (SSE, STREAMABLE, BOTH, MODERN, TYPESCRIPT2_BOTH, TYPESCRIPT2_STATELESS, TYPESCRIPT2_MODERN)


NOT_OFFERED = "the server does not offer it"
WITHOUT_SESSIONS = "this server has no sessions for clients of older revisions"
#: Why not, where it is the server's doing.
OF_SERVERS = (NOT_OFFERED, WITHOUT_SESSIONS)


class NotPossible(Exception):
    """The client or the backend has no such thing; the text says which."""


@define
class Cell:
    """One client with one backend."""

    client_kind: ClientKind
    backend_kind: BackendKind
    backend: Backend
    client: Client
    results: dict[str, str] = field(factory=dict)

    def needs(self, *, full: bool = False, question: bool = False, session: bool = False) -> None:
        """Give up here unless the backend offers this.

        :param session: it is something that clients of older revisions need a session for.
        """
        if session and not self.backend_kind.has_sessions and self.client_kind.transport != "modern":
            raise NotPossible(WITHOUT_SESSIONS)
        if (full and self.backend_kind not in FULL) or (question and not self.backend_kind.asks):
            raise NotPossible(NOT_OFFERED)

    async def listing(self) -> None:
        """The tools."""
        assert self.backend_kind.mutation("").tool in await self.client.do("list")

    async def call(self) -> None:
        """A call."""
        call = self.backend_kind.echo("hällo")
        assert (await self.client.call(call.tool, **call.arguments)) == call.text

    async def read(self) -> None:
        """A resource, and the list of them."""
        self.needs(full=True)
        assert await self.client.do("resources")
        assert await self.client.do("read", uri="note://open") == f"note://open of {self.backend.pid}"

    async def prompt(self) -> None:
        """A prompt, and the list of them."""
        self.needs(full=True)
        assert await self.client.do("prompts") == ["greet"]
        assert await self.client.do("prompt", name="greet", arguments={"who": "Ann"}) == "Greet Ann."

    async def progress(self) -> None:
        """Reports, and then the result."""
        self.needs(full=True)
        self.backend.shut_gate("result")

        async def reported() -> int:
            if self.client_kind is PYTHON2_MODERN:
                return len(await self.client.do("reported"))
            return len(await self.client.seen("notifications/progress"))

        async def all_reported() -> bool:
            return await reported() >= before + 3

        before = await reported()
        counting = self.client.start_call("count", to=3, gate="result")
        await until(all_reported, "all reports have arrived")  # in a burst, a client handles them in any order
        self.backend.open_gate("result")
        assert (await counting).get() == {"text": "counted to 3", "progress": [1, 2, 3]}

    async def sampling(self) -> None:
        """The backend asks for a completion."""
        self.needs(full=True, session=True)
        assert await self.client.call("ask", kind="sampling") == "blue"

    async def elicitation(self) -> None:
        """The backend asks the user."""
        self.needs(question=True, session=True)
        if self.client_kind.transport == "modern" and self.backend_kind is FASTMCP:
            raise NotPossible("without a session this server has no way to ask")
        assert await self.client.call("ask", kind="elicitation") == "accept: blue"

    async def subscription(self) -> None:
        """A resource has changed."""
        self.needs(full=True, session=True)
        is_modern = self.client_kind.transport == "modern"
        if "subscription" not in self.results:
            await (
                self.client.do("listen", uris=["note://a"])
                if is_modern
                else self.client.do("subscribe", uri="note://a")
            )
        before = await self._told()
        await until(lambda: self.backend.touch("note://a"), "the backend has a subscriber")

        async def told() -> bool:
            return await self._told() > before

        await until(told, "the client is told")

    async def _told(self) -> int:
        if self.client_kind.transport == "modern":
            return len(await self.client.do("events"))
        return len(await self.client.seen("notifications/resources/updated"))

    async def cancellation(self) -> None:
        """A call that is not wanted any more, beside one that is."""
        self.needs(full=True, session=True)
        self.backend.shut_gate("cancelled")
        line = f"unwanted {self.backend.pid}"
        self.client.start_call("append", line=line, gate="cancelled")
        await until(lambda: line in self.backend.ledger(), "the call is under way")
        await self.client.do("cancel", tool="append")
        await until(lambda: f"cancelled {line}" in self.backend.ledger(), "the backend has cancelled it")
        self.backend.open_gate("cancelled")

    async def restart(self) -> None:
        """SIGKILL, and the next process."""
        await self.backend.restart("KILL")

    async def held(self) -> None:
        """A call while nobody is there."""
        await self.backend.stop("KILL")
        call = self.backend_kind.echo("held")
        held = self.client.start(**call.command)
        await self.backend.start()
        assert (await held).get()["text"] == call.text

    async def in_flight(self) -> None:
        """A mutation that the backend takes to its grave: the client is told, and it is not made again."""
        mutation = self.backend_kind.mutation("once")
        if self.backend_kind.is_ours:
            self.backend.shut_gate("append")
        lost = self.client.start(**mutation.command)

        def seen() -> bool:
            if self.backend_kind.is_ours:
                return "once" in self.backend.ledger()
            return any(call["params"].get("name") == mutation.tool for call in self.backend.received("tools/call"))

        await until(seen, "the mutation is under way")
        await self.backend.stop("KILL")
        error = (await lost).error
        assert error is not None and error.code == -31002, error
        if self.backend_kind.is_ours:
            self.backend.open_gate("append")
        await self.backend.start()
        await self.call()
        if self.backend_kind.is_ours:
            assert self.backend.ledger().count("once") == 1


#: What is tried, in this order; what follows the restart is tried on the session from before.
FEATURES: dict[str, Callable[[Cell], Awaitable[None]]] = {
    "tools": Cell.listing,
    "call": Cell.call,
    "read": Cell.read,
    "prompt": Cell.prompt,
    "progress": Cell.progress,
    "sampling": Cell.sampling,
    "elicitation": Cell.elicitation,
    "subscription": Cell.subscription,
    "cancellation": Cell.cancellation,
    "restart": Cell.restart,
    "call again": Cell.call,
    "tools again": Cell.listing,
    "read again": Cell.read,
    "prompt again": Cell.prompt,
    "progress again": Cell.progress,
    "sampling again": Cell.sampling,
    "elicitation again": Cell.elicitation,
    "subscription again": Cell.subscription,
    "cancellation again": Cell.cancellation,
    "held call": Cell.held,
    "call in flight": Cell.in_flight,
}


async def limited(doing: Awaitable[None]) -> str:
    """Do something in time; return ``ok``, ``-`` and a reason, or why it failed."""

    async def do() -> None:
        await doing

    try:
        await Deferred.fromCoroutine(do()).addTimeout(LIMIT, reactor)
    except NotPossible as error:
        return f"- {error}"
    except Exception as error:
        return f"failed: {type(error).__name__} {error!s:.150}".strip().replace("\n", " ").replace("|", "/")
    return "ok"


async def run_cell(client_kind: ClientKind, backend_kind: BackendKind, folder: Path) -> dict[str, str]:
    """Try everything with this pair; return what came of it."""
    folder.mkdir()
    backend = Backend(backend_kind, folder)
    proxy = Proxy(PROXY, backend, folder, SETTINGS)
    process = ClientProcess(client_kind.program(), folder)
    cell = Cell(client_kind, backend_kind, backend, Client(client_kind, process, "client"))

    async def connect() -> None:
        await backend.start()
        await until(proxy.health, "the proxy is up")
        (await cell.client.start_connect(proxy.port)).get()

    try:
        cell.results["connect"] = await limited(connect())
        if cell.results["connect"] == "ok":
            for name, feature in FEATURES.items():
                first = cell.results.get(name.removesuffix(" again"), "ok")
                cell.results[name] = first if first.startswith("-") else await limited(feature(cell))
    finally:
        await process.stop("KILL")
        await proxy.stop()
        await backend.end()
    if "Traceback" in proxy.output:
        cell.results["log"] = "failed: the proxy has logged an exception"
    return cell.results


Results = dict[tuple[str, str], dict[str, str]]


def table(results: Results) -> tuple[str, list[str]]:
    """Return the table, and a line for each failure."""
    lines = ["| | " + " | ".join(CLIENTS) + " |", "|---" * (len(CLIENTS) + 1) + "|"]
    failures = []
    for backend in BACKENDS:
        shown = []
        for client in CLIENTS:
            cell = results.get((client, backend), {})
            tried = {name: result for name, result in cell.items() if not result.startswith("-")}
            failed = {name: result for name, result in tried.items() if result != "ok"}
            failures += [f"- {client} with {backend}: {name} {result}" for name, result in failed.items()]
            shown.append(f"{len(tried) - len(failed)} of {len(tried)}" if tried else "not tried")
        lines.append(f"| {backend} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n", failures


def page(results: Results) -> tuple[str, list[str]]:
    """Return what belongs between the markers, and the failures."""
    text, failures = table(results)
    told = "\n".join(failures) if failures else "None."
    skipped: dict[tuple[str, str], dict[str, None]] = {}
    for (client, backend), cell in results.items():
        for name, result in cell.items():
            why = result.removeprefix("- ")
            if why != result and not name.endswith(" again"):
                is_of_server = why in OF_SERVERS
                what = (backend, why) if is_of_server else (name, why)
                skipped.setdefault(what, {})[name if is_of_server else f"{client} with {backend}"] = None
    missing = sorted(f"- {what} ({why}): {', '.join(sorted(where))}" for (what, why), where in skipped.items())
    offered = "\n".join(missing)
    return f"{text}\n### Failures\n\n{told}\n\n### What was not tried, and why\n\n{offered}\n", failures


def new_failures(failures: list[str], old: str) -> list[str]:
    """Return the failures whose cell and feature had none before."""

    def place(line: str) -> str:
        return line.partition(" failed:")[0]

    known = {place(line) for line in old.splitlines()}
    return [line for line in failures if place(line) not in known]


async def run(folder: Path) -> int:
    """Fill the table, write it, and return the exit status."""
    results: Results = {}
    semaphore = DeferredSemaphore(AT_ONCE)

    async def one(client: str, backend: str) -> None:
        name = re.sub(r"\W+", "-", f"{client} {backend}")
        results[client, backend] = await run_cell(CLIENTS[client], BACKENDS[backend], folder / name)
        bad = [f"{name} {result}" for name, result in results[client, backend].items() if result.startswith("failed")]
        print(f"{client} with {backend}: {'; '.join(bad) or 'ok'}", flush=True)

    await gatherResults(
        [
            semaphore.run(lambda c=client, b=backend: Deferred.fromCoroutine(one(c, b)))
            for backend in BACKENDS
            for client in CLIENTS
        ]
    )
    text, failures = page(results)
    whole = PAGE.read_text(encoding="utf-8")
    head, _, rest = whole.partition(BEGIN)
    old, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}{text}{END}{tail}", encoding="utf-8")
    print(text)
    return 1 if new_failures(failures, old) else 0


def main() -> None:
    """Run it."""
    print(f"Python SDK {version('mcp')}, at most {AT_ONCE} at the same time")

    def started(_: Any) -> Deferred[None]:
        async def filled() -> None:
            with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
                sys.exit(await run(Path(folder)))

        return Deferred.fromCoroutine(filled())

    react(started)


if __name__ == "__main__":
    main()
