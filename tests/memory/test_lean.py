"""The lean way of HTTP by itself: order, bounds, patience, and who answers what."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.error import ConnectionDone

from mcp_proxy import direct
from mcp_proxy.frontend import lean, stream
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import ProxyError
from tests.memory.house_case import ALICE, HouseCase
from tests.support import messages
from tests.support.http1 import ask, chunked
from tests.support.memory import JSON_HEAD, Connection, House
from tests.support.messages import encoded

HEALTH = ask("GET", "/health")
STREAMABLE = (*JSON_HEAD, ALICE, (b"accept", b"application/json, text/event-stream"))


class LeanCase(HouseCase):
    """A house with the lean way, whatever the others have."""

    def setUp(self) -> None:
        """One client with an HTTP+SSE stream."""
        super().setUp()
        self.rebuild()

    def rebuild(self, **options: Any) -> House:
        """A house with these options."""
        super().rebuild(stack="lean", **options)
        self.stream = self.house.initialized(ALICE)
        return self.house

    def call(self, identity: Any, *headers: tuple[bytes, bytes]) -> bytes:
        """A message for the stream."""
        return ask("POST", self.stream.path, (*JSON_HEAD, ALICE, *headers), encoded(messages.call(identity)))

    def statuses(self, connection: Connection) -> list[int]:
        """Of all answers on a connection, in order."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", connection.raw)]

    def factory(self) -> lean.LeanFactory:
        """What made the connections."""
        listener: Any = self.house.listener
        assert isinstance(listener, lean.LeanFactory)
        return listener


class Order(LeanCase):
    def test_pipelined(self) -> None:
        """Requests that come at once are answered one after the other, also those that Klein answers."""
        connection = self.house.connect()
        connection.send(self.call(1) + HEALTH + self.call(2) + ask("GET", "/nothing") + self.call(3))
        self.assertEqual(self.statuses(connection), [202, 200, 202, 404, 202])
        self.assertEqual([each["id"] for each in self.stream.messages[1:]], [1, 2, 3])
        self.assertFalse(connection.closed)

    def test_waiting(self) -> None:
        """A request waits until the one before it is answered, and the answers come in that order."""
        house = self.house
        session = self.session()
        house.backend.answers["tools/call"] = lambda asked: None
        connection = house.connect()
        first = ask("POST", "/mcp", (*STREAMABLE, session), encoded(messages.call("slow")))
        connection.send(first + HEALTH + self.call("after"))
        self.assertEqual(self.statuses(connection), [])
        link = house.backend.link
        self.assertEqual([each["id"] for each in link.sent if each.get("method") == "tools/call"], ["slow"])
        link.tell(messages.result("slow", {}))
        self.assertEqual(self.statuses(connection), [200, 200, 202])

    def test_after_stream(self) -> None:
        """A request with the same head as one whose answer was a stream is a request like any other."""
        house, session = self.house, self.session()
        connection = house.connect()
        for number in range(3):
            house.backend.answers["tools/call"] = lambda asked: None
            connection.send(ask("POST", "/mcp", (*STREAMABLE, session), encoded(messages.call(number))))
            link = house.backend.link
            about = link.outgoing[-1].exchange
            told: Any = jsonrpc.parse(encoded(messages.notification("notifications/x")))
            link.owner.link_received(link, told, about)
            link.tell(messages.result(number, {}))
        self.assertEqual(self.statuses(connection), [200, 200, 200])

    def session(self) -> tuple[bytes, bytes]:
        """A Streamable HTTP session."""
        body = encoded(messages.initialize("hello"))
        answer = self.house.ask("POST", "/mcp", STREAMABLE, body).answer
        return b"mcp-session-id", answer.header(b"mcp-session-id")

    def test_read_ahead_is_bounded(self) -> None:
        """While an answer is outstanding, a client that sends more and more is not read any further."""
        self.house.backend.answers["tools/call"] = lambda asked: None
        connection = self.house.connect()
        body = encoded(messages.call("slow"))
        connection.send(ask("POST", "/mcp", (*STREAMABLE, self.session()), body))
        transport = connection._transport
        for _ in range(40):
            if transport.producerState == "producing":
                connection.send(HEALTH * 10)
        self.assertEqual(transport.producerState, "paused")
        self.assertLess(connection._transport.protocol._reader.buffered, lean.MAX_AHEAD + 10 * len(HEALTH))
        self.house.backend.link.tell(messages.result("slow", {}))
        self.assertEqual(transport.producerState, "producing")
        self.assertGreater(len(self.statuses(connection)), 100)

    def test_unread_answers_are_bounded(self) -> None:
        """A client that takes no answers gets no more of them, and is not read, until it takes them."""
        connection = self.house.connect()
        transport = connection._transport
        connection.stop_reading()
        self.assertEqual(transport.producerState, "paused")
        connection.send(HEALTH)
        self.assertEqual(self.statuses(connection), [])
        connection.read_again()
        self.assertEqual((self.statuses(connection), transport.producerState), ([200], "producing"))

    def test_many(self) -> None:
        """However many requests come at once, the stack does not grow."""
        connection = self.house.connect()
        connection.send(ask("GET", "/mcp") * 3000)
        self.assertEqual(self.statuses(connection), [400] * 3000)

    def test_after_close(self) -> None:
        """What follows a request that closes the connection is not read."""
        connection = self.house.connect()
        connection.send(self.call(1, (b"connection", b"close")) + self.call(2))
        self.assertEqual(self.statuses(connection), [202])
        self.assertTrue(connection.closed)
        self.assertEqual([each["id"] for each in self.stream.messages[1:]], [1])

    def test_after_refusal(self) -> None:
        """What follows a request that cannot be read is not read; what came before it is answered."""
        connection = self.house.connect()
        connection.send(self.call(1) + b"POST / HTTP/1.1\r\nA : b\r\n\r\n" + self.call(2))
        self.assertEqual(self.statuses(connection), [202, 400])
        self.assertTrue(connection.closed)
        self.assertEqual([each["id"] for each in self.stream.messages[1:]], [1])

    def test_refusals(self) -> None:
        """A refusal says in JSON what is wrong, and closes the connection."""
        for data, status in (
            (b"GET / HTTP/1.1\nHost: x\n\n", 400),
            (b"GET / HTTP/2.0\r\n\r\n", 505),
            (b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000, 431),
        ):
            connection = self.house.connect()
            connection.send(data)
            self.assert_json_error(connection.answer, status, -32600)
            self.assertEqual((connection.answer.header(b"connection"), connection.closed), (b"close", True))


