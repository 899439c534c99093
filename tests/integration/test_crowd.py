"""Several clients at once: nothing crosses, nobody suffers for another."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

from twisted.logger import globalLogPublisher

from mcp_proxy import service
from mcp_proxy.backend.backend import MAX_TURNS
from mcp_proxy.logs import make_observer
from mcp_proxy.session.policy import Policy
from tests.integration.service_case import ALICE, BOB, ServiceCase, reactor
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import Stream, event
from tests.support.wire import Client


class Isolation(ServiceCase):
    def assert_nothing_crossed(self) -> None:
        """Each session of the backend's has only ever seen one credential: its own."""
        seen: dict[tuple[int, str], set[str | None]] = {}
        for got in self.backend.got:
            seen.setdefault((got.generation, got.stream), set()).add(got.headers.get("x-api-key"))
        for session, keys in seen.items():
            self.assertEqual(len(keys), 1, (session, keys))

    async def test_two_credentials(self) -> None:
        """Over restarts, each client's messages come under its own key and its answers come back to it."""
        self.start()
        self.backend.answers["tools/call"] = lambda stream, asked: messages.result(
            asked["id"], {"key": stream.headers.get("x-api-key"), "echo": asked["params"]["arguments"]}
        )
        alice, bob, nobody = await self.connected(ALICE), await self.connected(BOB), await self.connected()
        keys = {alice: "alice-key", bob: "bob-key", nobody: None}
        for number in range(4):
            if number % 2:
                await self.backend.restart()
            else:
                self.backend.die()
            for client in keys:
                await client.begin(messages.call(number, {"of": keys[client]}))
            if not self.backend.is_listening:
                await self.backend.revive()
            for client, key in keys.items():
                answer = await client.answer_to(number)
                self.assertEqual(answer["result"], {"key": key, "echo": {"of": key}})
        self.assert_nothing_crossed()

    async def test_cookies(self) -> None:
        """A cookie that the backend gives to one session does not reach another."""
        self.start()

        def accept(connection: Any, stream: Stream, message: Json) -> None:
            cookie = f"Set-Cookie: sid={stream.headers.get('x-api-key')}; Path=/\r\n".encode()
            connection.write(b"HTTP/1.1 202 Accepted\r\n" + cookie + b"Content-Length: 0\r\n\r\n")
            self.backend.handle(stream, message)

        self.backend.on_message = accept
        alice, bob = await self.connected(ALICE), await self.connected(BOB)
        for _ in range(2):
            await alice.call()
            await bob.call()
        for got in self.backend.got:
            key = got.headers["x-api-key"]
            self.assertIn(got.headers.get("cookie", ""), ("", f"sid={key}"))
        self.assertTrue(any("cookie" in got.headers for got in self.backend.got))

    async def test_foreign_session(self) -> None:
        """Another credential can neither post to a session nor listen to it."""
        self.start()
        alice, bob = await self.connected(ALICE), await self.connected(BOB)
        body = encoded(messages.call("stolen"))
        answer = await bob.fetch("POST", alice.path, ((b"content-type", b"application/json"),), body)
        self.assertEqual(answer.status, 404)
        thief = self.client(BOB)
        await thief.open(alice.events[0].id)
        self.assertNotEqual(thief.path, alice.path)
        self.assertEqual(self.backend.deliveries("tools/call"), [])
        self.assertIn("result", await alice.call())

    async def test_notifications(self) -> None:
        """What one backend session says reaches one client, once."""
        self.start()
        alice, bob = await self.connected(ALICE), await self.connected(BOB)
        for stream in self.backend.streams.values():
            stream.send(messages.notification("notifications/x", {"for": stream.headers["x-api-key"]}))
        for client, key in ((alice, "alice-key"), (bob, "bob-key")):
            await self.until(lambda client=client: client.notifications("notifications/x"))
            found = client.notifications("notifications/x")
            self.assertEqual([each["params"]["for"] for each in found], [key])


class Stampede(ServiceCase):
    timeout = 30

    async def test_sixty(self) -> None:
        """After a restart no more than a few sessions handshake at the same time, and all are back in the end."""
        self.start()
        clients: list[Client] = []
        for number in range(60):
            client = self.client((b"x-api-key", b"key-%d" % number))
            await client.open()
            await client.initialize()
            clients.append(client)
        await self.until(lambda: len(self.backend.deliveries("notifications/initialized")) == 60)
        answer = self.backend.answers["initialize"]
        waiting: list[tuple[Stream, Json]] = []

        def wait(stream: Stream, asked: Json) -> None:
            waiting.append((stream, asked))

        self.backend.answers["initialize"] = wait
        await self.backend.restart()
        for number, client in enumerate(clients[:3]):
            await client.begin(messages.call("held", {"n": number}))
        await self.until(lambda: len(waiting) == MAX_TURNS, lambda: len(waiting))
        for _ in range(3):
            await self.health()
        self.assertEqual((len(waiting), len(self.backend.streams)), (MAX_TURNS, MAX_TURNS))
        self.backend.answers["initialize"] = answer
        for stream, asked in waiting:
            stream.send(messages.result(asked["id"], messages.initialize_result()))
        await self.until(lambda: self.backend.methods(2).count("notifications/initialized") == 60)
        for number, client in enumerate(clients[:3]):
            self.assertEqual((await client.answer_to("held"))["result"], {"echo": {"n": number}})
        self.assertEqual(self.backend.methods(2).count("initialize"), 60)


