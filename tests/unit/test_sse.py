"""Server-sent events: bytes split anywhere become the same events, and no event costs more than its bound."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire.sse import Decoder, Event, Oversized, comment, encode, retry
from tests.support.fuzz import examples

MANY = examples(200)
SOME = examples(50)
#: How many bytes of each end of an event over the bound are kept, and what the decoder may keep beside the bound.
EDGE = 4096
SLACK = 4 * EDGE + 32

FRAGMENTS = st.sampled_from(
    (
        *(b"data", b"data:", b"data: ", b"event:", b"id: ", b"retry:", b"retry: 12", b":", b" ", b"x", b"{}"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\n\r", b"\0", b"\xff", b"\xef\xbb\xbf", "é".encode(), b"longer"),
    )
)
STREAMS = st.lists(FRAGMENTS, max_size=30).map(b"".join)
CUTS = st.lists(st.integers(min_value=0, max_value=200), max_size=12)


def pieces(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream cut at these places."""
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    return [stream[start:end] for start, end in zip(places, places[1:], strict=False)]


def chunks(stream: bytes, size: int) -> list[bytes]:
    """The stream in pieces of one size."""
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def decoded(parts: Iterable[bytes], bound: int = 2**21) -> list[Event | Oversized]:
    """What a decoder makes of the parts."""
    decoder = Decoder(bound)
    return [event for part in parts for event in decoder.feed(part)]


def expected(stream: bytes) -> list[Event]:
    """The same, worked out the slow way, line by line, from the standard; nothing is too large."""
    *lines, _ = re.split(rb"\r\n|\r|\n", stream)
    lines = [line[3:] if not number and line.startswith(b"\xef\xbb\xbf") else line for number, line in enumerate(lines)]
    events, identity = [], ""
    kind, data, delay = "", list[bytes](), None
    for line in lines:
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if not line:
            if data or kind or delay is not None:
                events.append(Event(kind or "message", b"\n".join(data), identity, delay))
            kind, data, delay = "", [], None
        elif name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            identity = value.decode("utf-8", "replace")
        elif name == b"retry" and re.fullmatch(rb"[0-9]{1,9}", value):
            delay = int(value)
    return events