class Turns(LeanCase):
    def writes(self, connection: Connection) -> list[bytes]:
        """What is handed to the network from now on, piece by piece."""
        pieces: list[bytes] = []
        connection._transport.protocol._send = lambda _, data: pieces.append(data)
        return pieces

    def test_one_write(self) -> None:
        """What several requests of one turn are answered is one write; so are the events of one turn."""
        connection = self.house.connect()
        answers, events = self.writes(connection), self.writes(self.stream)
        connection.send(self.call(1) + self.call(2) + self.call(3))
        self.assertEqual((answers, events), ([], []))
        self.house.clock.advance(0)
        self.assertEqual([piece.count(b"202 Accepted") for piece in answers], [3])
        self.assertEqual([piece.count(b"event: message") for piece in events], [3])

    def test_head_at_once(self) -> None:
        """The head of a stream does not wait for its first event, which may be long in coming."""
        headers = (ALICE, (b"accept", b"text/event-stream"), Order.session(self))  # type: ignore[arg-type]
        connection = self.house.connect()
        pieces = self.writes(connection)
        connection.send(ask("GET", "/mcp", headers))
        self.assertEqual([piece.startswith(b"HTTP/1.1 200 OK\r\n") for piece in pieces], [True])
        self.assertNotIn(self.house.clock.seconds(), [call.getTime() for call in self.house.clock.getDelayedCalls()])

    def test_much(self) -> None:
        """What is gathered in one turn is bounded."""
        pieces = self.writes(self.stream)
        for number in range(10):
            self.house.backend.link.tell(messages.notification("notifications/x", {"n": number, "x": "y" * 20_000}))
        self.assertGreater(len(pieces), 1)
        self.assertLess(max(map(len, pieces)), lean.MAX_GATHERED + 21_000)

    def test_date(self) -> None:
        """The date is that of the clock, and goes on with it."""
        dates = []
        for _ in range(2):
            dates.append(self.house.post(self.stream.path, messages.call(1), ALICE).header(b"date"))
            self.house.clock.advance(1)
        self.assertEqual(dates, [b"Tue, 14 Nov 2023 22:13:20 GMT", b"Tue, 14 Nov 2023 22:13:21 GMT"])


