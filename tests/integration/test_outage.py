"""The backend is away: what is held, for how long, and what happens when it is back."""

from __future__ import annotations

from functools import partial

from twisted.internet.error import ConnectionRefusedError

from mcp_proxy import service
from mcp_proxy.backend import backend
from mcp_proxy.session.policy import Policy
from tests.integration.service_case import ALICE, ServiceCase
from tests.support import messages


class Held(ServiceCase):
    async def test_refused_then_back(self) -> None:
        """A call made while nobody listens is delivered and answered once, when somebody listens again."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.die()
        await client.begin(messages.call("held", {"n": 1}))
        self.assertEqual((await client.ask(messages.request("ping", "p")))["result"], {})
        self.assertEqual(client.answers("held"), [])
        await self.backend.revive()
        self.assertEqual((await client.answer_to("held"))["result"], {"echo": {"n": 1}})
        await client.call()
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)

    async def test_order(self) -> None:
        """What is held is delivered in the order in which it came."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.die()
        for number in range(5):
            await client.begin(messages.notification("notifications/x", {"n": number}))
        await client.begin(messages.call("last"))
        await self.backend.revive()
        await client.answer_to("last")
        await self.until(lambda: len(self.backend.deliveries("notifications/x")) == 5)
        self.assertEqual(
            [got.message["params"]["n"] for got in self.backend.deliveries("notifications/x")], [*range(5)]
        )

    async def test_never_there(self) -> None:
        """A proxy that starts before its backend holds a client's initialize, and answers it when there is one."""
        self.backend.die()
        self.start(max_reconnect_attempts=2)
        client = self.client(ALICE)
        await client.open()
        await client.begin(messages.initialize(0))
        view = self.internals()._backend
        await self.until(lambda: view.spent)
        self.assertEqual(client.messages, [])
        await self.backend.revive()
        self.assertIn("result", await client.answer_to(0))

    async def test_budget_spent(self) -> None:
        """After the last attempt whoever waits is told the truth; the same stream works when the backend is back."""
        self.start(max_reconnect_attempts=3)
        client = await self.connected(ALICE)
        self.backend.die()
        error = (await client.ask(messages.call("lost")))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31001, "no"))
        self.assertIs(error["data"]["retrySafe"], True)
        self.assertGreater(error["data"]["outageMs"], 0)
        self.assertIn("connection refused", error["message"])
        again = (await client.ask(messages.call("also lost")))["error"]
        self.assertEqual(again["code"], -31001)
        self.assertEqual((await client.ask(messages.request("ping", "p")))["result"], {})
        await self.backend.revive()
        await self.until(lambda: self.backend.streams, "the proxy is back by itself")
        self.assertIn("result", await client.call())
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
        assert client.stream is not None
        self.assertFalse(client.stream.closed)

    async def test_hold_timeout(self) -> None:
        """A held request waits for HOLD_TIMEOUT and no longer."""
        self.start(hold_timeout=0.2)
        client = await self.connected(ALICE)
        self.backend.die()
        await client.begin(messages.call("first"))
        error = (await client.answer_to("first"))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31001, "no"))
        self.assertGreaterEqual(error["data"]["outageMs"], 150)
        await self.backend.revive()
        # on a busy machine the way back may take longer than a request may be held here
        await self.until(lambda: self.backend.methods().count("notifications/initialized") == 2, "the proxy is back")
        await client.call()
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_hold_max_requests(self) -> None:
        """What is over HOLD_MAX_REQUESTS is refused at once; what was held before is kept."""
        self.start(hold_max_requests=2)
        client = await self.connected(ALICE)
        self.backend.die()
        await client.begin(messages.call(1))
        await client.begin(messages.call(2))
        error = (await client.ask(messages.call(3)))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31004, "no"))
        await self.backend.revive()
        self.assertIn("result", await client.answer_to(1))
        self.assertIn("result", await client.answer_to(2))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)

    async def test_stream_stays(self) -> None:
        """During an outage the client's stream stays open and gets comments."""
        self.start(keepalive_interval=0.05)
        client = await self.connected(ALICE)
        self.backend.die()
        stream = client.stream
        assert stream is not None
        before = stream.data.count(b": keepalive")
        await self.until(lambda: stream.data.count(b": keepalive") >= before + 3)
        self.assertFalse(stream.closed)

    async def test_new_client(self) -> None:
        """A client that comes during an outage gets its stream at once."""
        self.start()
        await self.connected(ALICE)
        self.backend.die()
        client = self.client(ALICE)
        await client.open()
        await client.begin(messages.initialize(0))
        await self.backend.revive()
        self.assertIn("result", await client.answer_to(0))

    async def test_many_restarts(self) -> None:
        """A session survives restart after restart."""
        self.start()
        client = await self.connected(ALICE)
        for number in range(5):
            await self.backend.restart("rst" if number % 2 else "fin")
            self.assertEqual((await client.call(n=number))["result"], {"echo": {"n": number}})
        self.assertEqual(len(self.backend.deliveries("tools/call")), 5)


