"""Both ways of HTTP, the lean one and Klein's, understand the same bytes in the same way, but for what is said here."""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from tests.memory.house_case import ALICE
from tests.support import messages
from tests.support.http1 import HeaderList, ask, chunked
from tests.support.memory import JSON_HEAD, Connection, House
from tests.support.messages import encoded

#: Headers of an answer that must be the same.
COMPARED = (
    b"allow",
    b"cache-control",
    b"connection",
    b"content-length",
    b"content-type",
    b"date",
    b"retry-after",
    b"server",
    b"transfer-encoding",
    b"x-accel-buffering",
)
#: Where the lean way refuses what Klein's takes. Each is a line of a head, or of a chunked body, that RFC 9112 does not
#: have, or that it lets a server refuse; a request with one is refused, and the connection closed.
STRICTER = {
    "bare LF or CR": re.compile(rb"(?<!\r)\n|\r(?!\n)"),
    "obs-fold": re.compile(rb"\r\n[ \t]"),
    "control characters in a value": re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    "bytes above ASCII in a target": re.compile(rb"^[A-Z]+ [^ ]*[\x80-\xff]"),
    "Transfer-Encoding: identity": re.compile(rb"(?i)transfer-encoding:[ \t]*identity"),
    "Transfer-Encoding in HTTP/1.0": re.compile(rb"(?is)HTTP/1\.0.*transfer-encoding:"),
    "a trailer that is no header": re.compile(rb"\r\n0[^\r]*\r\n(?!\r\n)[^:]*\r\n"),
    "a number of more than 15 digits as a length": re.compile(rb"(?i)content-length:[ \t]*[0-9]{16,}"),
}
#: Ends whatever was begun.
ENDING = b"\r\n\r\n\r\n"
CALL = encoded(messages.call("a"))
PING = encoded(messages.request("ping", "p"))


@frozen
class Outcome:
    """What came back, what reached the backend, and how the connection ended."""

    answers: tuple[tuple[int, HeaderList, bytes], ...]
    reached: tuple[Any, ...]
    sessions: int
    is_closed: bool