class Flood:
    """Sends notifications for as long as the connection takes them."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self.data = event(encoded(messages.notification("notifications/flood", {"x": "y" * 65_536})))
        self.sent = 0
        self.paused = False
        self.limit = limit
        transport: Any = stream.connection.transport
        self.transport = transport
        transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        """More."""
        self.paused = False
        reactor.callLater(0, self._more)

    def _more(self) -> None:
        while not self.paused and self.sent < self.limit:
            self.transport.write(self.data)
            self.sent += len(self.data)

    def pauseProducing(self) -> None:
        """Enough for now."""
        self.paused = True

    def stopProducing(self) -> None:
        """The connection is gone."""
        self.paused, self.limit = True, 0


class Pressure(ServiceCase):
    async def test_slow_client(self) -> None:
        """A client that stops reading stops its own backend stream, is dropped in the end, and harms nobody."""
        self.patch(service, "Policy", partial(Policy, linger=0.1))
        self.start(stall_timeout=0.6, keepalive_interval=0.1)
        slow, quick = await self.connected(ALICE), await self.connected(BOB)
        newest = slow.events[-1].id
        assert slow.stream is not None
        slow.stream.pause()
        stream = next(each for each in self.backend.streams.values() if each.headers["x-api-key"] == "alice-key")
        flood = Flood(stream, 256 * 1024 * 1024)
        registry = self.internals()._registry
        await self.until(lambda: flood.paused)
        (session,) = [each for each in registry if each.headers[-1] == ALICE or ALICE in each.headers]
        await self.until(lambda: session.link is None or session.link._pausers)
        for _ in range(3):
            self.assertIn("result", await quick.call())
        self.assertLess(flood.sent, 64 * 1024 * 1024)
        await self.until(lambda: registry.connected == 1, "the slow client is dropped")
        self.assertLess(flood.sent, 64 * 1024 * 1024)
        await self.until(lambda: stream.connection.closed, "its link is closed after a while")
        self.assertIn("result", await quick.call())
        again = self.client(ALICE)
        await again.open(newest)
        self.assertIn("result", await again.call())

    async def test_slow_for_a_while(self) -> None:
        """A client that is slow for a while gets everything, in order."""
        self.start(stall_timeout=5.0)
        client = await self.connected(ALICE)
        wire = client.stream
        assert wire is not None
        wire.pause()
        stream = self.backend.stream
        for number in range(200):
            stream.send(messages.notification("notifications/n", {"n": number, "x": "y" * 65_536}))
        (session,) = self.internals()._registry
        await self.until(lambda: session.link._pausers)
        transport: Any = wire.transport
        transport.resumeProducing()
        stream.send(messages.notification("notifications/end"))
        await self.until(lambda: b"notifications/end" in wire.data[-500:])
        numbers = [each["params"]["n"] for each in client.notifications("notifications/n")]
        self.assertEqual(numbers, list(range(200)))

    async def test_dead_backend_behind_slow_client(self) -> None:
        """While a client reads nothing the death of its backend is not seen; when it reads again all goes on."""
        self.start(stall_timeout=5.0)
        client = await self.connected(ALICE)
        wire = client.stream
        assert wire is not None
        wire.pause()
        stream = self.backend.stream
        flood = Flood(stream, 64 * 1024 * 1024)
        (session,) = self.internals()._registry
        await self.until(lambda: flood.paused and session.link._pausers)
        await self.backend.restart()
        transport: Any = wire.transport
        transport.resumeProducing()
        self.assertIn("result", await client.call())


class Logs(ServiceCase):
    async def test_no_secret(self) -> None:
        """At debug level the log of the whole program names no key, no argument, no cookie and no whole session."""
        text = io.StringIO()
        for kind in ("text", "json"):
            observer = make_observer(kind, "debug", text)
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.start(backend_url=f"http://user:s3cret-password@127.0.0.1:{self.backend.port}", health_interval=0.05)
        client = await self.connected((b"x-api-key", b"s3cret-key"), (b"authorization", b"Bearer s3cret-token"))
        await client.call(password="s3cret-argument")
        names = [self.backend.stream.name]
        await self.backend.restart()
        await client.call(password="s3cret-argument")
        names.append(self.backend.stream.name)
        await client.fetch("POST", client.path + "x", ((b"content-type", b"application/json"),), b"{}")
        await client.open(client.events[-1].id)
        await client.post(b"{s3cret-argument")
        written = text.getvalue()
        self.assertIn("session", written)
        secrets = ("s3cret-key", "s3cret-token", "s3cret-argument", "s3cret-password", client.path.rpartition("/")[2])
        for secret in secrets:
            self.assertNotIn(secret, written)
        for name in names:
            self.assertNotIn(f"session_id={name}", written)
