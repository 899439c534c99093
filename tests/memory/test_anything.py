"""Requests and answers that nobody sends in earnest: whatever comes, from clients or from the backend, nothing breaks.

``make fuzz`` tries many more of them.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import ProxyError
from tests.memory.house_case import ALICE, BOB
from tests.support import fuzz, messages
from tests.support.fuzz import examples
from tests.support.http1 import HeaderList, ask, read_answer
from tests.support.memory import JSON_HEAD, Connection, House
from tests.support.messages import Json, encoded

#: Stand for what Alice has: the path of her stream's session, its token, her other session, the ids of events.
STANDING = ("@path", "@token", "@session", "@event", "@other-event")
TOKENS = some.text("ABCxyz019-_.~%/", max_size=30)
METHODS = some.sampled_from(("GET", "POST", "POST", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "TRACE", "x-Y"))
PATHS = some.one_of(
    some.sampled_from(("/mcp", "/mcp", "/mcp", "/mcp/sse", "/mcp/sse", "@path", "@path", "/health", "/ready", "/")),
    some.sampled_from(("/metrics", "/.well-known/x", "/.well-known/../mcp", "/mcp/messages/", "/mcp/messages/@token/")),
    some.sampled_from(("/mcp/../mcp", "/mcp;x", "/mcp?@token", "//", "/%", "/%ff", "/%00", "*", "http://x/mcp", "mcp")),
    TOKENS.map(lambda text: f"/{text}"),
    TOKENS.map(lambda text: f"/mcp/messages/{text}"),
    TOKENS.map(lambda text: f"/.well-known/{text}"),
)
VALUES = some.one_of(
    some.sampled_from(("", "0", "-1", "a", "@token", "@session", "@event", "@other-event", "\xff\xfe", "a, b", '"')),
    some.sampled_from(("application/json", "text/event-stream", "*/*", "application/json;charset=utf-16", "text/html")),
    some.sampled_from(
        ("2024-11-05", "2025-03-26", "2025-11-25", "2026-07-28", "2099-01-01", "tools/call", "=?base64?")
    ),
    some.sampled_from(("Bearer x", "Bearer", "Basic !", "localhost", "http://localhost", "null", "a.b.c", "gzip")),
    some.text(some.characters(min_codepoint=32, max_codepoint=255), max_size=30),
)
NAMES = some.sampled_from(
    (
        *("accept", "accept", "authorization", "connection", "content-type", "content-encoding", "cookie", "expect"),
        *("host", "last-event-id", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id"),
        *("mcp-session-id", "origin", "traceparent", "upgrade", "x-api-key", "x-forwarded-for", "mcp-param-x", "range"),
    )
)
BODIES = some.one_of(
    fuzz.message().map(encoded),
    fuzz.message().map(encoded),
    some.lists(fuzz.message(), max_size=4).map(encoded),
    fuzz.VALUES.map(encoded),
    some.binary(max_size=60),
    some.text('{}[]":,\\u0123eE.- null', max_size=40).map(str.encode),
    some.sampled_from(
        (b"[" * 5000, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 3000, b"\xef\xbb\xbf{}")
    ),
    some.none(),
)
ACCEPT = (b"accept", b"application/json, text/event-stream")


@some.composite
def requests(draw: Any) -> tuple[str, str, HeaderList, bytes | None]:
    """A request that HTTP allows, for anything."""
    headers = [
        (name.encode(), value.encode("latin-1"))
        for name, value in draw(some.lists(some.tuples(NAMES, VALUES), max_size=4))
    ]
    if draw(some.integers(0, 2)):
        headers = [*JSON_HEAD, *headers]
    if draw(some.integers(0, 2)):
        headers = [(b"mcp-session-id", b"@session"), *headers]
    if draw(some.booleans()):
        headers += [
            (b"mcp-protocol-version", b"2026-07-28"),
            (b"mcp-method", draw(fuzz.METHODS).encode()),
            (b"mcp-name", b"echo"),
        ]
    who = draw(some.sampled_from((ALICE, ALICE, ALICE, BOB, None)))
    return draw(METHODS), draw(PATHS), (*headers, *((who,) if who else ())), draw(BODIES)


class Scene:
    """A house with Alice in it, who has a session of each kind."""

    def __init__(self, test: SynchronousTestCase, version: str = "2025-06-18") -> None:
        self.test = test
        self.house = House(max_body_bytes=20_000)
        self.stream = self.house.initialized(ALICE)
        hello = messages.initialize("hello")
        hello["params"]["protocolVersion"] = version
        began = self.house.ask("POST", "/mcp", (*JSON_HEAD, ALICE), encoded(hello))
        self.session = began.answer.header(b"mcp-session-id")
        self.listening = self.house.ask("GET", "/mcp", (ALICE, (b"mcp-session-id", self.session)))
        for link in self.house.backend.made:
            link.tell(messages.notification("notifications/x"))
        path = self.stream.path
        ids = [each.events[-1].id for each in (self.stream, self.listening)]
        values = (path, path.rpartition("/")[2], self.session.decode(), *ids)
        self._known = dict(zip((name.encode() for name in STANDING), (each.encode() for each in values), strict=True))

    def filled(self, text: bytes) -> bytes:
        """The text with what it stands for."""
        for name, value in self._known.items():
            text = text.replace(name, value)
        return text

    def ask(self, method: str, path: str, headers: HeaderList, body: bytes | None) -> Connection:
        """A request on a connection of its own."""
        connection = self.house.connect()
        connection.send(self.filled(ask(method, path, headers, body)))
        return connection

    def close(self, seen: Any = None) -> None:
        """Everybody goes; nothing is left, and nothing was unexpected."""
        self.house.close()
        test, house = self.test, self.house
        test.assertEqual([each.value for each in test.flushLoggedErrors()], [], seen)
        test.assertEqual(len(house.registry), 0, seen)
        test.assertEqual(house.policy.room.used, 0, seen)
        test.assertEqual([str(call) for call in house.clock.getDelayedCalls()], [], seen)

    def judge(self, connection: Connection, seen: Any) -> None:
        """An answer is what MCP and this proxy say: never a 500, never HTML; a refusal says why."""
        raw = connection.raw
        answer = read_answer(raw, closed=connection.closed, is_head=seen[0] == "HEAD")
        if answer is None:
            return
        test = self.test
        test.assertIn(answer.status, ALLOWED, (seen, answer))
        test.assertNotIn(b"<html", answer.body, seen)
        is_passed_on = answer.header(b"content-type") == b"text/plain" and answer.body in (b"none", b"")
        if answer.status >= 400 and seen[0] != "HEAD" and not is_passed_on:
            told = json.loads(answer.body)
            if isinstance(told, dict):
                test.assertTrue(told["error"]["message"], (seen, answer))
        if answer.header(b"content-type") == b"text/event-stream":
            for event in connection.events if seen[0] != "HEAD" else ():
                if event.type == "message" and event.data:
                    event.json()


ALLOWED = frozenset(
    (200, 202, 204, 400, 401, 403, 404, 405, 406, 408, 411, 413, 415, 417, 421, 429, 431, 501, 503, 505)
)


class Clients(SynchronousTestCase):
    @examples(120)
    @given(some.lists(requests(), min_size=1, max_size=4))
    def test_any_request(self, asked: list[tuple[str, str, HeaderList, bytes | None]]) -> None:
        """Whatever is asked, by whom, the answer is sound, and nothing is left behind."""
        scene = Scene(self)
        sent = [(each, scene.ask(*each)) for each in asked]
        scene.house.clock.advance(20)
        for each, connection in sent:
            scene.judge(connection, each)
        scene.house.clock.advance(200)
        scene.close(asked)

    @examples(80)
    @given(some.lists(some.tuples(fuzz.message(), some.sampled_from(("stream", "session", "modern"))), max_size=8))
    def test_any_message(self, told: list[tuple[Json, str]]) -> None:
        """Whatever Alice says in her sessions, she gets one answer to each request, and nothing breaks."""
        scene = Scene(self)
        for message, way in told:
            body = encoded(message)
            if way == "stream":
                scene.ask("POST", "@path", (*JSON_HEAD, ALICE), body)
            elif way == "session":
                scene.ask("POST", "/mcp", (*JSON_HEAD, ALICE, ACCEPT, (b"mcp-session-id", b"@session")), body)
            else:
                name = (message.get("params") or {}).get("name", "") if isinstance(message.get("params"), dict) else ""
                method = message.get("method", "")
                headers: HeaderList = tuple(
                    (key, str(value).encode("latin-1", "replace").replace(b"\n", b"").replace(b"\0", b""))
                    for key, value in (
                        (b"mcp-protocol-version", "2026-07-28"), (b"mcp-method", method), (b"mcp-name", name))
                )  # fmt: skip
                connection = scene.ask("POST", "/mcp", (*JSON_HEAD, ALICE, ACCEPT, *headers), body)
                scene.judge(connection, ("POST", message, way))
        scene.house.clock.advance(200)
        scene.close(told)


class Backends(SynchronousTestCase):
    @examples(120)
    @given(
        some.lists(
            some.tuples(
                some.sampled_from(("tell", "tell", "tell", "ask", "ask", "modern", "lose", "down", "up", "wait")),
                fuzz.message(),
                fuzz.OBJECTS,
            ),
            max_size=12,
        ),
        some.sampled_from(("2025-03-26", "2025-06-18", "2025-11-25")),
        some.booleans(),
    )
    def test_any_message(self, moves: list[tuple[str, Json, Json]], version: str, is_legacy: bool) -> None:
        """Whatever a backend says and answers, nothing breaks, and no request is answered twice."""
        scene = Scene(self, version)
        backend = scene.house.backend
        backend.is_legacy = is_legacy
        answers: list[Json] = []
        for method in list(backend.answers):
            backend.answers[method] = lambda asked: messages.result(asked["id"], answers[-1]) if answers else None
        for number, (move, message, value) in enumerate(moves):
            answers[:] = [value] if number % 3 else []
            if move == "tell":
                for link in backend.made[-3:]:
                    if not link.closed and "jsonrpc" in message and is_message(message):
                        link.tell(message)
            elif move == "ask":
                call = messages.request(str(message.get("method", "tools/list")), f"n{number}", {"name": "t"})
                scene.ask("POST", "/mcp", (*JSON_HEAD, ALICE, ACCEPT, (b"mcp-session-id", b"@session")), encoded(call))
                scene.ask("POST", "@path", (*JSON_HEAD, ALICE), encoded(call))
            elif move == "modern":
                method = str(message.get("method", "tools/list"))
                meta = {fuzz.modern.VERSION: "2026-07-28", fuzz.modern.CAPABILITIES: {"elicitation": {}}}
                call = messages.request(method, f"n{number}", {**value, "_meta": meta, "name": "t", "uri": "t"})
                call["params"]["taskId"] = "t"
                headers = (
                    (b"mcp-protocol-version", b"2026-07-28"),
                    (b"mcp-method", method.encode()),
                    (b"mcp-name", b"t"),
                )
                scene.ask("POST", "/mcp", (*JSON_HEAD, ALICE, ACCEPT, *headers), encoded(call))
            elif move == "lose":
                for link in backend.made[-2:]:
                    link.lose()
            elif move == "down":
                backend.go_down()
            elif move == "up":
                backend.come_back()
            else:
                scene.house.clock.advance(7)
        for stream in (scene.stream, scene.listening):
            told = [each["id"] for each in stream.messages if each.get("id") and "method" not in each]
            self.assertEqual(len(told), len({json.dumps(each) for each in told}), told)
        backend.come_back()
        scene.house.clock.advance(200)
        scene.close(moves)


def is_message(value: Json) -> bool:
    """Whether a link would hand it over: the links read messages before they tell of them."""
    try:
        jsonrpc.parse(encoded(value))
    except ProxyError:
        return False
    return True