def answers_in(data: bytes, *, closed: bool) -> tuple[tuple[int, HeaderList, bytes], ...]:
    """All answers in these bytes, with their lengths told by their heads."""
    found = []
    while True:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            return tuple(found)
        status_line, *lines = head.split(b"\r\n")
        status = int(status_line.split()[1])
        known = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        if status == 100 or rest.startswith(b"HTTP/1."):  # to HEAD there is no body, whatever its length
            body, data = b"", rest
        elif b"content-length" in known:
            length = int(known[b"content-length"])
            body, data = rest[:length], rest[length:]
        elif b"transfer-encoding" in known:
            body, data = dechunked(rest)
        else:
            body, data = rest, b""
        if b"date" in known:
            known[b"date"] = re.sub(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", b"a date", known[b"date"])
        shown = tuple((name, known[name]) for name in COMPARED if name in known)
        if status != 100:  # twisted.web tells also those to send on who have sent all
            found.append((status, shown, plain(body)))


def dechunked(data: bytes) -> tuple[bytes, bytes]:
    """The body, however it was cut, and what follows it."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body += data[:length]
        data = data[length + 2 :]
        if not length:
            break
    return body, data


def plain(body: bytes) -> bytes:
    """A body without what is random in it."""
    body = re.sub(rb"/mcp/messages/[A-Za-z0-9_-]+", b"/mcp/messages/...", body)
    body = re.sub(rb"id: [A-Za-z0-9_.-]+", b"id: ...", body)
    return re.sub(rb'"uptime_seconds":[0-9.]+', b"", body)


class Pair:
    """A house of each kind, to which the same is done."""

    def __init__(self) -> None:
        self.houses = {stack: House(stack=stack, max_body_bytes=500) for stack in ("lean", "klein")}
        self.paths = {stack: house.initialized(ALICE).path for stack, house in self.houses.items()}

    def outcome(self, stack: str, pieces: list[bytes]) -> Outcome:
        """Send these pieces on one connection; ``@`` is the path of an HTTP+SSE session."""
        house = self.houses[stack]
        before = len(house.backend.link.sent)
        link = house.backend.link
        connection: Connection = house.connect()
        for piece in pieces:
            if not connection.closed:
                connection.send(piece.replace(b"@", self.paths[stack].encode()))
        house.clock.advance(3)
        raw, is_closed = connection.raw, connection.closed
        sessions = len(house.registry)
        reached = tuple((each.get("method"), each.get("id"), str(each.get("params"))) for each in link.sent[before:])
        connection.hang_up()
        return Outcome(answers_in(raw, closed=is_closed), reached, sessions, is_closed)

    def close(self) -> None:
        """Everybody goes."""
        for house in self.houses.values():
            house.close()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces; a session's path stays whole, for it is put in later."""
    ends = sorted({place for place in places if 0 < place < len(data)})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def is_stricter(data: bytes) -> list[str]:
    """For which reasons the lean way may refuse what the other takes."""
    return [name for name, pattern in STRICTER.items() if pattern.search(data)]


METHODS = some.sampled_from(("GET", "POST", "POST", "POST", "DELETE", "HEAD", "PUT", "OPTIONS", "BREW"))
PATHS = some.sampled_from(
    (
        "@",
        "@",
        "/mcp",
        "/mcp",
        "/mcp?x=1",
        "/mcp/",
        "/%6dcp",
        "/mcp/sse",
        "/mcp/messages/none",
        "/mcp/messages/a/b",
        "/mcp/messages/%41",
        "//mcp",
        "/health",
        "/ready",
        "/",
        "/nothing",
        "*",
        "http://localhost/mcp",
        "/\xff",
    )
)
HEADERS = some.sampled_from(
    (
        ALICE,
        ALICE,
        ALICE,
        (b"x-api-key", b"other"),
        (b"Content-Type", b"application/json"),
        (b"Content-Type", b"application/json"),
        (b"Content-Type", b"text/plain"),
        (b"Accept", b"application/json, text/event-stream"),
        (b"Accept", b"text/html"),
        (b"Host", b"evil.example"),
        (b"Host", b"localhost"),
        (b"Origin", b"https://evil.example"),
        (b"Connection", b"close"),
        (b"Connection", b"keep-alive"),
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"h2c"),
        (b"Expect", b"100-continue"),
        (b"Mcp-Session-Id", b"none"),
        (b"Mcp-Protocol-Version", b"2025-06-18"),
        (b"Mcp-Protocol-Version", b"2026-07-28"),
        (b"Last-Event-ID", b"none.1"),
        (b"Cookie", b"a=b; c"),
        (b"X", b"a\r\n folded"),
        (b"X", b"a\x01b"),
        (b"X", b"a\x00b"),
        (b"X ", b"a"),
        (b"", b"a"),
        (b"Content-Length", b"3"),
        (b"Content-Length", b"0"),
        (b"Content-Length", b"-1"),
        (b"Content-Length", b"3, 3"),
        (b"Content-Length", b"1" * 20),
        (b"Transfer-Encoding", b"chunked"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Transfer-Encoding", b"gzip, chunked"),
        (b"Transfer-Encoding", b"identity"),
    )
)
BODIES = some.sampled_from(
    (
        None,
        b"",
        CALL,
        CALL,
        PING,
        encoded(messages.notification("notifications/x")),
        encoded(messages.initialize("i")),
        b"{",
        b"[]",
        CALL + b" " * 500,
        chunked(CALL[:10], CALL[10:]),
        chunked(CALL[:10], CALL[10:]),
        chunked(CALL + b" " * 600),
        chunked(CALL).replace(b"\r\n", b"\n", 1),
        chunked(CALL).replace(b"\r\n0\r\n", b";\r\n0\r\n"),
        b"1;ext=1\r\n \r\n" + chunked(CALL),
        chunked(CALL)[:-2] + b"Trailer: x\r\n\r\n",
        chunked(CALL)[:-2] + b"no trailer\r\n\r\n",
        b"0x1\r\n" + chunked(CALL),
        b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n",
    )
)


@some.composite
def one_request(draw: Any) -> bytes:
    """A request, sound or not."""
    headers: HeaderList = tuple(draw(some.lists(HEADERS, max_size=5)))
    if draw(some.booleans()):
        headers = (*headers, ALICE, *JSON_HEAD)
    told = [each for each in headers if each[0] == b"Connection"]  # of several, twisted.web sees the first
    headers = tuple(each for each in headers if each[0] != b"Connection" or each is told[0])
    method, path, body = draw(METHODS), draw(PATHS), draw(BODIES)
    if body is not None and body.endswith(b"\r\n\r\n") and draw(some.booleans()):
        headers = (*headers, (b"Transfer-Encoding", b"chunked"))
    data = ask(method, path, headers, body)
    return data.replace(b"HTTP/1.1", b"HTTP/1.0", 1) if draw(some.integers(0, 9)) == 0 else data


class Stacks(SynchronousTestCase):
    def outcomes(self, pieces: list[bytes]) -> tuple[Outcome, Outcome]:
        """What both make of it."""
        pair = Pair()
        try:
            return pair.outcome("lean", pieces), pair.outcome("klein", pieces)
        finally:
            pair.close()
            self.flushWarnings()
            self.assertEqual(self.flushLoggedErrors(), [], pieces)

    def compare(self, data: bytes, pieces: list[bytes]) -> None:
        """Both do the same, but that the lean one may refuse, for a reason that is listed, what the other takes."""
        lean, klein = self.outcomes(pieces)
        if lean == klein:
            return
        if lean.answers and is_refusal(lean.answers[-1]) and not klein.is_closed:
            # what can become no head is refused before its end; the other waits for that
            lean, klein = self.outcomes([*pieces, ENDING])
        if not lean.answers or not is_refusal(lean.answers[-1]):
            self.assertEqual(lean, klein, data)
        count = len(lean.answers) - 1
        self.assertTrue(lean.is_closed, data)
        self.assertEqual(lean.answers[:count], klein.answers[:count], data)
        both = klein.is_closed and len(klein.answers) == count + 1 and klein.answers[count][:2] == (400, ())
        if both:
            self.assertEqual((lean.reached, lean.sessions), (klein.reached, klein.sessions), data)
        else:
            self.assertEqual(lean.reached, klein.reached[: len(lean.reached)], data)
            self.assertNotEqual(is_stricter(data), [], data)

    @settings(max_examples=300, deadline=None)
    @given(
        data=some.lists(one_request(), min_size=1, max_size=3).map(b"".join),
        places=some.lists(some.integers(0, 600), max_size=5),
    )
    def test_same(self, data: bytes, places: list[int]) -> None:
        """Odd, split, pipelined, oversized and malformed requests have the same effect on both."""
        self.compare(data, cut(data, places))

    def test_large_for_the_site(self) -> None:
        """A body over the limit in a request that is not plain has a length all the same; found by the test above."""
        data = b"POST /%%6dcp HTTP/1.0\r\nHost: localhost\r\nContent-Length: 598\r\n\r\n%b" % (b" " * 598)
        lean, klein = self.outcomes([data])
        self.assertEqual(lean, klein)
        self.assertEqual([answer[0] for answer in lean.answers], [415])


def is_refusal(answer: tuple[int, HeaderList, bytes]) -> bool:
    """Whether it is how the lean way ends a connection."""
    return answer[0] in (400, 431, 505) and (b"connection", b"close") in answer[1]
