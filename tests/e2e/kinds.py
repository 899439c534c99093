"""The kinds of clients and of backends: which SDK, and which transport."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

from attrs import frozen

from tests.e2e.processes import Command, Module, Program

HERE = Path(__file__).parent
TYPESCRIPT = HERE / "typescript"


@frozen
class ClientKind:
    """A kind of clients.

    :param transport: what it speaks to the proxy, as `connect` calls it.
    :param program: returns the driver of its SDK.
    """

    name: str
    transport: str
    program: Callable[[], Program]

    @property
    def path(self) -> str:
        """Where the proxy serves it."""
        return {"sse": "/mcp/sse", "streamable": "/mcp", "modern": "/mcp"}[self.transport]


@frozen
class Call:
    """A tool call: what it needs, and what it brings."""

    tool: str
    arguments: dict[str, Any]
    text: str = ""

    @property
    def command(self) -> dict[str, Any]:
        """As a client is told to do it."""
        return {"do": "call", "tool": self.tool, "arguments": self.arguments}

    @property
    def params(self) -> dict[str, Any]:
        """As it arrives."""
        return {"name": self.tool, "arguments": self.arguments}


def _echo(text: str) -> Call:
    return Call("echo", {"text": text}, text)


def _append(line: str) -> Call:
    return Call("append", {"line": line, "gate": "append"})


@frozen
class BackendKind:
    """A kind of backends.

    :param arguments: what the program gets besides port and folder.
    :param is_ours: whether it does what a test says to it through its folder, and has a health page.
    :param asks: whether it has a tool that asks the client a question.
    :param has_sessions: whether it can ask clients of older revisions, which takes a session.
    :param echo: makes a call that is answered at once.
    :param mutation: makes a call that is in flight until the gate is opened, or for ever.
    """

    name: str
    transport: str
    program: Callable[[], Program]
    arguments: tuple[str, ...]
    path: str
    is_ours: bool = True
    asks: bool = True
    has_sessions: bool = True
    echo: Callable[[str], Call] = _echo
    mutation: Callable[[str], Call] = _append


def python() -> str:
    """The interpreter with version 1 of the Python SDK: this one."""
    return sys.executable


def python2() -> str:
    """The interpreter with version 2, in an environment of its own inside of ours.

    :raises AssertionError: there is none; the message says how to get it.
    """
    found = Path(sys.prefix, "sdk2", "bin", "python")
    assert found.exists(), "version 2 of the Python SDK is not installed; `make test` does it"
    return str(found)


def node(*words: str, packages: Iterable[str] = ("sdk", "client", "server-everything")) -> Command:
    """A program for Node.js.

    :param packages: of the SDK, which it needs.
    :raises AssertionError: something is missing; the message says how to get it.
    """
    found = shutil.which("node")
    assert found, "the tests against the TypeScript SDK need Node.js 20 or later, and there is no `node`"
    installed = TYPESCRIPT / "node_modules" / "@modelcontextprotocol"
    for name in packages:
        assert (installed / name).is_dir(), f"{name} is not installed: npm --prefix tests/e2e/typescript ci"
    return Command([found, *words])


def _python_client() -> Program:
    return Module(python(), "tests.e2e.python_client")


def _python2_client() -> Program:
    return Module(python2(), "tests.e2e.python_client")


def _typescript_client() -> Program:
    return node(str(TYPESCRIPT / "client.mjs"))


def _typescript2_client() -> Program:
    return node(str(TYPESCRIPT / "client2.mjs"))


def _typescript2_auto_client() -> Program:
    return node(str(TYPESCRIPT / "client2.mjs"), "auto")


#: The proxy, already imported, and as its users start it: by the console script, wherever that is installed.
PROXY = Module(python(), "tests.e2e.proxy_program")
INSTALLED_PROXY = Command([python(), "-c", "from mcp_proxy.tap import main; main()"])

PYTHON_SSE = ClientKind("PythonSSE", "sse", _python_client)
PYTHON_STREAMABLE = ClientKind("PythonStreamable", "streamable", _python_client)
TYPESCRIPT_SSE = ClientKind("TypeScriptSSE", "sse", _typescript_client)
TYPESCRIPT_STREAMABLE = ClientKind("TypeScriptStreamable", "streamable", _typescript_client)
PYTHON2_SSE = ClientKind("Python2SSE", "sse", _python2_client)
PYTHON2_STREAMABLE = ClientKind("Python2Streamable", "streamable", _python2_client)
PYTHON2_MODERN = ClientKind("Python2Modern", "modern", _python2_client)
TYPESCRIPT2_SSE = ClientKind("TypeScript2SSE", "sse", _typescript2_client)
TYPESCRIPT2_AUTO = ClientKind("TypeScript2Auto", "modern", _typescript2_auto_client)
TYPESCRIPT2_STREAMABLE = ClientKind("TypeScript2Streamable", "streamable", _typescript2_client)

#: Clients of the SDKs' versions 1, and of all versions.
CLIENTS = (PYTHON_SSE, PYTHON_STREAMABLE, TYPESCRIPT_SSE, TYPESCRIPT_STREAMABLE)
ALL_CLIENTS = (*CLIENTS, PYTHON2_SSE, PYTHON2_STREAMABLE, TYPESCRIPT2_SSE, TYPESCRIPT2_STREAMABLE)


def _python_backend() -> Program:
    return Module(python(), "tests.e2e.backend_server")


def _python2_backend() -> Program:
    return Module(python2(), "tests.e2e.backend_server2")


def _modern_backend() -> Program:
    return Module(python2(), "tests.e2e.backend_modern")


def _typescript2_backend() -> Program:
    return node(str(TYPESCRIPT / "server2.mjs"), packages=("server", "node"))


def _everything() -> Program:
    server = TYPESCRIPT / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    return node("--import", (TYPESCRIPT / "everything.mjs").as_uri(), str(server))


def _everything_kind(name: str, transport: str, mode: str, path: str) -> BackendKind:
    return BackendKind(
        name,
        transport,
        _everything,
        (mode,),
        path,
        is_ours=False,
        asks=False,
        echo=lambda text: Call("echo", {"message": text}, f"Echo: {text}"),
        # It takes no text; its duration tells whose it is.
        mutation=lambda line: Call(
            "trigger-long-running-operation", {"duration": 1000 + crc32(line.encode()) % 1_000_000, "steps": 1}
        ),
    )


def _typescript2_kind(name: str, mode: str, *, has_sessions: bool = True) -> BackendKind:
    return BackendKind(name, "streamable", _typescript2_backend, (mode,), "/mcp", has_sessions=has_sessions)


def _python2_kind(name: str, server: str, *, asks: bool = True) -> BackendKind:
    return BackendKind(name, "streamable", _python2_backend, (server,), "/mcp", asks=asks)


SSE = BackendKind("SSE", "sse", _python_backend, ("--transport", "sse"), "/backend/sse")
STREAMABLE = BackendKind("Streamable", "streamable", _python_backend, ("--transport", "streamable"), "/backend/mcp")
PYTHON2 = _python2_kind("Python2", "mcp")
FASTMCP = _python2_kind("FastMCP", "fastmcp")
FASTMCP_STATELESS = _python2_kind("FastMCPStateless", "stateless", asks=False)
EVERYTHING_SSE = _everything_kind("EverythingSSE", "sse", "sse", "/sse")
EVERYTHING_STREAMABLE = _everything_kind("EverythingStreamable", "streamable", "streamableHttp", "/mcp")

MODERN = BackendKind("Modern", "streamable", _modern_backend, (), "/mcp")
BOTH = BackendKind("Both", "streamable", _modern_backend, ("--both",), "/mcp")
TYPESCRIPT2_BOTH = _typescript2_kind("TypeScript2Both", "sessions")
TYPESCRIPT2_STATELESS = _typescript2_kind("TypeScript2Stateless", "stateless", has_sessions=False)
TYPESCRIPT2_MODERN = _typescript2_kind("TypeScript2Modern", "modern")

#: Backends of the Python SDK 1.x, which can do all that the scenarios need, and all backends.
BACKENDS = (SSE, STREAMABLE)
ALL_BACKENDS = (
    *(*BACKENDS, PYTHON2, FASTMCP, FASTMCP_STATELESS, EVERYTHING_SSE, EVERYTHING_STREAMABLE),
    *(MODERN, TYPESCRIPT2_BOTH, TYPESCRIPT2_STATELESS, TYPESCRIPT2_MODERN),
)

Pairs = Iterable[tuple[ClientKind, BackendKind]]

#: The pairs that have to stand all scenarios, and those that need no proxy; with ``E2E_CLIENTS=all`` there are more.
PAIRS = tuple(product(ALL_CLIENTS if os.environ.get("E2E_CLIENTS") == "all" else CLIENTS, BACKENDS))
DIRECT_PAIRS = tuple((client, backend) for client, backend in PAIRS if client.transport == backend.transport)
#: The pairs, of all others, where no other client's connection tells the proxy what has become of the backend.
LONELY_PAIRS = (
    (PYTHON_SSE, EVERYTHING_STREAMABLE),
    (PYTHON_STREAMABLE, FASTMCP_STATELESS),
    (TYPESCRIPT_SSE, FASTMCP),
    (TYPESCRIPT_STREAMABLE, EVERYTHING_SSE),
    (PYTHON2_STREAMABLE, PYTHON2),
    (PYTHON2_STREAMABLE, EVERYTHING_STREAMABLE),
    (TYPESCRIPT2_STREAMABLE, FASTMCP),
    (TYPESCRIPT2_STREAMABLE, STREAMABLE),
)
