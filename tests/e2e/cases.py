"""What every end-to-end test starts from: a backend, the proxy, and a process with clients of one SDK."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.e2e.actors import (
    Backend,
    Client,
    ClientProcess,
    Proxy,
    Relay,
    python_command,
    typescript_command,
)
from tests.e2e.processes import until

Scenario = Callable[[Any], Coroutine[Deferred[Any], Any, None]]

#: Attempts come fast, and are enough for a server that starts slowly on a busy machine.
SETTINGS = {"RECONNECT_DELAY": "0.2", "MAX_RECONNECT_ATTEMPTS": "100", "LOG_LEVEL": "debug"}


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

    Scenarios stand in mixins. Each mixin makes two test cases, by `PythonSDK` and by `TypeScriptSDK`.
    """

    #: Seconds until a scenario fails, with the output of all processes, instead of hanging.
    limit = 60.0
    #: Trial's own limit, also for what happens before and after; it says much less.
    timeout = 150.0
    #: Settings of the proxy, besides `SETTINGS`.
    settings: dict[str, str] = {}
    #: Whether the backend runs when the scenario begins.
    backend_is_up = True
    client_command: Callable[[], list[str]]

    def __init_subclass__(cls) -> None:
        for name in dir(cls):
            if name.startswith("test_"):
                setattr(cls, name, _explained(getattr(cls, name)))

    def report(self) -> str:
        """What may explain a failure: commands without a reply, and what each process has printed."""
        parts = [f"no reply yet to: {line}" for line in self.clients.unanswered]
        for child in (*self.backend.processes, self.proxy, self.clients):
            parts += (f"--- {child.name}, pid {child.pid}", child.output.rstrip())
        return "\n".join(parts)

    async def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        command = type(self).client_command()
        # Cleanups run in reverse order, so this look at the proxy is the last thing to be done.
        self.addCleanup(self._check_proxy)
        self.backend = Backend(folder)
        self.addCleanup(self.backend.end)
        self.proxy = Proxy(self.backend.port, folder, SETTINGS | self.settings)
        self.addCleanup(self.proxy.stop)
        self.clients = ClientProcess(command, folder)
        self.addCleanup(self.clients.stop)
        if self.backend_is_up:
            await self.backend.start()
        await until(self.proxy.health, "the proxy is up")

    def _check_proxy(self) -> None:
        # Whatever happens to backends and clients is the proxy's everyday life.
        self.assertNotIn("Traceback", self.proxy.output)
        self.assertEqual(self.proxy.status, 0, self.proxy.output)
        # Who knows a session's address can use it, so no log may show one.
        self.assertNotRegex(self.proxy.output, r"/mcp/messages/[\w-]{20}")

    def client(self, name: str = "client") -> Client:
        """Return a client that is not connected yet."""
        return Client(self.clients, name)

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


class PythonSDK:
    """Runs the scenarios with the Python SDK's `sse_client`."""

    client_command = staticmethod(python_command)


class TypeScriptSDK:
    """Runs the scenarios with the TypeScript SDK's `SSEClientTransport`."""

    client_command = staticmethod(typescript_command)
