"""The client's side of an HTTP+SSE session: every message once and in order, whatever becomes of the streams."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.session.outlet import MAX_BYTES, MAX_EVENTS, Channel, SSEOutlet
from mcp_proxy.wire.jsonrpc import parse
from tests.support.messages import call, encoded
from tests.unit.session_world import FakeStream


class Listener(FakeStream):
    """A stream that keeps what came on it."""

    def __init__(self) -> None:
        super().__init__(lambda number, message: self.seen.append((number, message)))
        self.seen: list[tuple[int, Any]] = []
        self.data = b""

    def write(self, data: bytes) -> None:
        """The client receives bytes."""
        self.data += data
        super().write(data)


def attached(channel: Channel, since: int | None = None) -> Listener:
    """A new stream, in use."""
    stream = Listener()
    channel.attach(stream, since)
    return stream


class Streams(SynchronousTestCase):
    def setUp(self) -> None:
        self.channel = Channel(b"name")

    def test_event_ids(self) -> None:
        """An event's id names the channel and the event, so that Last-Event-ID says where to go on."""
        stream = attached(self.channel)
        self.channel.emit(b"1")
        self.channel.emit(b"[2]")
        self.assertEqual(
            stream.data,
            b"id: name.1\nevent: message\ndata: 1\n\nid: name.2\nevent: message\ndata: [2]\n\n",
        )
        self.assertEqual((self.channel.last_event, self.channel.event_id(2)), (2, b"name.2"))

    def test_nobody_listens(self) -> None:
        """What nobody has got is kept for whoever comes next, and is not told to the one after."""
        self.channel.emit(b"1")
        self.assertEqual(attached(self.channel).seen, [(1, 1)])
        self.assertEqual(attached(self.channel).seen, [])

    def test_last_event_id(self) -> None:
        """A client that says what it has seen gets all after that, also what was written to a stream that died."""
        attached(self.channel)
        for number in range(1, 5):
            self.channel.emit(b"%d" % number)
        self.assertEqual(attached(self.channel, since=2).seen, [(3, 3), (4, 4)])
        self.assertEqual(attached(self.channel, since=0).seen, [(n, n) for n in range(1, 5)])
        self.assertEqual(attached(self.channel, since=99).seen, [])

    def test_superseded(self) -> None:
        """A second stream ends the first; messages go to the second alone."""
        first = attached(self.channel)
        second = attached(self.channel)
        self.assertEqual((first.is_closed, second.is_closed), (True, False))
        self.channel.emit(b"1")
        self.assertEqual((first.seen, second.seen), ([], [(1, 1)]))

    def test_late_farewell(self) -> None:
        """The end of a stream that is no longer in use does not concern the one that is."""
        first, second = attached(self.channel), attached(self.channel)
        self.assertFalse(self.channel.detach(first))
        self.channel.emit(b"1")
        self.assertEqual(second.seen, [(1, 1)])
        self.assertEqual([self.channel.detach(second), self.channel.detach(second)], [True, False])
        self.channel.emit(b"2")
        self.assertEqual((len(second.seen), second.is_closed), (1, False), "its client has left by itself")

    def test_close(self) -> None:
        """Closing ends the stream, once; what comes after that is written nowhere."""
        stream = attached(self.channel)
        self.channel.close()
        self.assertEqual((stream.is_closed, self.channel.stream), (True, None))
        self.channel.emit(b"1")
        self.channel.close()
        self.assertEqual(stream.seen, [])

    def test_bounds(self) -> None:
        """While nobody listens the oldest messages make room: what is kept never exceeds number and bytes."""
        for _ in range(MAX_EVENTS + 10):
            self.channel.emit(b"1")
        self.assertEqual([number for number, _ in attached(self.channel).seen], list(range(11, MAX_EVENTS + 11)))
        channel = Channel(b"large")
        for _ in range(10):
            channel.emit(b'"%b"' % (b"x" * (MAX_BYTES // 3)))
            self.assertLessEqual(channel.size, MAX_BYTES)
        self.assertEqual([number for number, _ in attached(channel).seen], [9, 10])

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(("emit", "emit", "attach", "resume", "detach")), max_size=60))
    def test_once_and_in_order(self, moves: list[str]) -> None:
        """A client sees every message once and in order, whether or not it says what it has seen."""
        channel, stream = Channel(b"name"), None
        seen: list[tuple[int, Any]] = []
        for move in [*moves, "attach"]:
            if move == "emit":
                channel.emit(b"%d" % (channel.last_event + 1))
            elif move == "detach":
                if stream is not None:
                    channel.detach(stream)
            else:
                stream = Listener()
                stream.seen = seen
                channel.attach(stream, len(seen) if move == "resume" else None)
        self.assertEqual(seen, [(number, number) for number in range(1, channel.last_event + 1)])


class Outlet(SynchronousTestCase):
    def setUp(self) -> None:
        self.outlet = SSEOutlet("token")
        self.exchange = Exchange(parse(encoded(call())), (), arrived=0.0)

    def test_everything_on_one_stream(self) -> None:
        """Messages and answers go on the one stream, in the order in which they came."""
        stream = Listener()
        self.outlet.attach(stream, None)
        self.outlet.emit(b"1", about=self.exchange)
        self.outlet.answer(self.exchange, b"2")
        self.outlet.emit(b"3")
        self.assertEqual(stream.seen, [(1, 1), (2, 2), (3, 3)])
        self.assertTrue(stream.data.startswith(b"id: token.1\n"), "the session's id is in the event's")
        self.assertEqual(self.outlet.last_event, 3)

    def test_no_reply_of_its_own(self) -> None:
        """The POST was answered long ago: what the backend said of it cannot be shown, and nothing is written."""
        stream = Listener()
        self.outlet.attach(stream, None)
        self.assertFalse(self.outlet.refuse(self.exchange, HTTPAnswer(401, (), b"{}")))
        self.outlet.begin_stream(self.exchange)
        self.outlet.abandon(self.exchange)
        self.assertEqual((stream.data, stream.is_closed), (b"", False))

    def test_attached_and_paused(self) -> None:
        """It is attached while it has a stream, and paused only while it has one that is not read."""
        stream = Listener()
        stream.paused = True
        self.assertEqual((self.outlet.attached, self.outlet.paused), (False, []))
        self.outlet.attach(stream, None)
        self.assertEqual((self.outlet.attached, self.outlet.paused), (True, [None]))
        stream.paused = False
        self.assertEqual(self.outlet.paused, [])
        stream.paused = True
        self.assertTrue(self.outlet.detach(stream))
        self.assertEqual((self.outlet.attached, self.outlet.paused), (False, []))

    def test_close(self) -> None:
        """Closing ends the stream."""
        stream = Listener()
        self.outlet.attach(stream, None)
        self.outlet.close()
        self.assertEqual((stream.is_closed, self.outlet.attached), (True, False))

    def test_keeps_nothing(self) -> None:
        """A session that is over is garbage that is not soon collected, so it keeps nothing for a client any more."""
        self.outlet.emit(b"1" * 1000)
        self.outlet.close()
        self.assertEqual(self.outlet._channel.size, 0)

    def test_kept_as_it_came(self) -> None:
        """A message that was kept is told byte for byte as it came."""
        raw = encoded(call("é", {"big": 10**30}))
        self.outlet.emit(raw)
        stream = Listener()
        self.outlet.attach(stream, None)
        self.assertIn(b"data: " + raw + b"\n", stream.data)
        self.assertEqual(stream.seen, [(1, json.loads(raw))])