class Decode(SynchronousTestCase):
    def one(self, stream: bytes) -> Event:
        """The only event of a stream."""
        (event,) = decoded([stream])
        assert isinstance(event, Event)
        return event

    def test_data(self) -> None:
        """An event without a type is a message."""
        self.assertEqual(self.one(b"data: x\n\n"), Event("message", b"x"))

    def test_line_ends(self) -> None:
        """CR, LF and CRLF end a line, also mixed."""
        for end in (b"\r", b"\n", b"\r\n"):
            self.assertEqual(self.one(b"event: e" + end + b"data: x" + end + end), Event("e", b"x"), end)
        self.assertEqual(self.one(b"event: e\rdata: x\ndata: y\r\n\n"), Event("e", b"x\ny"))

    def test_crlf_split(self) -> None:
        """A CRLF that comes in two pieces is one line end, so it does not end the event."""
        self.assertEqual(decoded([b"data: x\r", b"\ndata: y\r", b"\n\r", b"\n"]), [Event("message", b"x\ny")])

    def test_cr_is_not_waited_for(self) -> None:
        """An event that ends in CR is complete before the LF that may follow."""
        decoder = Decoder(100)
        self.assertEqual(decoder.feed(b"data: x\r\n\r"), [Event("message", b"x")])
        self.assertEqual(decoder.feed(b"\n"), [])
        self.assertEqual(decoder.feed(b"data: y\n\n"), [Event("message", b"y")])

    def test_byte_order_mark(self) -> None:
        """A byte order mark is dropped at the start of the stream, wherever it is split, and only there."""
        mark = b"\xef\xbb\xbf"
        stream = mark + b"data: x\n\n" + mark + b"data: y\n\n"
        for cut in range(len(stream)):
            self.assertEqual(decoded([stream[:cut], stream[cut:]]), [Event("message", b"x")], cut)

    def test_byte_order_mark_is_no_data(self) -> None:
        """A byte order mark does not count as data of the first event."""
        event, tight = b"\xef\xbb\xbfdata: 12345\n\n", Event("message", b"12345")
        self.assertEqual(decoded([event], 5), [tight])

    def test_comments(self) -> None:
        """Comments and unknown fields are no events and no part of one."""
        self.assertEqual(decoded([b": hi\n\n:\n\nother: 1\n\nother\n\n"]), [])
        self.assertEqual(self.one(b"data: x\n: hi\nother: 1\ndata: y\n\n"), Event("message", b"x\ny"))

    def test_several_lines(self) -> None:
        """Data in several lines is joined by line feeds; only one blank after the colon goes away."""
        self.assertEqual(self.one(b"data:  x\ndata:y \ndata: a: b\n\n"), Event("message", b" x\ny \na: b"))

    def test_empty_data(self) -> None:
        """Empty data is data, with or without a colon."""
        self.assertEqual(self.one(b"data:\n\n"), Event("message", b""))
        self.assertEqual(self.one(b"data\n\n"), Event("message", b""))
        self.assertEqual(self.one(b"data\ndata: \n\n"), Event("message", b"\n"))

    def test_no_data(self) -> None:
        """A type without data has no data; an id alone is no event."""
        self.assertEqual(self.one(b"event: ping\n\n"), Event("ping", b""))
        self.assertEqual(decoded([b"id: 7\n\n\n\n"]), [])

    def test_id(self) -> None:
        """An id stays until another comes; an empty one resets it, one with NUL is ignored."""
        stream = b"id: 7\ndata: a\n\ndata: b\n\nid: 8\0\ndata: c\n\nid\ndata: d\n\n"
        self.assertEqual([event.id for event in decoded([stream]) if isinstance(event, Event)], ["7", "7", "7", ""])

    def test_type_is_for_one_event(self) -> None:
        """A type is that of its own event only."""
        self.assertEqual(decoded([b"event: e\ndata: a\n\ndata: b\n\n"]), [Event("e", b"a"), Event("message", b"b")])

    def test_retry(self) -> None:
        """A retry delay is digits; anything else is ignored."""
        self.assertEqual(self.one(b"retry: 1500\n\n").retry, 1500)
        for value in (b"1.5", b"-1", b"x", b"", b"9" * 5000, "\u0661".encode()):
            self.assertEqual(decoded([b"retry: " + value + b"\n\n"]), [], value[:10])

    def test_incomplete(self) -> None:
        """What does not end in an empty line is no event."""
        self.assertEqual(decoded([b"data: x\n"]), [])
        self.assertEqual(decoded([b"data: x"]), [])

    def test_not_utf8(self) -> None:
        """Data keeps its bytes; a type or an id that is not UTF-8 does not end the stream."""
        self.assertEqual(self.one(b"event: \xff\nid: \xff\ndata: \xff\n\n"), Event("\ufffd", b"\xff", "\ufffd"))

    @MANY
    @given(STREAMS, CUTS)
    def test_any_split(self, stream: bytes, cuts: list[int]) -> None:
        """However a stream is split, it is the events that the standard says."""
        self.assertEqual(decoded([stream]), expected(stream))
        self.assertEqual(decoded(pieces(stream, cuts)), expected(stream))
        self.assertEqual(decoded(chunks(stream, 1)), expected(stream))

    def test_large(self) -> None:
        """An event of a MiB arrives whole."""
        data = b'{"x":"' + b"0123456789abcdef" * 65536 + b'"}'
        self.assertEqual(decoded(chunks(b"data: " + data + b"\n\n", 1460)), [Event("message", data)])


