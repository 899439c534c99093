"""The reader of requests: what it takes, what it refuses, and that it never matters how the bytes are cut."""

from __future__ import annotations

from typing import Any

import httptools
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire import http1
from mcp_proxy.wire.errors import (
    EndlessBody,
    HeadTooLarge,
    HTTPVersionRefused,
    MalformedRequest,
    ProxyError,
)
from mcp_proxy.wire.http1 import RequestReader
from tests.support.fuzz import examples

HOST = b"Host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
Seen = tuple[str, str, bytes | None, bool]

#: What has two readings, or none. Every one of these has been used to smuggle a request past somebody.
MALFORMED = (
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    b"GET / HTTP/1.1\r\nHost: x\rA: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost\t: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nH\xf6st: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: x\0y\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: x\x0by\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: x\x7f\r\n\r\n",
    b"GET  / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1 \r\n\r\n",
    b"GET /a b HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\n\r\n",
    b"GET /\r\n\r\n",
    b"G(T / HTTP/1.1\r\n\r\n",
    b"G\xffT / HTTP/1.1\r\n\r\n",
    b"get / http/1.1\r\n\r\n",
    b" GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"\n",
    b"\r\n\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 0x1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 9999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: \r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    CHUNKED + b"\r\n",
    CHUNKED + b"x\r\n",
    CHUNKED + b"-1\r\n",
    CHUNKED + b"+1\r\n",
    CHUNKED + b"0x1\r\n",
    CHUNKED + b"1_0\r\n",
    CHUNKED + b"1 \r\n",
    CHUNKED + b" 1\r\n",
    CHUNKED + b"1 ;a\r\n",
    CHUNKED + b"1\nx\r\n0\r\n\r\n",
    CHUNKED + b"1\rx\r\n0\r\n\r\n",
    CHUNKED + b"1;a\nb\r\nx\r\n0\r\n\r\n",
    CHUNKED + b"1;a\rb\r\nx\r\n0\r\n\r\n",
    CHUNKED + b"1;a\0b\r\nx\r\n0\r\n\r\n",
    CHUNKED + b"1\r\nxy\r\n0\r\n\r\n",
    CHUNKED + b"1\r\nx\n0\r\n\r\n",
    CHUNKED + b"1\r\nx\r0\r\n\r\n",
    CHUNKED + b"1\r\nxyz0\r\n\r\n",
    CHUNKED + b"2\r\nx\r\n0\r\n\r\n",
    CHUNKED + b"fffffffffffff\r\n",
    CHUNKED + b"1;" + b"a" * 1100,
    CHUNKED + b"0\r\nno colon\r\n\r\n",
    CHUNKED + b"0\r\n folded\r\n\r\n",
    CHUNKED + b"0\n\n",
)


@frozen
class Reading:
    """What was read: the requests, and why it ended, if it did."""

    seen: tuple[Seen, ...]
    refused: type[ProxyError] | None


def read(*pieces: bytes, max_body: int = 1000, max_swallowed: int = 2000) -> Reading:
    """Read these pieces, as a connection does."""
    reader = RequestReader(max_body, max_swallowed)
    seen: list[Seen] = []
    try:
        for piece in pieces:
            request = reader.whole(piece)
            if request is None:
                reader.feed(piece)
                request = reader.next()
            while request is not None:
                seen.append((request.method, request.target, request.body, request.is_persistent))
                request = reader.next()
    except ProxyError as error:
        return Reading(tuple(seen), type(error))
    return Reading(tuple(seen), None)


def cut(data: bytes, *places: int) -> list[bytes]:
    """The data in pieces."""
    ends = [0, *sorted(place for place in set(places) if 0 < place < len(data)), len(data)]
    return [data[start:end] for start, end in zip(ends, ends[1:], strict=False)]