class Ending(ServiceCase):
    """The backend wants to stop and waits for its streams to end, as uvicorn does."""

    def setUp(self) -> None:
        """Answers that do not come are not waited for as long as usual."""
        super().setUp()
        self.patch(backend, "ANSWER_WAIT", 0.1)

    async def idle(self, *, keep_port: bool) -> None:
        """With nothing outstanding the proxy lets go of its stream, and is back when somebody answers again."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.begin_shutdown(keep_port=keep_port)
        await self.until(lambda: not self.backend.streams, "the proxy closes its stream")
        await client.begin(messages.call("held"))
        await self.backend.revive()
        self.assertIn("result", await client.answer_to("held"))
        self.assertEqual(self.backend.methods(2)[:2], ["initialize", "notifications/initialized"])

    async def test_port_closed(self) -> None:
        """A backend that stops listening is let go, and found again."""
        await self.idle(keep_port=False)

    async def test_port_open(self) -> None:
        """So is one whose port stays open though nobody answers there (``uvicorn --reload``)."""
        await self.idle(keep_port=True)

    async def test_outstanding(self) -> None:
        """A call under way is waited for; what comes meanwhile is held for the next backend."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.answers["tools/call"] = lambda stream, asked: None
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        stream = self.backend.stream
        self.backend.begin_shutdown()
        view = self.internals()._backend
        await self.until(lambda: view.is_ending)
        await client.begin(messages.call("held"))
        self.assertEqual([*self.backend.streams.values()], [stream])
        stream.send(messages.result("slow", {"done": True}))
        self.assertEqual((await client.answer_to("slow"))["result"], {"done": True})
        await self.until(lambda: not self.backend.streams)
        self.backend.answers["tools/call"] = lambda stream, asked: messages.result(asked["id"], {"new": True})
        await self.backend.revive()
        self.assertEqual((await client.answer_to("held"))["result"], {"new": True})
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)

    async def test_answers_again(self) -> None:
        """If it answers again before that, the stream is kept and what was held goes on it."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.answers["tools/call"] = lambda stream, asked: (
            None if asked["id"] == "slow" else messages.result(asked["id"], {})
        )
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        stream = self.backend.stream
        self.backend.begin_shutdown()
        view = self.internals()._backend
        await self.until(lambda: view.is_ending)
        await client.begin(messages.call("held"))
        await self.backend.revive()
        await client.answer_to("held")
        stream.send(messages.result("slow", {"done": True}))
        self.assertEqual((await client.answer_to("slow"))["result"], {"done": True})
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)

    async def test_idle_connections(self) -> None:
        """A backend that only closes idle connections now and then loses nothing and is asked for nothing anew."""
        self.start()
        client = await self.connected(ALICE)
        for number in range(4):
            self.backend.close_idle()
            self.assertEqual((await client.call(n=number))["result"], {"echo": {"n": number}})
            self.assertIn("result", await client.ask(messages.request("tools/list", f"list-{number}")))
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 4)


class Goodbye(ServiceCase):
    async def test_client_goes(self) -> None:
        """When a client goes, its backend stream is kept a little, then closed; the session can still be adopted."""
        self.patch(service, "Policy", partial(Policy, linger=0.2))
        self.start()
        client = await self.connected(ALICE)
        newest, path = client.events[-1].id, client.path
        client.hang_up()
        registry = self.internals()._registry
        await self.until(lambda: registry.connected == 0)
        self.assertEqual(len(self.backend.streams), 1)
        await self.until(lambda: not self.backend.streams, "the link is closed")
        self.assertEqual(len(registry), 1)
        again = self.client(ALICE)
        await again.open(newest)
        self.assertEqual(again.path, path)
        self.assertIn("result", await again.call())

    async def test_expired(self) -> None:
        """A session that nobody comes back for is freed in the end."""
        self.patch(service, "Policy", partial(Policy, linger=0.1))
        self.patch(service, "EXPIRY_INTERVAL", 0.05)
        self.start(session_idle_timeout=0.3)
        client = await self.connected(ALICE)
        client.hang_up()
        registry = self.internals()._registry
        await self.until(lambda: len(registry) == 0)
        self.assertEqual(self.backend.streams, {})

    async def test_reconnect_in_time(self) -> None:
        """A client that comes back at once keeps its link, and gets what was answered meanwhile."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.answers["tools/call"] = lambda stream, asked: None
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        newest, stream = client.events[-1].id, self.backend.stream
        client.hang_up()
        registry = self.internals()._registry
        await self.until(lambda: registry.connected == 0)
        stream.send(messages.result("slow", {"done": True}))
        again = self.client(ALICE)
        await again.open(newest)
        self.assertEqual((await again.answer_to("slow"))["result"], {"done": True})
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)

    async def test_stop(self) -> None:
        """When the program stops, whoever waits is answered, streams are ended and nobody new is taken."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.die()
        await client.begin(messages.call("held"))
        assert self.service is not None
        await self.service.stopService()
        self.assertEqual((await client.answer_to("held"))["error"]["code"], -31001)
        self.service, wire = None, client.stream
        assert wire is not None
        await self.until(lambda: wire.answer is not None and wire.answer.complete, "the stream is ended")
        with self.assertRaises(ConnectionRefusedError):
            await self.client().connect()

    async def test_stop_while_live(self) -> None:
        """A call that is under way when the program stops is told that its outcome is unknown."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.answers["tools/call"] = lambda stream, asked: None
        await client.begin(messages.call("slow"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        assert self.service is not None
        await self.service.stopService()
        self.service = None
        self.assertEqual((await client.answer_to("slow"))["error"]["code"], -31002)
        await self.until(lambda: not self.backend.streams)