class Patience(LeanCase):
    def lasts(self, connection: Connection, *data: bytes, every: float = 5.0) -> float:
        """For how many seconds the connection stays while pieces of data come at intervals, and then nothing more."""
        pieces, started = list(data), self.house.clock.seconds()
        while not connection.closed and self.house.clock.seconds() < started + 2000:
            if pieces:
                connection.send(pieces.pop(0))
            self.house.clock.advance(every)
        return self.house.clock.seconds() - started

    def assert_lasted(self, seconds: float, expected: float) -> None:
        """It was about that long: connections are looked through at intervals."""
        self.assertTrue(expected <= seconds <= expected + lean.SWEEP_INTERVAL, seconds)

    def test_silent(self) -> None:
        """A client that sends nothing is let go, before its first request and after its last."""
        self.assert_lasted(self.lasts(self.house.connect()), lean.TIMEOUT)
        connection = self.house.connect()
        self.house.clock.advance(50)
        connection.send(self.call(1))
        self.assert_lasted(self.lasts(connection), lean.TIMEOUT)

    def test_slow_head(self) -> None:
        """A head must be complete in time, however steadily it drips."""
        data = [b"POST / HTTP/1.1\r\n", *(b"a: b\r\n" for _ in range(100))]
        self.assert_lasted(self.lasts(self.house.connect(), *data), lean.TIMEOUT)

    def test_slow_body(self) -> None:
        """A body may take its time while it moves, but not for ever."""
        head = b"POST / HTTP/1.1\r\nContent-Length: 4000\r\n\r\n"
        drips = [b"x" for _ in range(1000)]
        self.assert_lasted(self.lasts(self.house.connect(), head, *drips[:20]), 100 + lean.TIMEOUT)
        self.assert_lasted(self.lasts(self.house.connect(), head, *drips), lean.BODY_TIMEOUT)

    def test_outstanding(self) -> None:
        """A client that waits for its answer is not hurried, nor one with a stream."""
        self.house.backend.go_down()
        waiting = self.house.connect()
        waiting.send(ask("POST", "/mcp", STREAMABLE, encoded(messages.initialize(1))))
        self.house.clock.advance(40)
        self.house.clock.advance(3600)
        self.assertFalse(self.stream.closed)

    def test_answer_not_taken(self) -> None:
        """A client that does not take the rest of its answer is dropped."""
        connection = self.house.connect()
        connection.send(self.call(1))
        connection.stop_reading()
        self.assert_lasted(self.lasts(connection), 30)

    def test_no_timer_for_each(self) -> None:
        """All connections share a timer, and without one there is none."""
        before = len(self.house.clock.getDelayedCalls())
        connections = [self.house.connect() for _ in range(20)]
        self.assertEqual(len(self.house.clock.getDelayedCalls()), before)
        for connection in (*connections, self.stream):
            connection.hang_up()
        self.house.close()
        self.assertEqual(self.factory().connections, set())
        self.assertEqual(self.house.clock.getDelayedCalls(), [])


