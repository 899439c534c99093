"""Whatever clients send: it is answered or refused, never with a failure of ours, and nothing is left of it."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.frontend.guard import Guard
from mcp_proxy.wire.errors import ProxyError
from tests.memory.test_stacks import cut, one_request
from tests.support import messages, modern
from tests.support.http1 import HeaderList, ask
from tests.support.memory import JSON_HEAD, House
from tests.support.messages import encoded

SETTINGS = settings(max_examples=150, deadline=None)
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
METHODS = (
    "initialize",
    "ping",
    "tools/call",
    "tools/list",
    "resources/subscribe",
    "logging/setLevel",
    "prompts/get",
    "subscriptions/listen",
    "server/discover",
    "tasks/get",
    "notifications/cancelled",
    "notifications/initialized",
    "notifications/progress",
    "x",
)
NAMES = some.sampled_from(
    (
        *(
            "jsonrpc",
            "id",
            "method",
            "params",
            "result",
            "error",
            "_meta",
            "name",
            "uri",
            "arguments",
            "cursor",
            "level",
        ),
        *("requestId", "progressToken", "protocolVersion", "capabilities", "clientInfo", "requestState"),
        *("inputResponses", "notifications", "taskId", modern.META_VERSION, modern.META_CAPABILITIES, "x"),
    )
)
PLAIN = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(-(2**70), 2**70),
    some.floats(allow_nan=False),
    some.text(max_size=8),
    some.sampled_from(("2.0", "2025-06-18", "2025-03-26", "2024-11-05", "2026-07-28", "error", *METHODS)),
)
VALUES = some.recursive(
    PLAIN, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(NAMES, inner, max_size=5), max_leaves=10
)
MESSAGES = some.builds(
    lambda method, identity, params, more: {
        "jsonrpc": "2.0",
        "method": method,
        "id": identity,
        "params": params,
        **more,
    },
    some.sampled_from(METHODS),
    some.one_of(some.integers(0, 3), some.text(max_size=3), some.none()),
    VALUES,
    some.dictionaries(NAMES, VALUES, max_size=2),
)
BODIES = some.one_of(MESSAGES, VALUES, some.lists(MESSAGES, max_size=3)).map(lambda value: json.dumps(value).encode())


class FuzzCase(SynchronousTestCase):
    """A test that is repeated with a house each time."""

    def finish(self, house: House, what: object) -> None:
        """Nothing has failed, and nothing is left when all have gone."""
        for connection in house.connections:
            for status in STATUS.findall(connection.raw):
                self.assertNotIn(int(status), (500, 502), what)
        house.close()
        self.flushWarnings()
        self.assertEqual(self.flushLoggedErrors(), [], what)
        self.assertEqual(len(house.registry), 0, what)
        self.assertEqual(house.policy.room.used, 0, what)
        self.assertEqual([str(call) for call in house.clock.getDelayedCalls()], [], what)


class Front(FuzzCase):
    @SETTINGS
    @given(
        some.sampled_from(("lean", "klein")),
        some.lists(one_request(), min_size=1, max_size=3).map(b"".join),
        some.lists(some.tuples(some.integers(0, 800), some.integers(0, 255)), max_size=4),
        some.lists(some.integers(0, 800), max_size=4),
    )
    def test_requests(self, stack: str, data: bytes, noise: list[tuple[int, int]], places: list[int]) -> None:
        """Requests with bytes changed, cut anywhere."""
        changed = bytearray(data)
        for place, byte in noise:
            if place < len(changed):
                changed[place] = byte
        house = House(stack=stack)
        connection = house.connect()
        for piece in cut(bytes(changed), places):
            if not connection.closed:
                connection.send(piece)
        self.finish(house, bytes(changed))

    @SETTINGS
    @given(
        some.sampled_from(("2025-06-18", "2025-03-26", "2025-11-25")),
        some.lists(
            some.tuples(some.sampled_from(("mcp", "new", "messages", "modern")), BODIES), min_size=1, max_size=6
        ),
        some.booleans(),
        some.booleans(),
    )
    def test_bodies(self, version: str, posts: list[tuple[str, bytes]], is_away: bool, is_legacy: bool) -> None:
        """Messages with anything in them, to sessions of either transport, to none, and without sessions."""
        house = House()
        house.backend.is_legacy = is_legacy
        house.backend.answers["initialize"] = lambda asked: messages.result(
            asked["id"], {**messages.initialize_result(), "protocolVersion": version}
        )
        stream = house.initialized()
        began = house.ask("POST", "/mcp", JSON_HEAD, encoded(messages.initialize(1)))
        session: HeaderList = ((b"mcp-session-id", began.answer.header(b"mcp-session-id")),)
        if is_away:
            house.backend.go_down()
        for way, body in posts:
            path, headers = "/mcp", ()
            if way == "mcp":
                headers = session
            elif way == "messages":
                path = stream.path
            elif way == "modern":
                headers = self.modern_headers(body)
            house.ask("POST", path, (*JSON_HEAD, *headers), body)
        house.backend.come_back()
        house.clock.advance(100)
        self.finish(house, posts)

    @staticmethod
    def modern_headers(body: bytes) -> Any:
        """Those that fit, if there are such."""
        try:
            return modern.headers_of(json.loads(body))
        except (AttributeError, KeyError, TypeError, UnicodeEncodeError):
            return (modern.VERSION_HEADER,)


class Ids(FuzzCase):
    @SETTINGS
    @given(some.integers(0, 10**6), some.integers(1, 255), some.sampled_from(("POST", "GET", "DELETE", "messages")))
    def test_changed(self, place: int, bits: int, way: str) -> None:
        """With any bits of its id flipped a session is not found, and not harmed."""
        house = House()
        stream = house.initialized()
        began = house.ask("POST", "/mcp", JSON_HEAD, encoded(messages.initialize(1)))
        token = bytearray(began.answer.header(b"mcp-session-id"))
        session: HeaderList = ((b"mcp-session-id", bytes(token)),)
        call = encoded(messages.call("stolen"))
        token[place % len(token)] ^= bits
        if way == "messages":
            path = bytearray(stream.path.encode())
            start = len("/mcp/messages/")
            path[start + place % (len(path) - start)] ^= bits
            data = ask("POST", "/@", JSON_HEAD, call).replace(b"/@", bytes(path), 1)
        else:
            headers: HeaderList = ((b"mcp-session-id", bytes(token)), *JSON_HEAD)
            data = ask(way, "/mcp", headers, call if way == "POST" else None)
        thief = house.connect()
        thief.send(data)
        statuses = {int(status) for status in STATUS.findall(thief.raw)}
        self.assertTrue(statuses <= {400, 404, 405, 421} and statuses, (data, thief.raw))
        for link in house.backend.made:
            self.assertNotIn("stolen", [each.get("id") for each in link.sent], data)
        for headers in (session,):
            self.assertEqual(
                house.ask("POST", "/mcp", (*JSON_HEAD, *headers), encoded(messages.call(2))).answer.status, 200
            )
        self.finish(house, data)


LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{0,5})?", re.IGNORECASE)
PARTS = some.sampled_from(
    (
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "[::1]",
        "::1",
        ":",
        "@",
        "/",
        "\\",
        "?",
        "#",
        ".",
        " ",
        "\t",
        "evil.example",
    )
    + ("8001", "%00", "[", "]", "\xff", "http://", "https://", "null", "")
)
TEXTS = some.lists(PARTS, max_size=5).map("".join)


class Asked:
    """As much of a request as counts."""

    path = "/mcp"
    method = "POST"

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = headers


def is_admitted(*headers: tuple[bytes, bytes]) -> bool:
    """What the guard says, as it is by default."""
    asked: Any = Asked(*headers)
    try:
        Guard().admit(asked)
    except ProxyError:
        return False
    return True


class Names(SynchronousTestCase):
    @settings(max_examples=1000, deadline=None)
    @given(TEXTS)
    def test_hosts(self, host: str) -> None:
        """Only a loopback name, and nothing that merely holds one, is a Host that is served."""
        self.assertEqual(is_admitted((b"host", host.encode("latin-1"))), bool(LOCAL.fullmatch(host)))

    @settings(max_examples=1000, deadline=None)
    @given(TEXTS)
    def test_origins(self, origin: str) -> None:
        """The same for the host of an Origin."""
        scheme, _, host = origin.partition("://")
        expected = scheme.lower() in ("http", "https") and bool(LOCAL.fullmatch(host))
        headers = ((b"host", b"localhost"), (b"origin", origin.encode("latin-1")))
        self.assertEqual(is_admitted(*headers), expected)
