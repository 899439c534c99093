"""The backend dies at every interesting byte, and comes back on the same port.

Whatever happens, each request gets exactly one answer, a tool call is delivered at most once, and what is safe to
repeat is answered by the backend in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcp_proxy.backend import backend, http_sse
from tests.integration.service_case import ALICE, BOB, ServiceCase
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import ACCEPTED, STREAM_HEAD, Asked, BackendConnection, How, Stream, event, response
from tests.support.wire import Client

ENDPOINT_SIZE = len(event(b"/messages?session_id=1-2", b"endpoint"))
#: Where the stream is cut when it is being opened, in bytes.
OPENING = {
    "before the head": 0,
    "inside the head": 20,
    "before the endpoint event": len(STREAM_HEAD),
    "inside the endpoint event": len(STREAM_HEAD) + 20,
    "inside the end of the endpoint event": len(STREAM_HEAD) + ENDPOINT_SIZE - 2,
    "after the endpoint event": len(STREAM_HEAD) + ENDPOINT_SIZE,
}


class DeathCase(ServiceCase):
    def kill(self, method: str, act: Callable[[BackendConnection, Stream, Json], None]) -> None:
        """Act once, when the next message of this method has been read."""

        def on_message(connection: BackendConnection, stream: Stream, message: Json) -> None:
            if message.get("method") == method:
                self.backend.on_message = self.backend.accept
                act(connection, stream, message)
            else:
                self.backend.accept(connection, stream, message)

        self.backend.on_message = on_message

    async def revive_when_dead(self) -> None:
        await self.until(lambda: not self.backend.is_listening, "the backend dies")
        await self.backend.revive()

    def assert_told(self, answer: Json, *codes: int) -> None:
        """The answer is a result, or an error with one of these codes."""
        if "error" in answer:
            self.assertIn(answer["error"]["code"], codes, answer)

    async def assert_works(self, client: Client) -> None:
        """The session goes on."""
        self.assertIn("result", await client.call(after="death"))


class Opening(DeathCase):
    """A stream is cut while it is opened."""

    async def at_first_connect(self, at: int, how: How) -> None:
        self.start()
        self.cut_next_stream(at, how)
        client = self.client(ALICE)
        await client.open()
        for message in (
            messages.initialize(0),
            messages.notification("notifications/initialized"),
            messages.call("call", {"n": 1}),
            messages.request("tools/list", "list"),
        ):
            await client.begin(message)
        await self.revive_when_dead()
        self.assertIn("result", await client.answer_to(0))
        self.assertIn("result", await client.answer_to("list"))
        self.assert_told(await client.answer_to("call"), -31002)
        self.assertLessEqual(len(self.backend.deliveries("tools/call")), 1)
        await self.assert_works(client)

    async def at_reconnect(self, at: int, how: How) -> None:
        self.start()
        client = await self.connected(ALICE)
        self.backend.die(how)
        await client.begin(messages.call("call", {"n": 1}))
        await client.begin(messages.request("tools/list", "list"))
        self.cut_next_stream(at, how)
        await self.backend.revive()
        await self.revive_when_dead()
        self.assertIn("result", await client.answer_to("list"))
        self.assertIn("result", await client.answer_to("call"))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
        await self.assert_works(client)

    def cut_next_stream(self, at: int, how: How) -> None:
        def on_get(connection: BackendConnection, asked: Asked) -> None:
            self.backend.on_get = self.backend.open_stream
            if at == 0:
                self.backend.die(how)
                return
            connection.budget, connection.how = at, how
            self.backend.open_stream(connection, asked)

        self.backend.on_get = on_get


class Answering(DeathCase):
    """A live session loses its backend around a request."""

    async def in_flight(
        self, act: Callable[[BackendConnection, Stream, Json], None], call_codes: tuple[int, ...]
    ) -> None:
        """Both kinds of requests at the moment of death: the call first, then the list in a world of its own."""
        self.start()
        client = await self.connected(ALICE)
        self.kill("tools/call", act)
        await client.begin(messages.call("call", {"n": 1}))
        await self.revive_when_dead()
        answer = await client.answer_to("call")
        if call_codes:
            self.assertEqual(answer["error"]["code"], *call_codes)
            self.assertIn(answer["error"]["data"]["delivered"], ("maybe", "yes"))
            self.assertIs(answer["error"]["data"]["retrySafe"], False)
        else:
            self.assertIn("result", answer)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
        self.kill("tools/list", act)
        await client.begin(messages.request("tools/list", "list"))
        await self.revive_when_dead()
        self.assertEqual((await client.answer_to("list"))["result"], {"tools": messages.TOOLS})
        await self.assert_works(client)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)

    async def after_post_read(self, how: How) -> None:
        def act(connection: BackendConnection, stream: Stream, message: Json) -> None:
            self.backend.die(how)

        await self.in_flight(act, (-31002,))

    async def inside_post_head(self, how: How) -> None:
        def act(connection: BackendConnection, stream: Stream, message: Json) -> None:
            connection.budget, connection.how = 12, how
            connection.write(ACCEPTED)

        await self.in_flight(act, (-31002,))

    async def inside_post_body(self, how: How) -> None:
        def act(connection: BackendConnection, stream: Stream, message: Json) -> None:
            connection.budget, connection.how = len(ACCEPTED) - 3, how
            connection.write(ACCEPTED)

        await self.in_flight(act, (-31002,))

    async def after_accepted(self, how: How) -> None:
        def act(connection: BackendConnection, stream: Stream, message: Json) -> None:
            connection.budget, connection.how = len(ACCEPTED), how
            connection.write(ACCEPTED)

        await self.in_flight(act, (-31002,))

    async def inside_answer(self, how: How) -> None:
        await self.cut_answer(how, lambda size: size // 2, (-31002,))

    async def before_blank_line(self, how: How) -> None:
        await self.cut_answer(how, lambda size: size - 2, (-31002,))

    async def between_events(self, how: How) -> None:
        await self.cut_answer(how, lambda size: size, ())

    async def cut_answer(self, how: How, at: Callable[[int], int], call_codes: tuple[int, ...]) -> None:
        def act(connection: BackendConnection, stream: Stream, message: Json) -> None:
            answer = self.backend.answers[message["method"]](stream, message)
            assert answer is not None
            connection.write(ACCEPTED)
            stream.connection.budget, stream.connection.how = at(len(event(encoded(answer)))), how
            stream.send(answer)

        await self.in_flight(act, call_codes)


class Partly(DeathCase):
    """Only one connection breaks; the backend lives."""

    async def break_post(self, how: How, handle: bool) -> None:
        self.start()
        client = await self.connected(ALICE)

        def act(connection: BackendConnection, stream: Stream, message: Json) -> None:
            connection.drop(how)
            if handle:
                self.backend.handle(stream, message)

        self.kill("tools/call", act)
        answer = await client.ask(messages.call("call", {"n": 1}))
        self.assert_told(answer, -31002)
        self.kill("tools/list", act)
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))
        await self.assert_works(client)
        self.assertEqual(len(self.backend.deliveries("tools/call")), 2)
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)

    async def test_post_fin(self) -> None:
        """A POST that is closed without an answer is not sent again if it is a call; the session lives on."""
        await self.break_post("fin", handle=False)

    async def test_post_rst(self) -> None:
        """The same for a reset."""
        await self.break_post("rst", handle=False)

    async def test_post_but_answer(self) -> None:
        """If the answer comes all the same, the client gets one answer, whichever was first."""
        await self.break_post("rst", handle=True)

    async def test_doubt(self) -> None:
        """After that nothing more is sent, by whomever, until the backend has answered something."""
        self.patch(backend, "ANSWER_WAIT", 0.5)
        self.start()
        alice, bob = await self.connected(ALICE), await self.connected(BOB)
        page, self.backend.health = self.backend.health, b""
        self.kill("tools/call", lambda connection, stream, message: connection.drop("rst"))
        self.assert_told(await alice.ask(messages.call("lost")), -31002)
        await bob.begin(messages.call("held"))
        for _ in range(3):
            await self.health()
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
        self.backend.health = page
        self.assertIn("result", await bob.answer_to("held"))
        self.assertEqual(len(self.backend.deliveries("initialize")), 2)

    async def test_stream_only(self) -> None:
        """A stream that ends while the backend lives is opened again, and the handshake replayed."""
        self.start()
        client = await self.connected(ALICE)
        hows: tuple[How, ...] = ("fin", "rst")
        for how in hows:
            before = len(self.backend.deliveries("initialize"))
            self.backend.stream.connection.drop(how)
            await self.until(lambda before=before: len(self.backend.deliveries("initialize")) > before)
            await self.assert_works(client)


def _add(case: type[DeathCase], name: str, sentence: str, runner: str, *arguments: Any) -> None:
    async def test(self: DeathCase) -> None:
        await getattr(self, runner)(*arguments)

    test.__doc__ = sentence
    test.__name__ = f"test_{name.replace(' ', '_')}"
    setattr(case, test.__name__, test)


for _how in ("fin", "rst"):
    for _where, _at in OPENING.items():
        _add(
            Opening,
            f"connect {_where} {_how}",
            f"A new client does not notice that the backend dies ({_how}) {_where} of its first stream.",
            "at_first_connect",
            _at,
            _how,
        )
        _add(
            Opening,
            f"reconnect {_where} {_how}",
            f"What is held survives a backend that dies ({_how}) again {_where} of the next stream.",
            "at_reconnect",
            _at,
            _how,
        )
    for _name in (
        "after_post_read",
        "inside_post_head",
        "inside_post_body",
        "after_accepted",
        "inside_answer",
        "before_blank_line",
        "between_events",
    ):
        _add(
            Answering,
            f"{_name} {_how}",
            f"A call is delivered once and told the truth, a list is sent again: death ({_how}) {_name}.",
            _name,
            _how,
        )


class LastWord(DeathCase):
    """A stream ends while a call is under way whose POST nobody has answered."""

    async def ended(self) -> tuple[Client, BackendConnection]:
        """A client whose call is being posted, over a stream that has just ended; and the connection of the POST."""
        self.start()
        client = await self.connected(ALICE)
        held: list[BackendConnection] = []

        def hold(connection: BackendConnection, asked: Asked) -> None:
            held.append(connection)
            self.backend.on_post = self.backend.take_post

        self.backend.on_post = hold
        await client.begin(messages.call("last", {"n": 1}))
        await self.until(lambda: bool(held), "the call is being posted")
        (session,) = self.internals()._registry
        link = session.link
        self.backend.stream.connection.drop("fin")
        await self.until(lambda: link._end, "the stream has ended")
        return client, held[0]

    async def test_refused(self) -> None:
        """Refused as unknown, it has done nothing: it is carried out on the next link, once."""
        client, post = await self.ended()
        post.write(response(404, b"Could not find session"))
        self.assertIn("result", await client.answer_to("last"))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_accepted(self) -> None:
        """Taken, it may have been carried out: its client is told so, and it is not sent again."""
        client, post = await self.ended()
        post.write(ACCEPTED)
        self.assert_told(await client.answer_to("last"), -31002)
        self.assertEqual(self.backend.deliveries("tools/call"), [])
        await self.assert_works(client)

    async def test_silence(self) -> None:
        """Without a word nobody waits for long, and what comes meanwhile goes to the next link."""
        self.patch(http_sse, "LAST_WAIT", 0.1)
        client, _ = await self.ended()
        await client.begin(messages.call("next", {"n": 2}))
        self.assert_told(await client.answer_to("last"), -31002)
        self.assertIn("result", await client.answer_to("next"))
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)