class Told(stream.Watcher):
    """Writes down that an answer is over."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def gone(self) -> None:
        """It is."""
        self._told.append("gone")


class Ends(LeanCase):
    def test_gone_once(self) -> None:
        """That a stream is over is told once, whoever ends it and in whatever order."""
        for ends in (("close", "lose"), ("lose", "close"), ("abort", "lose"), ("lose", "abort"), ("fail", "abort")):
            told: list[str] = []
            connection = self.house.connect()
            taken: list[stream.ClientStream] = []

            def handler(request: stream.ClientRequest, taken: list[Any] = taken) -> None:
                taken.append(request.stream)

            self.patch(self.house.app, "_plain", {("GET", "/mcp"): handler})
            connection.send(ask("GET", "/mcp"))
            answer = taken[0]
            answer.watcher = Told(told)
            answer.start()
            for end in ends:
                if end == "lose":
                    connection._transport.lose(ConnectionDone())
                elif end == "fail":
                    answer.fail(ProxyError())
                else:
                    getattr(answer, end)()
                answer.write(b"late")
            answer.respond(200, b"late")
            answer.start()
            self.house.clock.advance(0)
            self.assertEqual(told, ["gone"], ends)
            self.assertNotIn(b"late", connection.raw)

    def test_old_clients(self) -> None:
        """A client of HTTP/1.0 gets a stream without chunks, which ends with the connection."""
        connection = self.house.connect()
        headers = (ALICE, (b"accept", b"text/event-stream"))
        connection.send(ask("GET", "/mcp/sse", headers).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = connection.raw.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.0 200 OK\r\n"))
        self.assertNotIn(b"chunked", head)
        self.assertTrue(body.startswith(b"retry: "), body)
        (session,) = (each for each in self.house.registry if each.id.encode() in body)
        session.close()
        self.assertTrue(connection.closed)

    def test_nothing_written(self) -> None:
        """Writing nothing sends nothing; in chunks, a chunk of nothing would be the end."""

        def handler(request: stream.ClientRequest) -> None:
            request.stream.start()
            request.stream.write(b"")
            request.stream.write(b"something")

        self.patch(self.house.app, "_plain", {("GET", "/mcp"): handler})
        connection = self.house.ask("GET", "/mcp")
        self.assertEqual((connection.answer.body, connection.answer.complete), (b"something", False))

    def test_continue(self) -> None:
        """A client that asks before it sends its body is told to go on, before and after other requests."""
        text = self.call(1, (b"expect", b"100-continue"))
        head, separator, body = text.partition(b"\r\n\r\n")
        connection = self.house.connect()
        connection.send(HEALTH + head + separator)
        self.assertEqual(self.statuses(connection), [200, 100])
        connection.send(body + HEALTH)
        self.assertEqual(self.statuses(connection), [200, 100, 202, 200])

    def test_no_body(self) -> None:
        """A status without a body has none, nor a length."""

        def handler(request: stream.ClientRequest) -> None:
            request.stream.respond(204, b"ignored")

        self.patch(self.house.app, "_plain", {("GET", "/mcp"): handler})
        connection = self.house.connect()
        connection.send(ask("GET", "/mcp") + HEALTH)
        first = connection.raw.partition(b"\r\n\r\n")[0]
        self.assertNotIn(b"ontent-", first)
        self.assertEqual(self.statuses(connection), [204, 200])

    def test_handler_fails(self) -> None:
        """A failure of ours is a 500 in JSON and in the log; the connection lives on."""

        def handler(request: stream.ClientRequest) -> None:
            raise ValueError("oops")

        self.patch(self.house.app, "_plain", {("GET", "/mcp"): handler})
        connection = self.house.connect()
        connection.send(ask("GET", "/mcp"))
        self.assert_json_error(connection.answer, 500, -32603)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        connection.send(HEALTH)
        self.assertEqual(self.statuses(connection), [500, 200])

    def test_stream_of_kleins(self) -> None:
        """An odd form of a path means the same as the plain one: a stream, with its back-pressure and its end."""
        connection = self.house.ask("GET", "/mcp/%73se", ((b"accept", b"text/event-stream"), ALICE))
        self.house.post(connection.path, messages.initialize(1), ALICE)
        self.assertIn("result", connection.message(1))
        link = self.house.backend.made[-1]
        connection.stop_reading()
        self.assertTrue(link.paused)
        connection.read_again()
        self.assertFalse(link.paused)
        connection.stop_reading()
        self.house.clock.advance(31)
        self.assertTrue(connection.closed)
        before = self.house.registry.connected
        again = self.house.ask("GET", "/mcp/%73se", ((b"accept", b"text/event-stream"), ALICE))
        self.assertEqual(self.house.registry.connected, before + 1)
        again.hang_up()
        self.assertEqual(self.house.registry.connected, before)

    def test_odd_session(self) -> None:
        """The path of a session may be written with percent signs; it is the same session."""
        path = f"{self.stream.path[:-1]}%{ord(self.stream.path[-1]):02x}"
        self.assertEqual(self.house.post(path, messages.call(1), ALICE).status, 202)
        self.assertIn("result", self.stream.message(1))

    def test_closed_after_klein(self) -> None:
        """Klein's answers, too, say that the connection is closed, if the client wants it."""
        connection = self.house.ask("GET", "/health", ((b"connection", b"close"),))
        self.assertEqual((connection.answer.header(b"connection"), connection.closed), (b"close", True))

    def test_paused_before(self) -> None:
        """A stream that begins while the client does not read is paused from its beginning."""
        protocol: Any = None
        started: list[stream.ClientStream] = []

        def handler(request: stream.ClientRequest) -> None:
            protocol.pauseProducing()
            request.stream.start()
            started.append(request.stream)

        self.patch(self.house.app, "_plain", {("GET", "/mcp"): handler})
        self.patch(self.house.streamable, "listen", handler)
        for path in ("/mcp", "/%6dcp"):
            connection = self.house.connect()
            protocol = connection._transport.protocol
            connection.send(ask("GET", path))
            self.assertTrue(started.pop().paused, path)
            connection.hang_up()

    def test_large_for_klein(self) -> None:
        """A body that is too large is too large for Klein's routes as well, and nothing of it is kept."""
        connection = self.house.connect()
        connection.send(ask("POST", "/mcp?x=%31", STREAMABLE, b"x" * 5000))
        connection.send(ask("POST", "/%6dcp", (*STREAMABLE, (b"transfer-encoding", b"chunked")), chunked(b"x" * 5000)))
        self.assertEqual(self.statuses(connection), [413, 413])

    def test_lost_within_a_request(self) -> None:
        """A connection that is lost while its request comes leaves nothing behind."""
        before = set(self.factory().connections)
        connection = self.house.connect()
        connection.send(self.call(1)[:-5])
        self.assertEqual(len(self.factory().connections), len(before) + 1)
        connection.hang_up()
        self.assertEqual((self.factory().connections, len(self.stream.messages)), (before, 1))


class Sender(LeanCase):
    def test_public_way(self) -> None:
        """A transport that is not Twisted's plain TCP is written to in the public way."""
        transport = self.stream._transport
        self.assertIs(direct.sender(transport), direct.write)