class Taken(SynchronousTestCase):
    def one(self, data: bytes) -> Seen:
        """The only request in these bytes, however they are cut."""
        reading = read(data)
        self.assertEqual((reading.refused, len(reading.seen)), (None, 1), data)
        self.assertEqual(read(*(data[at : at + 1] for at in range(len(data)))), reading)
        return reading.seen[0]

    def test_plain(self) -> None:
        """Requests with and without a body, of both versions."""
        self.assertEqual(self.one(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"), ("GET", "/a?b=c", b"", True))
        self.assertEqual(self.one(b"GET / HTTP/1.0\r\n\r\n"), ("GET", "/", b"", False))
        self.assertEqual(self.one(b"POST / HTTP/1.1\r\ncontent-LENGTH:3\r\n\r\nabc"), ("POST", "/", b"abc", True))
        self.assertEqual(self.one(b"POST / HTTP/1.1\r\nContent-Length: 000\r\n\r\n"), ("POST", "/", b"", True))
        self.assertEqual(self.one(b"M-SEARCH * HTTP/1.1\r\n\r\n"), ("M-SEARCH", "*", b"", True))

    def test_headers(self) -> None:
        """Names come in lower case, values without the space around them; order and repetition stay."""
        reader = RequestReader(0, 0)
        reader.feed(b"GET / HTTP/1.1\r\nHost:x\r\nB: \t1 2\t \r\nempty:\r\nb:\xe4\r\nX-:;\r\n\r\n")
        request = reader.next()
        assert request is not None
        expected = ((b"host", b"x"), (b"b", b"1 2"), (b"empty", b""), (b"b", b"\xe4"), (b"x-", b";"))
        self.assertEqual(request.headers, expected)

    def test_chunks(self) -> None:
        """Chunks are joined; their extensions and what follows the last one mean nothing here."""
        for body in (
            b"3\r\nabc\r\n0\r\n\r\n",
            b'1\r\na\r\n2;x="y"\r\nbc\r\n000;z\r\n\r\n',
            b"003\r\nabc\r\n0\r\nContent-Length: 9\r\nX: y\r\n\r\n",
        ):
            self.assertEqual(self.one(CHUNKED + body), ("POST", "/", b"abc", True), body)
        self.assertEqual(self.one(CHUNKED + b"A\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n")[2], b"0\r\n\r\n0\r\n\r\n")

    def test_persistence(self) -> None:
        """A client of HTTP/1.1 that wants the connection closed can say so among other things, and repeatedly."""
        for value in (b"close", b"Close", b"keep-alive, close", b"close,x", b"x\r\nConnection: close"):
            self.assertFalse(self.one(b"GET / HTTP/1.1\r\nConnection: " + value + b"\r\n\r\n")[3], value)
        for value in (b"keep-alive", b"closed", b"upgrade"):
            self.assertTrue(self.one(b"GET / HTTP/1.1\r\nConnection: " + value + b"\r\n\r\n")[3], value)

    def test_upgrade(self) -> None:
        """A wish to speak something else is ignored; the body is a body and no second request."""
        inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(inner)
        self.assertEqual(self.one(head + inner), ("POST", "/", inner, True))

    def test_pipelined(self) -> None:
        """Requests follow each other without a gap, or with one empty line."""
        first, second = b"POST /1 HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", b"GET /2 HTTP/1.1\r\n\r\n"
        third = CHUNKED + b"1\r\nc\r\n0\r\n\r\n"
        for gap in (b"", b"\r\n"):
            data = first + gap + second + gap + third + gap + first
            expected = read(data)
            self.assertEqual([each[2] for each in expected.seen], [b"ab", b"", b"c", b"ab"])
            for place in range(1, len(data)):
                self.assertEqual(read(*cut(data, place)), expected, (gap, place))

    def test_expected(self) -> None:
        """A client that waits before it sends its body is told once; one that has sent it is not."""
        for version, told in ((b"1.1", True), (b"1.0", False)):
            reader = RequestReader(10, 10)
            reader.feed(b"POST / HTTP/" + version + b"\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
            self.assertIsNone(reader.next())
            self.assertEqual([reader.take_continue(), reader.take_continue()], [told, False])
            reader.feed(b"ab")
            self.assertIsNotNone(reader.next())
        reader.feed(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
        self.assertIsNotNone(reader.next())
        self.assertFalse(reader.take_continue())


class Refused(SynchronousTestCase):
    def test_malformed(self) -> None:
        """What can be read in two ways is refused, wherever it is cut, and nothing that follows it is read."""
        smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        for text in MALFORMED:
            self.assertIsNotNone(read(text).refused, text)
            data = text + smuggled
            for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
                reading = read(*pieces)
                self.assertEqual(reading.seen, (), text)
                self.assertIsNotNone(reading.refused, text)

    def test_at_once(self) -> None:
        """A head that can be none is refused before its end, which might never come."""
        for text in (b"GET / HTTP/1.1\nHost: x\n\n", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nA: b\rC", b"{"):
            self.assertIs(read(text).refused, MalformedRequest, text)

    def test_versions(self) -> None:
        """Other versions of HTTP are told that they are."""
        for version in (b"2.0", b"1.2", b"0.9", b"3.0"):
            self.assertIs(read(b"GET / HTTP/" + version + b"\r\n\r\n").refused, HTTPVersionRefused, version)
        self.assertIs(read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").refused, HTTPVersionRefused)

    def test_large_head(self) -> None:
        """A head is bounded in bytes and in headers, whether it ends or not."""
        start = b"GET / HTTP/1.1\r\n"
        fits = start + b"a: " + b"b" * (http1.MAX_HEAD - len(start) - 3)
        self.assertEqual(len(read(fits + b"\r\n\r\n").seen), 1)
        self.assertIs(read(fits + b"b\r\n\r\n").refused, HeadTooLarge)
        self.assertIs(read(*(b"GET / HTTP/1.1\r\nA: ", *(b"a" * 1000 for _ in range(17)))).refused, HeadTooLarge)
        self.assertEqual(len(read(start + b"a:\r\n" * (http1.MAX_HEADERS - 1) + b"\r\n").seen), 1)
        self.assertIs(read(start + b"a:\r\n" * http1.MAX_HEADERS + b"\r\n").refused, HeadTooLarge)

    def test_large_trailer(self) -> None:
        """What follows the last chunk is bounded."""
        self.assertIs(read(CHUNKED + b"0\r\n" + b"a: b\r\n" * 5000).refused, EndlessBody)
        reading = read(CHUNKED + b"0\r\n" + b"a: b\r\n" * 5000, max_swallowed=1_000_000)
        self.assertIs(reading.refused, HeadTooLarge)

    def test_large_body(self) -> None:
        """A body over the limit is none, and what follows it is read; too far over the limit is the end."""
        after = b"GET /after HTTP/1.1\r\n\r\n"
        for count, body in ((1000, b"x" * 1000), (1001, None), (2900, None)):
            plain = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % count + b"x" * count
            chunked = CHUNKED + b"%x\r\n" % count + b"x" * count + b"\r\n0\r\n\r\n"
            for data in (plain + after, chunked + after):
                for pieces in ([data], cut(data, 100, 500, 1000, 1500, 2000)):
                    reading = read(*pieces)
                    self.assertEqual([each[1:3] for each in reading.seen], [("/", body), ("/after", b"")], count)
        for head in (b"POST / HTTP/1.1\r\nContent-Length: 4000\r\n\r\n", CHUNKED + b"fa0\r\n"):
            reading = read(head, *(b"x" * 100 for _ in range(40)))
            self.assertEqual((reading.seen, reading.refused), ((), EndlessBody))

    def test_small_chunks(self) -> None:
        """What surrounds the chunks counts as well."""
        self.assertIs(read(CHUNKED, *(b"1;%b\r\nx\r\n" % (b"e" * 1000) for _ in range(4))).refused, EndlessBody)

    def test_nothing_kept(self) -> None:
        """Of a body over the limit nothing stays in memory."""
        reader = RequestReader(1000, 10_000)
        reader.feed(CHUNKED)
        for _ in range(12):
            reader.feed(b"64\r\n" + b"x" * 100 + b"\r\n")
            self.assertIsNone(reader.next())
        self.assertEqual((reader.kept, reader.buffered), (0, 0))


class Oracle:
    """What another reader makes of the same bytes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self._parser: Any = httptools.HttpRequestParser(self)
        self._target = self._body = b""

    def on_message_begin(self) -> None:
        """A request begins."""
        self._target = self._body = b""

    def on_url(self, data: bytes) -> None:
        """Its target."""
        self._target += data

    def on_body(self, data: bytes) -> None:
        """Its body."""
        self._body += data

    def on_message_complete(self) -> None:
        """It is complete."""
        self.seen.append((self._parser.get_method().decode(), self._target.decode(), self._body))

    def read(self, data: bytes) -> list[tuple[str, str, bytes]] | None:
        """The requests, or None if they are refused."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            return None
        return self.seen


#: Pieces of HTTP, good and bad, of which requests are made.
LINES = some.sampled_from(
    (
        b"Host: x",
        b"A:b",
        b"A : b",
        b" folded",
        b"Content-Length: 3",
        b"Content-Length: 0",
        b"Content-Length: 3, 3",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"transfer-encoding:\tCHUNKED ",
        b"Connection: keep-alive",
        b"N\0: x",
        b"\xff: x",
        b"V: \xff",
        b"V: \x01",
    )
)
ENDS = some.sampled_from((b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"))
FIRST = some.sampled_from(
    (b"GET / HTTP/1.1", b"POST /a HTTP/1.1", b"POST /a  HTTP/1.1", b"GET / HTTP/1.0", b"G@T / HTTP/1.1")
)
BODIES = some.sampled_from(
    (b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3\nabc\r\n0\r\n\r\n", b"0\r\n\r\n", b"3;e\r\nabc\r\n0\r\nT: t\r\n\r\n")
)


@some.composite
def one_request(draw: Any) -> bytes:
    """Something like a request."""
    lines = [draw(FIRST), *draw(some.lists(LINES, max_size=4))]
    return b"".join(line + draw(ENDS) for line in lines) + draw(ENDS) + draw(BODIES)


#: Lines of a sound head, and what a length may look like.
GOOD_LINES = some.sampled_from(
    (
        b"Host: x",
        b"A: b",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Expect: 100-continue",
        b"content-lengths: 3",
    )
)
LENGTHS = some.sampled_from(
    (b"0", b"3", b"007", b"12", b"2000", b"9" * 15, b"1" + b"0" * 15, b"3 ", b"+3", b"3a", b"\xb2")
)


class AnyBytes(SynchronousTestCase):
    @examples(400)
    @given(
        data=some.lists(one_request(), max_size=4).map(b"".join), places=some.lists(some.integers(0, 400), max_size=6)
    )
    def test_pieces(self, data: bytes, places: list[int]) -> None:
        """Where the bytes are cut makes no difference, whatever they are."""
        self.assertEqual(read(*cut(data, *places)).seen, read(data).seen)

    @examples(400)
    @given(data=some.lists(one_request(), min_size=1, max_size=3).map(b"".join))
    def test_second_opinion(self, data: bytes) -> None:
        """What is taken here means the same to the parser of Node.js, which many others use; it may refuse more."""
        reading = read(data)
        if reading.refused is None and reading.seen:
            other = Oracle().read(data)
            if other is not None:
                self.assertEqual([each[:3] for each in reading.seen], other[: len(reading.seen)])

    @examples(400)
    @given(
        lines=some.lists(GOOD_LINES, max_size=3),
        length=LENGTHS,
        other_length=LENGTHS,
        change=some.sampled_from((None, (b"A: b", b"A: c"), (b"/a", b"/b"), (b"Host", b"Most"), (b"1.1", b"1.0"))),
        rest=some.sampled_from((b"", b"abc", b"0123456789" * 20)),
    )
    def test_like_the_last(
        self, lines: list[bytes], length: bytes, other_length: bytes, change: tuple[bytes, bytes] | None, rest: bytes
    ) -> None:
        """A head that repeats the last one's, but for the length perhaps, is read as if it were the first."""

        def head(value: bytes) -> bytes:
            return b"\r\n".join((b"POST /a HTTP/1.1", *lines, b"Content-Length: " + value, b"Z: z", b"", b""))

        reader = RequestReader(1000, 2000)
        reader.feed(head(length) + b"x" * 200)
        try:
            first = reader.next()
        except ProxyError:
            return
        if first is None or first.body is None:
            return
        second = head(other_length) if change is None else head(other_length).replace(*change)
        again, at_once, fresh = (RequestReader(1000, 2000) for _ in range(3))
        for each in (again, at_once):
            each.feed(head(length) + first.body)
            each.next()
        readings: list[Any] = []
        for each in (again, at_once, fresh):
            found = at_once.whole(second + rest) if each is at_once else None
            try:
                if found is None:
                    each.feed(second + rest)
                    found = each.next()
            except ProxyError as error:
                readings.append(type(error))
            else:
                told = found and (found.method, found.target, *found.headers, found.body, found.has_length)
                readings.append((told, each.take_continue(), each.buffered, each.kept, each.is_between))
        self.assertEqual(readings, [readings[0]] * 3)

    def test_same_headers(self) -> None:
        """What was made of the headers of the last request serves for one that has the same."""
        reader = RequestReader(1000, 2000)
        seen = []
        for body in (b"1", b"22", b"333333333333"):
            reader.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            request = reader.next()
            assert request is not None
            seen.append((id(request.headers), request.body))
        self.assertEqual(len({each[0] for each in seen}), 1)
        self.assertEqual([each[1] for each in seen], [b"1", b"22", b"333333333333"])

    def test_whole(self) -> None:
        """A request that comes as it should is read at once; not so a part of it, more, or one that is too large."""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        reader = RequestReader(1000, 2000)
        self.assertIsNone(reader.whole(head % 1 + b"1"), "there was none before it")
        reader.feed(head % 1 + b"1")
        reader.next()
        for body in (b"", b"22", b"x" * 1000):
            request = reader.whole(head % len(body) + body)
            self.assertEqual(request and request.body, body)
            self.assertTrue(reader.is_between)
        for data in (head % 2 + b"1", head % 1 + b"12", head % 1001 + b"x" * 1001, b"\r\n" + head % 0, b""):
            self.assertIsNone(reader.whole(data), data[-20:])
        reader.feed(head % 2 + b"1")
        self.assertIsNone(reader.next())
        self.assertIsNone(reader.whole(head % 0), "it is of the body of the last")

    def test_given_away(self) -> None:
        """What becomes of a request does not change the next one with the same head."""
        reader = RequestReader(1000, 2000)
        for _ in range(3):
            reader.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
            request = reader.next()
            assert request is not None
            self.assertEqual((request.headers, request.is_persistent), (((b"host", b"x"),), True))
            request.headers, request.is_persistent = (), False

    @examples(200)
    @given(data=some.binary(max_size=300), place=some.integers(0, 300))
    def test_noise(self, data: bytes, place: int) -> None:
        """Noise is refused or waited for; nothing breaks."""
        for start in (b"", b"POST / HTTP/1.1\r\n", CHUNKED, CHUNKED + b"5\r\n", CHUNKED + b"0\r\n"):
            read(*cut(start + data, place))


class Heads(SynchronousTestCase):
    def test_head(self) -> None:
        """Names look as usual; what frames the answer is ours to say; nothing can end a line early."""
        headers = (
            (b"www-authenticate", b"a\r\nEvil: 1"),
            (b"content-length", b"9"),
            (b"Transfer-Encoding", b"chunked"),
            (b"connection", b"x"),
            (b"bad name", b"x"),
        )
        text = http1.head(401, headers, is_1_1=True, is_persistent=False)
        expected = (
            b"HTTP/1.1 401 Unauthorized\r\nServer: mcp-proxy\r\nConnection: close\r\nWww-Authenticate: a  Evil: 1\r\n"
        )
        self.assertEqual(text, expected)

    def test_odd_status(self) -> None:
        """A backend's own status has no name."""
        self.assertTrue(http1.head(599, (), is_1_1=False, is_persistent=True).startswith(b"HTTP/1.0 599 \r\n"))