class Bound(SynchronousTestCase):
    def test_exact(self) -> None:
        """An event may have just as many bytes of data as the bound says, in one line or in several."""
        for data in (b"x" * 10, b"x" * 4 + b"\n" + b"y" * 5, b"\n" * 9 + b"x"):
            self.assertEqual(decoded([encode(data)], 10), [Event("message", data)])
        for data in (b"x" * 11, b"x" * 5 + b"\n" + b"y" * 5):
            (event,) = decoded([encode(data)], 10)
            self.assertIsInstance(event, Oversized, data)

    def test_small_edges(self) -> None:
        """Of an event that is over a small bound but short, the edges are all of it."""
        self.assertEqual(decoded([b"data: 123456\n\n"], 5), [Oversized(b"123456", b"123456", 6)])

    def test_edges(self) -> None:
        """Of an event over the bound the first and last bytes and the exact size are told, however it is split."""
        for bound in (0, 10, EDGE, 3 * EDGE):
            for size in (bound + 1, bound + EDGE - 7, bound + EDGE - 6, bound + EDGE, bound + EDGE + 1, bound + 20_000):
                data = b",".join(b"%06d" % number for number in range(size // 7 + 2))[:size]
                stream = b"data: " + data + b"\n\n"
                for step in (len(stream), 4099, 1000, 97):
                    (event,) = decoded(chunks(stream, step), bound)
                    assert isinstance(event, Oversized)
                    self.assertEqual(event.size, size, (bound, step))
                    self.assertTrue(event.head == data[:EDGE], ("head", bound, size, step))
                    self.assertTrue(event.tail == data[-EDGE:], ("tail", bound, size, step))

    def test_edges_of_several_lines(self) -> None:
        """The edges are those of the data also where it is in several lines."""
        lines = [b'{"result":', b"%0*d" % (3 * EDGE, 7), b"8" * 100, b'"jsonrpc":"2.0",', b'"id":1', b"}"]
        data = b"\n".join(lines)
        for bound in (2 * EDGE, len(data) - 2, len(data) - 1):
            (event,) = decoded(chunks(encode(data), 1000), bound)
            self.assertEqual(event, Oversized(data[:EDGE], data[-EDGE:], len(data)), bound)

    def test_next_event_is_unharmed(self) -> None:
        """The events before and after one over the bound are whole, and so is the last id."""
        huge = b"id: 2\ndata: " + b"x" * 50_000 + b"\n\n"
        stream = b"id: 1\ndata: a\n\n" + huge + b"data: b\n\n" + huge + b"event: e\ndata: c\n\n"
        for step in (len(stream), 1000, 7):
            before, first, between, second, after = decoded(chunks(stream, step), 100)
            self.assertEqual(before, Event("message", b"a", "1"))
            self.assertEqual((between, after), (Event("message", b"b", "2"), Event("e", b"c", "2")))
            for event in (first, second):
                assert isinstance(event, Oversized)
                self.assertEqual(event.size, 50_000)

    def test_huge_comment(self) -> None:
        """A comment over the bound is dropped without a trace."""
        self.assertEqual(decoded(chunks(b":" + b"x" * 50_000 + b"\ndata: a\n\n", 1000), 100), [Event("message", b"a")])

    @MANY
    @given(STREAMS, CUTS, st.integers(min_value=0, max_value=12))
    def test_any_split(self, stream: bytes, cuts: list[int], bound: int) -> None:
        """Under any bound the same events are told, in order: whole within it, by their edges and size over it."""
        for parts in (pieces(stream, cuts), [stream]):
            told, wanted = decoded(parts, bound), expected(stream)
            self.assertEqual(len(told), len(wanted))
            for event, whole in zip(told, wanted, strict=True):
                if len(whole.data) <= bound:
                    self.assertEqual(event, whole)
                else:
                    assert isinstance(event, Oversized), (event, whole)
                    self.assertEqual(event.size, len(whole.data))
                    self.assertTrue(whole.data.startswith(event.head) and whole.data.endswith(event.tail), event)

    @SOME
    @given(
        st.lists(st.tuples(st.sampled_from((b"data: ", b"data: ", b": ", b"x: ")), st.integers(0, 60_000)), max_size=6),
        st.integers(min_value=64, max_value=40_000),
        st.sampled_from((10, 5000, 30_000)),
    )
    def test_memory(self, lines: list[tuple[bytes, int]], step: int, bound: int) -> None:
        """What is kept is never much more than the bound, whatever lines come and however they are split."""
        decoder = Decoder(bound)
        for part in chunks(b"".join(name + b"x" * size + b"\n" for name, size in lines), step):
            decoder.feed(part)
            self.assertLessEqual(decoder.buffered, bound + SLACK + step)
        decoder.feed(b"\n\n")
        self.assertEqual(decoder.buffered, 0)

    def test_memory_of_two_lines(self) -> None:
        """A second line as long as the bound does not double what is kept."""
        decoder = Decoder(100_000)
        decoder.feed(b"data: " + b"x" * 99_000 + b"\n")
        for part in chunks(b"data: " + b"y" * 99_000, 1000):
            decoder.feed(part)
            self.assertLessEqual(decoder.buffered, 100_000 + SLACK)


class Encode(SynchronousTestCase):
    def test_text(self) -> None:
        """An event is its id, its type, its data, and an empty line."""
        self.assertEqual(encode(b"{}"), b"event: message\ndata: {}\n\n")
        self.assertEqual(encode(b"{}", b"endpoint", b"a.1"), b"id: a.1\nevent: endpoint\ndata: {}\n\n")

    def test_comment_and_retry(self) -> None:
        """A comment is no event; a retry delay is told."""
        self.assertEqual(decoded([comment(b"ping")]), [])
        (event,) = decoded([retry(250)])
        self.assertEqual(event, Event("message", b"", retry=250))

    @SOME
    @given(st.lists(st.binary(max_size=30).filter(lambda text: not re.search(rb"[\r\n]", text)), min_size=1))
    def test_round_trip(self, lines: list[bytes]) -> None:
        """Data in any number of lines comes back, each line end as a line feed."""
        if not lines[-1]:
            lines = [*lines, b"."]
        for end in (b"\n", b"\r", b"\r\n"):
            (event,) = decoded([encode(end.join(lines), b"e", b"i")])
            self.assertEqual(event, Event("e", b"\n".join(lines), "i"))
