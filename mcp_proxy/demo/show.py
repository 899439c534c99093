"""What the demo shows: the acts of the play, the timeline, and the verdict on it."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import textwrap
import time
from contextlib import AsyncExitStack
from pathlib import Path

from mcp import McpError

from mcp_proxy.demo.client import Client, connect
from mcp_proxy.demo.processes import Broken, Process, free_ports

#: The proxy's "the call may have run, or not; I did not repeat it".
OUTCOME_UNKNOWN = -31002
#: The whole play takes about 5 seconds; a proxy that loses an answer must not make it endless.
LIMIT = 40.0


class Show:
    """One run of the demo."""

    def __init__(self, server: Process, proxy: Process) -> None:
        self._server = server
        self._proxy = proxy
        self._started = time.monotonic()
        self._broken_promises: list[str] = []

    def say(self, who: str, what: str) -> None:
        """Print a line of the timeline."""
        start = f"{time.monotonic() - self._started:6.2f}s  {who:<7} "
        print(textwrap.fill(what, 100, initial_indent=start, subsequent_indent=" " * len(start)), flush=True)

    def expect(self, promise: str, kept: bool) -> None:
        """Note a promise that the verdict depends on."""
        if not kept:
            self._broken_promises.append(promise)

    async def play(self) -> bool:
        """Play all acts; return whether the client carried on."""
        await self._start_server()
        await self._proxy.start()
        port, pid = self._proxy.port, self._proxy.pid
        self.say("proxy", f"is up on port {port}, in front of port {self._server.port}, pid {pid}")
        async with connect(f"http://127.0.0.1:{self._proxy.port}/mcp/sse") as client:
            self.say("client", "connects to the proxy: this is its one and only connection")
            await self._talk(client)
            await self._kill_between_calls(client)
            await self._kill_during_a_call(client)
            await self._look_back(client)
        return self._verdict()

    async def _talk(self, client: Client) -> None:
        self.say("client", f"add_note('milk')   -> {await client.call('add_note', text='milk')}")
        pid = await client.server_pid()
        self.say("client", f"server_info()      -> answered by pid {pid}")
        self.expect("the first server answers", pid == self._server.pids[0])

    async def _kill_between_calls(self, client: Client) -> None:
        self._headline("the server dies between two calls")
        await self._kill()
        self.say("client", "add_note('bread')  ... with no server there, the proxy holds the call")
        asked = time.monotonic()
        answer = asyncio.create_task(client.call("add_note", text="bread"))
        await self._start_server()
        text = await answer
        waited = time.monotonic() - asked
        self.say("client", f"add_note('bread')  -> {text}, after {waited:.1f} s and no error")
        self.expect("the second server answers the held call", text.endswith(f"by pid {self._server.pid}"))

    async def _kill_during_a_call(self, client: Client) -> None:
        self._headline("the server dies in the middle of a call")
        counting = asyncio.Event()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            self.say("client", f"slow_count(20)     ... {progress:.0f} of 20")
            if progress == 3:
                counting.set()

        answer = asyncio.create_task(client.call("slow_count", on_progress, n=20))
        await asyncio.wait_for(counting.wait(), 10)
        await self._kill()
        try:
            self.say("client", f"slow_count(20)     -> {await answer}")
            self.expect("a call that the server took to its grave is not answered with a result", False)
        except McpError as error:
            self.say("client", f"slow_count(20)     -> error {error.error.code}: {error.error.message}")
            self.expect("the lost call is reported as such", error.error.code == OUTCOME_UNKNOWN)
        await self._start_server()

    async def _look_back(self, client: Client) -> None:
        self._headline("the client carries on")
        pid = await client.server_pid()
        self.say("client", f"server_info()      -> answered by pid {pid}")
        self.expect("the third server answers", pid == self._server.pid)
        notes = (await client.call("list_notes")).splitlines()
        self.say("client", f"list_notes()       -> {', '.join(notes)}")
        self.expect("each note is there once", notes == ["milk", "bread"])
        wire = client.wire
        self.say(
            "client",
            f"looks back: {wire.streams} stream opened, {wire.handshakes} initialize sent, "
            f"{len(wire.addresses)} address for all its messages",
        )
        self.expect("the client connected once", wire.streams == wire.handshakes == len(wire.addresses) == 1)

    async def _start_server(self) -> None:
        again = " again" if self._server.pids else ""
        self.say("demo", f"starts the server{again}")
        await self._server.start()
        self.say("server", f"is up{again} on port {self._server.port}, pid {self._server.pid}")

    async def _kill(self) -> None:
        self.say("demo", f"kill -9 {self._server.pid}")
        await self._server.kill()

    def _headline(self, text: str) -> None:
        print(f"\n         -- {text} --", flush=True)

    def _verdict(self) -> bool:
        pids = ", ".join(str(pid) for pid in self._server.pids)
        print()
        for promise in self._broken_promises:
            print(f"BROKEN: {promise}")
        if self._broken_promises:
            print("VERDICT: the client did NOT carry on as it should.")
            return False
        print(f"VERDICT: OK. Three servers (pids {pids}), one session: the client carried on.")
        return True


def _cause(error: BaseException) -> str:
    """Tell what went wrong; the SDK's client wraps an error in a group for each task that it passes."""
    while grouped := getattr(error, "exceptions", ()):
        error = grouped[0]
    if isinstance(error, asyncio.TimeoutError):
        return f"It was not over after {LIMIT:.0f} seconds."
    return str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"


async def _stage(folder: Path) -> bool:
    server_port, proxy_port = free_ports(2)
    server = Process(
        "server",
        server_port,
        ["-m", "mcp_proxy.demo.server", "--port", str(server_port), "--notes", str(folder / "notes.txt")],
        folder,
    )
    proxy = Process(
        "proxy",
        proxy_port,
        ["-c", "from mcp_proxy.tap import main; main()"],
        folder,
        BACKEND_URL=f"http://127.0.0.1:{server_port}",
        BACKEND_SSE_PATH="/mcp/sse",
        PROXY_PORT=str(proxy_port),
        RECONNECT_DELAY="0.5",
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        await stack.enter_async_context(proxy)
        try:
            return await asyncio.wait_for(Show(server, proxy).play(), LIMIT)
        except Exception as error:
            raise Broken(f"{_cause(error)}\nThe proxy's last words:\n{proxy.output()}") from error


async def _main() -> bool:
    # Ctrl-C cancels this task, so that whatever was started is also ended.
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="mcp-proxy-demo-") as folder:
        return await _stage(Path(folder))


def run() -> int:
    """Run the demo; return the exit status."""
    try:
        return 0 if asyncio.run(_main()) else 1
    except Broken as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("\ninterrupted; all processes are ended", file=sys.stderr)
        return 130
