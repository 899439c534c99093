"""What the tests with a Streamable HTTP backend have in common."""

from __future__ import annotations

from typing import Any, Literal

from twisted.internet.endpoints import HostnameEndpoint

from mcp_proxy.service import ProxyService
from tests.integration.service_case import ALICE, ServiceCase, reactor
from tests.support import messages
from tests.support.messages import Json
from tests.support.scripted import BackendConnection, How, ScriptedBackend, Stream
from tests.support.scripted_streamable import StreamableBackend
from tests.support.streamable_client import StreamableClient
from tests.support.wire import Client

Kind = Literal["streamable", "sse"]


class StreamableCase(ServiceCase):
    """A test with the whole program and a Streamable HTTP backend; ``kind`` is what its clients speak."""

    kind: Kind = "streamable"
    transport = "streamable"
    backend: StreamableBackend

    def setUp(self) -> None:
        """A backend that listens; the program is started by the test. Twisted tells of a refusal without delay."""
        self.patch(HostnameEndpoint, "_DEFAULT_ATTEMPT_DELAY", 0.02)
        self.backend = StreamableBackend(reactor)
        self.backend.start()
        self.others: list[ScriptedBackend] = []
        self.service: ProxyService | None = None
        self.port = 0
        self.clients: list[Client] = []
        self.forgives_violations = False

    def start(self, **settings: Any) -> None:
        """Start the program."""
        super().start(**{"backend_transport": self.transport, **settings})

    def speaker(self, *headers: tuple[bytes, bytes], version: str = "2025-11-25") -> StreamableClient:
        """A Streamable HTTP client that has sent nothing yet."""
        client = StreamableClient(reactor, self.port, *headers, version=version)
        self.clients.append(client)
        return client

    async def speaking(self, *headers: tuple[bytes, bytes], version: str = "2025-11-25") -> StreamableClient:
        """A Streamable HTTP client that has been through its handshake, which the backend has seen."""
        client = self.speaker(*(headers or (ALICE,)), version=version)
        self.assertIn("result", await client.initialize())
        await self.settled()
        return client

    async def joined(self, *headers: tuple[bytes, bytes]) -> Client:
        """A client of this case's kind that has been through its handshake, which the backend has seen."""
        if self.kind == "streamable":
            return await self.speaking(*headers)
        client = self.client(*(headers or (ALICE,)))
        await client.open()
        self.assertIn("result", await client.initialize())
        await self.settled()
        return client

    async def settled(self) -> None:
        """The backend has seen as many GETs as handshakes, so nothing of a handshake is under way."""
        line = self.backend.line
        await self.until(lambda: "GET" in line()[_last(line(), "notifications/initialized") :], line)

    async def dead(self, how: How = "rst", backend: ScriptedBackend | None = None) -> None:
        """The backend dies, and every session has noticed."""
        (backend or self.backend).die(how)
        registry = self.internals()._registry
        await self.until(lambda: all(session.phase.value not in ("live", "doubted") for session in registry))

    async def away_for_a_moment(self) -> None:
        """The backend dies, and the program has looked once whether it is there."""
        self.backend.die("fin")
        await self.until(lambda: self.internals()._backend._strikes)

    async def restart(self, how: How = "rst") -> None:
        """The backend dies, and comes back when that was noticed, if there was a stream to notice it by."""
        if self.backend.streams:
            await self.dead(how)
        await self.backend.restart(how)

    def act(self, method: str, act: Any) -> None:
        """Act once instead of answering, when the next message of this method has been read."""

        def on_message(connection: BackendConnection, stream: Stream, message: Json) -> None:
            if message.get("method") == method:
                self.backend.on_message = self.backend.accept
                act(stream)
            else:
                self.backend.accept(connection, stream, message)

        self.backend.on_message = on_message

    async def revive_when_dead(self) -> None:
        """Listen again after a death that a test has arranged."""
        await self.until(lambda: not self.backend.is_listening, "the backend dies")
        await self.backend.revive()

    async def become(self, other: ScriptedBackend, how: How = "rst") -> None:
        """Die and come back as another backend on the same port."""
        before: ScriptedBackend = self.backend if not self.others else self.others[-1]
        if self.service is not None and before.streams:
            await self.dead(how, before)
        elif before.is_listening:
            before.die(how)
        await before._stopping
        other.port, other.generation = before.port, before.generation
        self.others.append(other)
        other.start()

    def assert_unknown(self, answer: Json, delivered: str) -> None:
        """The answer says that the outcome is not known, and how far the request got."""
        self.assertIn("error", answer)
        error = answer["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31002, delivered), error)
        self.assertIs(error["data"]["retrySafe"], False)

    async def assert_works(self, client: Client) -> None:
        """The session goes on."""
        self.assertIn("result", await client.call(after="all"))

    async def tearDown(self) -> None:  # type: ignore[override]  # trial awaits it
        """No id of the backend's has reached a client."""
        try:
            for client in self.clients:
                for wire in client.wires:
                    for secret in self.backend.secrets:
                        self.assertNotIn(secret.encode(), bytes(wire.data))
        finally:
            for other in self.others:
                self.assertEqual(other.violations, [])
            await super().tearDown()
            for other in self.others:
                other.die("fin")
                await other._stopping


def result_of(answer: Json) -> Json:
    """The result of an answer."""
    if "result" not in answer:
        raise AssertionError(answer)
    value: Json = answer["result"]
    return value


def silent(stream: Stream, asked: Json) -> None:
    """Answer nothing for now."""


def _last(line: list[str], what: str) -> int:
    return max((number for number, each in enumerate(line) if each == what), default=len(line))


__all__ = ["ALICE", "Kind", "StreamableCase", "messages", "result_of", "silent"]
