"""What every end-to-end test starts from: a backend, the proxy, and a process with clients of one SDK."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.e2e.actors import Backend, Client, ClientProcess, Proxy, Relay
from tests.e2e.kinds import PROXY, BackendKind, ClientKind, Pairs
from tests.e2e.processes import Program, until

Scenario = Callable[[Any], Coroutine[Deferred[Any], Any, None]]

#: Attempts come fast, and are enough for a server that starts slowly on a busy machine.
SETTINGS = {"RECONNECT_DELAY": "0.2", "MAX_RECONNECT_ATTEMPTS": "100", "LOG_LEVEL": "debug", "DRAIN_TIMEOUT": "1"}


def _explained(scenario: Scenario) -> Scenario:
    """Return the scenario with a limit of time, and with all that was printed in its failure."""

    @wraps(scenario)
    async def limited(self: EndToEnd) -> None:
        try:
            await Deferred.fromCoroutine(scenario(self)).addTimeout(self.limit, reactor)
        except Exception as error:
            error.args = (f"{error}\n{self.report()}",)
            raise

    return limited


class EndToEnd(TestCase):
    """Runs one scenario.

    Scenarios stand in classes of their own, of which `for_pairs` and `for_backends` make test cases.
    """

    #: Seconds until a scenario fails, with the output of all processes, instead of hanging.
    limit = 60.0
    #: Trial's own limit, also for what happens before and after; it says much less.
    timeout = 150.0
    #: Settings of the proxy, besides `SETTINGS`.
    settings: dict[str, str] = {}
    proxy_program: Program = PROXY
    #: Whether the backend runs when the scenario begins.
    backend_is_up = True
    client_kinds: tuple[ClientKind, ...]
    backend_kind: BackendKind

    def __init_subclass__(cls) -> None:
        for name in dir(cls):
            if name.startswith("test_"):
                setattr(cls, name, _explained(getattr(cls, name)))

    def report(self) -> str:
        """What may explain a failure: commands without a reply, and what each process has printed."""
        drivers = self.drivers.values()
        parts = [f"no reply yet to: {line}" for driver in drivers for line in driver.unanswered]
        for child in (*self.backend.processes, self.proxy, *drivers):
            parts += (f"--- {child.name}, pid {child.pid}", child.output.rstrip())
        return "\n".join(parts)

    async def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        programs = {kind.program: kind.program() for kind in self.client_kinds}
        # Cleanups run in reverse order, so this look at the proxy is the last thing to be done.
        self.addCleanup(self._check_proxy)
        self.backend = Backend(self.backend_kind, folder)
        self.addCleanup(self.backend.end)
        self.proxy = Proxy(self.proxy_program, self.backend, folder, SETTINGS | self.settings)
        self.addCleanup(self.proxy.stop)
        self.drivers = {name: ClientProcess(program, folder) for name, program in programs.items()}
        for driver in self.drivers.values():
            self.addCleanup(driver.stop)
        if self.backend_is_up:
            await self.backend.start()
        await until(self.proxy.health, "the proxy is up")

    def _check_proxy(self) -> None:
        # Whatever happens to backends and clients is the proxy's everyday life.
        self.assertNotIn("Traceback", self.proxy.output)
        self.assertEqual(self.proxy.status, 0, self.proxy.output)
        # Who knows a session's address can use it, so no log may show one.
        self.assertNotRegex(self.proxy.output, r"/mcp/messages/[\w-]{20}")

    def client(self, name: str = "client", kind: ClientKind | None = None) -> Client:
        """Return a client that is not connected yet."""
        kind = kind or self.client_kinds[0]
        return Client(kind, self.drivers[kind.program], name)

    async def connected(self, name: str = "client", port: int | None = None) -> Client:
        """Return a client that is connected to the proxy, or else to this port."""
        client = self.client(name)
        (await client.start_connect(port or self.proxy.port)).get()
        return client

    def relay(self) -> Relay:
        """Return a relay to the proxy."""
        relay = Relay(self.proxy.port)
        self.addCleanup(relay.close)
        return relay

    async def assertError(self, reply: Deferred[Any], code: int) -> dict[str, Any]:
        """Assert that the reply is this error of the proxy's; return the error's data."""
        error = (await reply).error
        self.assertIsNotNone(error, "the client got no error")
        self.assertEqual(error.code, code, error)
        self.assertEqual(error.data["source"], "proxy")
        return error.data


def for_pairs(pairs: Pairs) -> Callable[[type], type]:
    """Make a test case for each pair of a client and a backend, in the module of the scenarios."""

    def make_cases(scenarios: type) -> type:
        for client, backend in pairs:
            _make_case(scenarios, client.name, (client,), backend)
        return scenarios

    return make_cases


def for_backends(backends: Iterable[BackendKind], clients: tuple[ClientKind, ...]) -> Callable[[type], type]:
    """Make a test case for each backend, with all these clients at the same time."""

    def make_cases(scenarios: type) -> type:
        for backend in backends:
            _make_case(scenarios, "Everybody", clients, backend)
        return scenarios

    return make_cases


def _make_case(scenarios: type, name: str, clients: tuple[ClientKind, ...], backend: BackendKind) -> None:
    name = f"{scenarios.__name__}_{name}_{backend.name}"
    content = {
        "__doc__": scenarios.__doc__,
        "__module__": scenarios.__module__,
        "client_kinds": clients,
        "backend_kind": backend,
    }
    setattr(sys.modules[scenarios.__module__], name, type(name, (scenarios, EndToEnd), content))
