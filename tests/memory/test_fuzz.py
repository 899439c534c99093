"""Whatever bytes clients send, and whatever names: answered or refused, and nothing is left of it.

`tests.memory.test_anything` tries whatever messages; ``make fuzz`` tries many more of both.
"""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.frontend.guard import Guard
from mcp_proxy.wire.errors import ProxyError
from tests.memory.test_stacks import cut, one_request
from tests.support import messages
from tests.support.fuzz import examples
from tests.support.http1 import HeaderList, ask
from tests.support.memory import JSON_HEAD, House
from tests.support.messages import encoded

SETTINGS = examples(150)
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


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
    @examples(1000)
    @given(TEXTS)
    def test_hosts(self, host: str) -> None:
        """Only a loopback name, and nothing that merely holds one, is a Host that is served."""
        self.assertEqual(is_admitted((b"host", host.encode("latin-1"))), bool(LOCAL.fullmatch(host)))

    @examples(1000)
    @given(TEXTS)
    def test_origins(self, origin: str) -> None:
        """The same for the host of an Origin."""
        scheme, _, host = origin.partition("://")
        expected = scheme.lower() in ("http", "https") and bool(LOCAL.fullmatch(host))
        headers = ((b"host", b"localhost"), (b"origin", origin.encode("latin-1")))
        self.assertEqual(is_admitted(*headers), expected)
