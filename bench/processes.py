"""The processes that are measured, and the stub behind each: how they are started, pinned, weighed and ended."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "bench" / "peers"
ENVIRONMENTS = ROOT / ".venv" / "bench"
START_WITHIN = 30.0
#: The proxy has the first core for itself, the stub and the load share what is left.
CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE = {CORES[0]}
STUB_CORE = set(CORES[1:2]) or PROXY_CORE
LOAD_CORE = set(CORES[2:3]) or STUB_CORE


class Missing(Exception):
    """A program that is not installed; the message says how it can be."""


class Process:
    """A process on one core, with a log of its own; whatever it starts ends with it."""

    def __init__(self, words: list[str], core: set[int], folder: Path, environ: Mapping[str, str]) -> None:
        def prepare() -> None:
            os.sched_setaffinity(0, core)
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

        self.log = folder / f"{Path(words[0]).name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                cwd=folder,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if "bench.stub" in words else log,
                stderr=log,
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.out = self._process.stdout
        self._is_ended = False

    def tree(self) -> list[int]:
        """Return the process and its descendants."""
        found = [self._process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    def cpu(self) -> float:
        """Return the seconds that the processes have computed.

        It is the clock behind the figures in /proc/PID/stat, which are rounded to 10 ms.
        """
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.tree())

    def memory(self) -> int:
        """Return the bytes that the processes have in memory."""
        pages = (Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in self.tree())
        return sum(map(int, pages)) * resource.getpagesize()

    def wait_for_port(self, port: int) -> None:
        """Wait until somebody listens."""
        deadline = time.monotonic() + START_WITHIN
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise Missing(f"it did not start: {self.log.read_text()[-2000:]}") from None
                time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it, and all that it has started; once is enough."""
        if self._is_ended:
            return
        self._is_ended = True
        try:
            os.killpg(self._process.pid, number)
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        except ProcessLookupError:
            self._process.wait()
        if self.out is not None:
            self.out.close()


class Stub:
    """The backend, which can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0
        self.start()
        self.listens()

    def start(self) -> None:
        """Start it, without waiting for it."""
        words = [sys.executable, "-m", "bench.stub", str(self.port)]
        self.process = Process(words, STUB_CORE, self._folder, {"PYTHONPATH": str(ROOT)})

    def listens(self) -> int:
        """Wait until it listens; return the moment when it began to (``time.monotonic_ns``)."""
        assert self.process.out is not None
        line = self.process.out.readline().split()
        if not line:
            raise Missing(f"the stub did not start: {self.process.log.read_text()[-2000:]}")
        self.port = int(line[0])
        return int(line[1])


@attrs.define
class Rig:
    """A stub, and what stands in front of it: ``port`` is where clients go."""

    subject: Subject
    stub: Stub
    proxy: Process | None
    port: int

    def cpu(self) -> float:
        """Return the seconds that the proxy has computed."""
        return self.proxy.cpu() if self.proxy is not None else 0.0

    def close(self) -> None:
        """End both."""
        if self.proxy is not None:
            self.proxy.end()
        self.stub.process.end(signal.SIGKILL)


#: What starts a proxy: given the backend's port, its own, and a folder, the words of a command and its environment.
Command = Callable[[int, int, Path], tuple[list[str], dict[str, str]]]


@attrs.frozen
class Subject:
    """Something that is measured; without a command it is the stub itself.

    :param sse: where it speaks HTTP+SSE, if it does.
    :param is_slow: spares it the scenarios with thousands of sessions.
    """

    name: str
    command: Command | None
    sse: bytes | None = b"/mcp/sse"
    is_slow: bool = False

    def start(self, folder: Path, transport: str = "streamable") -> Rig:
        """Start it with a stub of its own."""
        stub = Stub(folder)
        if self.command is None:
            return Rig(self, stub, None, stub.port)
        port = free_port()
        home = Path(tempfile.mkdtemp(dir=folder))
        try:
            words, environ = self.command(stub.port, port, home)
            process = Process(words, PROXY_CORE, home, {"BACKEND_TRANSPORT": transport, **environ})
        except BaseException:
            stub.process.end(signal.SIGKILL)
            raise
        rig = Rig(self, stub, process, port)
        try:
            process.wait_for_port(port)
        except BaseException:
            rig.close()
            raise
        return rig


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


NGINX = """
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile {files};
error_log stderr warn; pid nginx.pid;
events {{ worker_connections {files}; }}
http {{
    access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 1h; client_max_body_size 0;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_buffering off; proxy_read_timeout 1h;
        }}
    }}
}}
"""


def find_nginx() -> str | None:
    """Return where nginx is; Debian's is not on everybody's PATH."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def nginx(backend: int, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return how nginx is started: one process, connections to the backend kept, nothing buffered."""
    program = find_nginx()
    if program is None:
        raise Missing("it is not installed (Debian: apt-get install nginx)")
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(backend=backend, port=port, files=files))
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(config)], {}


def ours(tree: Path, reactor: str = "twisted") -> Command:
    """Return how this proxy is started from a checkout."""

    def command(backend: int, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        words = [sys.executable, "-c", "from mcp_proxy.tap import main; main()"]
        settings = {
            "BACKEND_URL": f"http://127.0.0.1:{backend}",
            "PROXY_HOST": "127.0.0.1",
            "PROXY_PORT": str(port),
            "MAX_SESSIONS": "10000",
            "LOG_LEVEL": "warn",
            "REACTOR": reactor,
        }
        return words, {"PYTHONPATH": str(tree.resolve()), **settings}

    return command


def _peer(program: Path, *words: str) -> Command:
    """Return how a peer is started; in its words, BACKEND and PORT stand for the ports."""

    def command(backend: int, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        for needed in (program, *(Path(word) for word in words if word.startswith("/"))):
            if not needed.exists():
                raise Missing(f"{needed} is not there; `make bench PEERS=1` installs it")
        filled = [word.replace("BACKEND", str(backend)).replace("PORT", str(port)) for word in words]
        return [str(program), *filled], {}

    return command


URL = "http://127.0.0.1:BACKEND/mcp"
PYPI = ENVIRONMENTS / "mcp-proxy" / "bin" / "mcp-proxy"

DIRECT = Subject("direct", None)
REFERENCE = Subject("nginx", nginx)
OURS = [Subject("mcp-proxy (this)", ours(ROOT))]
if find_spec("uvloop"):
    OURS.append(Subject("this, with uvloop", ours(ROOT, "uvloop")))
PEER_SUBJECTS = [
    # It bridges stdio and HTTP only, so that two of them make a proxy from HTTP to HTTP.
    Subject(
        "mcp-proxy (PyPI)",
        _peer(PYPI, "--host", "127.0.0.1", "--port", "PORT", "--", str(PYPI), "--transport", "streamablehttp", URL),
        sse=None,
        is_slow=True,
    ),
    Subject(
        "mcp-proxy (npm)",
        _peer(Path(shutil.which("node") or "/usr/bin/node"), str(PEERS / "npm_proxy.mjs"), URL, "PORT"),
        sse=None,
        is_slow=True,
    ),
    Subject(
        "FastMCP",
        _peer(ENVIRONMENTS / "fastmcp" / "bin" / "python", str(PEERS / "fastmcp_proxy.py"), URL, "PORT"),
        sse=None,
        is_slow=True,
    ),
]
