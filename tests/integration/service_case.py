"""What the tests of this folder have in common: a program, a backend, clients, and a clean reactor at the end."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import ITCPTransport
from twisted.trial.unittest import TestCase

from mcp_proxy.config import Settings
from mcp_proxy.service import ProxyService, make_service
from tests.support.memory import STACK
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until
from tests.support.wire import Client

reactor: Any = _reactor

ALICE = (b"x-api-key", b"alice-key")
BOB = (b"x-api-key", b"bob-key")
QUICK: dict[str, Any] = {
    "proxy_port": 0,
    "backend_transport": "sse",
    "http_stack": STACK,
    "reconnect_delay": 0.05,
    "max_reconnect_attempts": 100,
    "connect_timeout": 1.0,
    "health_interval": 3600.0,
    "keepalive_interval": 0.1,
    "drain_timeout": 0.05,
}


class ServiceCase(TestCase):
    """A test with the whole program."""

    timeout = 20

    def setUp(self) -> None:
        """A backend that listens; the program is started by the test."""
        self.backend = ScriptedBackend(reactor)
        self.backend.start()
        self.service: ProxyService | None = None
        self.port = 0
        self.clients: list[Client] = []
        self.forgives_violations = False

    def start(self, **settings: Any) -> None:
        """Start the program."""
        url = settings.pop("backend_url", f"http://127.0.0.1:{self.backend.port}")
        self.service = make_service(Settings(**{**QUICK, "backend_url": url, **settings}), reactor)
        self.service.startService()
        port = self.service.port
        assert port is not None
        where: Any = port.getHost()
        self.port = where.port

    def client(self, *headers: tuple[bytes, bytes]) -> Client:
        """A client that is not connected yet."""
        client = Client(reactor, self.port, *headers)
        self.clients.append(client)
        return client

    async def connected(self, *headers: tuple[bytes, bytes]) -> Client:
        """A client with a stream that has been through its handshake, which the backend has seen."""
        client = self.client(*headers)
        await client.open()
        answer = await client.initialize()
        self.assertIn("result", answer)
        await self.until(lambda: "notifications/initialized" in self.backend.methods()[-3:])
        return client

    async def until(self, condition: Any, what: object = "", timeout: float = 5.0) -> None:
        """Wait for something."""
        await until(reactor, condition, what, timeout)

    async def health(self) -> Any:
        """The status page."""
        return (await self.client().fetch("GET", "/health")).json()

    def internals(self) -> Any:
        """The service with its parts, for what cannot be seen from outside."""
        return self.service

    async def tearDown(self) -> None:  # type: ignore[override]  # trial awaits it
        """Stop everything; every request has had at most one answer, and no socket is left."""
        try:
            for client in self.clients:
                seen = [repr(each["id"]) for each in client.messages if "method" not in each]
                self.assertEqual(len(seen), len(set(seen)), f"answered twice: {client.messages}")
            if not self.forgives_violations:
                self.assertEqual(self.backend.violations, [])
        finally:
            for client in self.clients:
                client.hang_up()
            if self.service is not None:
                await self.service.stopService()
            self.backend.die("fin")
            await self.backend._stopping
            await self.until(lambda: not open_sockets(), open_sockets)


def open_sockets() -> list[Any]:
    """The TCP connections that the reactor still has."""
    return [each for each in (*reactor.getReaders(), *reactor.getWriters()) if ITCPTransport.providedBy(each)]
