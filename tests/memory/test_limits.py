"""What is bounded: requests of one credential, its sessions, streams, arrays, held bytes; and each refusal counts."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.frontend import lean
from mcp_proxy.frontend.limits import MAX_KNOWN, Rate
from mcp_proxy.session import exchanges, questions
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.room import Room
from mcp_proxy.wire.errors import TooManyRequests
from mcp_proxy.wire.sse import Oversized
from tests.memory.house_case import ALICE, BOB
from tests.memory.test_streamable import StreamableCase, silent
from tests.support import messages, modern
from tests.support.http1 import read_answer
from tests.support.memory import JSON_HEAD
from tests.support.messages import encoded

BIG = {"text": "x" * 500}


class Asked:
    """As much of a request as counts."""

    def __init__(self, key: str = "", path: str = "/mcp", peer: str = "192.0.2.1") -> None:
        self.key = key.encode()
        self.path = path
        self.peer = peer

    def header(self, name: bytes) -> bytes:
        """It has one at most."""
        return self.key if name == b"x-api-key" else b""


class Rates(StreamableCase):
    def test_refused(self) -> None:
        """Who asks too often gets 429 and is told when to come back; then all is well, and others were served."""
        self.rebuild(rate=0.4, burst=2)
        statuses = [self.post(messages.initialize(1), ALICE).answer.status for _ in range(3)]
        self.assertEqual(statuses, [200, 200, 429])
        refused = self.post(messages.initialize(1), ALICE).answer
        error = self.assert_json_error(refused, 429, -31004)
        self.assertEqual((refused.header(b"retry-after"), error["data"]["retryAfterMs"]), (b"3", 2500))
        self.assertEqual(self.post(messages.initialize(1), BOB).answer.status, 200)
        self.house.clock.advance(2.5)
        self.assertEqual(self.post(messages.initialize(1), ALICE).answer.status, 200)
        self.assertEqual(self.house.refusals, {"too_many_requests": 2})

    def test_all_ways(self) -> None:
        """Every route that costs the backend something counts; what machines ask does not."""
        self.rebuild(rate=0.1, burst=1)
        self.listen()
        for method, path in (("GET", "/mcp"), ("DELETE", "/mcp/sse"), ("GET", "/.well-known/x"), ("GET", "/%6dcp")):
            self.assertEqual(self.house.ask(method, path).answer.status, 429, path)
        for path in ("/health", "/metrics", "/"):
            self.assertEqual(self.house.ask("GET", path).answer.status, 200, path)

    def test_off(self) -> None:
        """By default nobody counts, and nobody is remembered."""
        for _ in range(300):
            self.house.rate.admit(Asked("a"))  # type: ignore[arg-type]
        self.assertEqual(len(self.house.rate), 0)

    def test_addresses(self) -> None:
        """Clients without a credential are told apart by where they come from."""
        rate: Any = Rate(Clock(), 1.0, 1)
        rate.admit(Asked(peer="192.0.2.1"))
        self.assertRaises(TooManyRequests, rate.admit, Asked(peer="192.0.2.1"))
        rate.admit(Asked(peer="192.0.2.2"))

    def test_forgotten(self) -> None:
        """What is remembered is bounded; who asked longest ago is forgotten."""
        rate: Any = Rate(Clock(), 1.0, 1)
        for number in range(MAX_KNOWN):
            rate.admit(Asked(f"key {number}"))
        self.assertRaises(TooManyRequests, rate.admit, Asked("key 0"))
        rate.admit(Asked("one more"))
        self.assertEqual(len(rate), MAX_KNOWN)
        self.assertRaises(TooManyRequests, rate.admit, Asked("key 0"))
        rate.admit(Asked("key 1"))


class AnyTime(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(
        some.lists(some.floats(0, 5, allow_nan=False), max_size=60),
        some.floats(0.1, 10),
        some.integers(1, 10),
    )
    def test_bound(self, waits: list[float], per_second: float, burst: int) -> None:
        """In no span are more admitted than the burst and what the rate adds; who waits as told is admitted."""
        clock = Clock()
        rate: Any = Rate(clock, per_second, burst)
        admitted: list[float] = []
        for wait in waits:
            clock.advance(wait)
            try:
                rate.admit(Asked("a"))
            except TooManyRequests as error:
                clock.advance(error.data["retryAfterMs"] / 1000 + 0.001)
                rate.admit(Asked("a"))
            admitted.append(clock.seconds())
        for first, began in enumerate(admitted):
            for last in range(first, len(admitted)):
                allowed = burst + (admitted[last] - began) * per_second
                self.assertLessEqual(last - first + 1, allowed + 1e-6)


class Sessions(StreamableCase):
    def test_refused(self) -> None:
        """Who has as many sessions as one may have gets no more of them; another one does."""
        self.rebuild(max_of_one=2)
        for _ in range(2):
            self.listen(ALICE, self.begin(ALICE))
        refused = self.post(messages.initialize(3), ALICE).answer
        self.assert_json_error(refused, 503, -31004)
        self.assertEqual(refused.header(b"retry-after"), b"5")
        self.assert_json_error(self.house.stream(ALICE).answer, 503, -31004)
        self.begin(BOB)
        self.assertEqual(self.house.refusals, {"too_many_of_yours": 2})

    def test_idle_makes_room(self) -> None:
        """Of its own sessions, that which it has left makes room; another's is left alone."""
        self.rebuild(max_of_one=1)
        bob = self.begin(BOB)
        self.house.clock.advance(1)
        old = self.begin(ALICE)
        self.house.clock.advance(1)
        new = self.begin(ALICE)
        statuses = [self.post(messages.call(1), *who).answer.status for who in ((old, ALICE), (new, ALICE), (bob, BOB))]
        self.assertEqual(statuses, [404, 200, 200])


class Connections(StreamableCase):
    def test_refused(self) -> None:
        """Of more clients than there is room for nobody is let in; those who are in stay."""
        listener: Any = self.house.listener
        listener.max_connections = 2
        first, second = self.house.connect(), self.house.connect()
        refused = self.house.connect()
        self.assertIn(refused.raw[:12], (b"HTTP/1.1 503", b""))
        self.assertTrue(refused.closed)
        self.assertEqual(self.house.refusals, {"too_many_connections": 1})
        first.hang_up()
        third = self.house.connect()
        self.assertFalse(second.closed or third.closed)


class Streams(StreamableCase):
    def test_refused(self) -> None:
        """With as many streams as there may be, another one of either transport is refused; replies still come."""
        self.rebuild(max_streams=2)
        session = self.begin()
        first, second = self.listen(session), self.house.stream()
        for refused in (self.listen(self.begin()), self.house.stream()):
            self.assert_json_error(refused.answer, 503, -31004)
            self.assertEqual(refused.answer.header(b"retry-after"), b"5")
        self.assertEqual(self.post(messages.call(1), session).answer.status, 200)
        second.hang_up()
        self.assertEqual(self.house.stream().answer.status, 200)
        self.assertEqual(self.house.refusals, {"too_many_streams": 2})
        self.assertFalse(first.closed)

    def test_replaced(self) -> None:
        """A client that comes back for the stream that it has, by either transport, needs no more room."""
        self.rebuild(max_streams=2)
        session = self.begin()
        old, stream = self.listen(session), self.house.initialized()
        self.assertEqual(self.listen(session).answer.status, 200)
        self.assertTrue(old.answer.complete)
        again = self.house.stream((b"last-event-id", stream.events[-1].id.encode()))
        self.assertEqual((again.answer.status, stream.answer.complete), (200, True))
        self.assert_json_error(self.house.stream().answer, 503, -31004)

    def test_waiting_count(self) -> None:
        """A stream whose head waits for the backend's word counts as well."""
        self.rebuild(max_streams=1)
        self.house.backend.opens = False
        waiting = self.house.stream()
        self.assertFalse(waiting.started)
        self.assert_json_error(self.house.stream().answer, 503, -31004)
        waiting.hang_up()
        self.assertFalse(self.house.stream().started)

    def test_refused_by_backend(self) -> None:
        """A stream that the backend refuses leaves room."""
        self.rebuild(max_streams=1)
        self.house.backend.challenge = HTTPAnswer(401, (), b"who?")
        for _ in range(3):
            self.assertEqual(self.house.stream().answer.status, 401)

    def test_modern(self) -> None:
        """So is a subscription of the revision without sessions."""
        self.rebuild(max_streams=1)
        self.house.stream()
        message = modern.listen(toolsListChanged=True)
        headers = (*JSON_HEAD, modern.VERSION_HEADER, (b"mcp-method", b"subscriptions/listen"))
        refused = self.house.ask("POST", "/mcp", headers, encoded(message))
        self.assert_json_error(refused.answer, 503, -31004)


class Arrays(StreamableCase):
    def test_refused(self) -> None:
        """An array of too many messages is refused as a whole; one of just so many is served."""
        self.rebuild(max_batch=3)
        session = self.begin(version="2025-03-26")
        calls = [messages.call(number) for number in range(4)]
        error = self.assert_json_error(self.post(calls, session).answer, 413, -32600)
        self.assertIn("MAX_BATCH", error["message"])
        self.assertNotIn("tools/call", [each["method"] for each in self.link.sent])
        self.assertEqual(len(self.post(calls[:3], session).answer.json()), 3)
        self.assertEqual(self.house.refusals, {"batch_too_long": 1})


class Held(StreamableCase):
    def test_in_all(self) -> None:
        """What all sessions together hold is bounded: what has no place is answered at once, and room comes back."""
        room = Room(1500)
        self.rebuild(policy=Policy(room=room))
        alice, bob = self.begin(ALICE), self.begin(BOB)
        self.house.backend.go_down()
        held = [self.post(messages.call(1, BIG), alice, ALICE), self.post(messages.call(1, BIG), bob, BOB)]
        self.assertGreater(room.used, 1000)
        full = self.post(messages.call(2, BIG), bob, BOB)
        self.assertEqual(self.assert_answer(full.answer, 2)["error"]["code"], -31004)
        self.assertFalse(any(each.started for each in held))
        self.house.backend.come_back()
        self.assertEqual([each.answer.json()["id"] for each in held], [1, 1])
        self.assertEqual(room.used, 0)

    def test_lost_in_flight(self) -> None:
        """What was on the link when it broke needs room as well; without any it is told to be uncertain."""
        room = Room(1500)
        self.rebuild(policy=Policy(room=room))
        session = self.begin()
        self.house.backend.answers["tools/list"] = silent
        lists = [self.post(messages.request("tools/list", number, BIG), session) for number in range(4)]
        self.house.backend.go_down()
        answered = [each for each in lists if each.started]
        self.assertEqual(len(answered), 2)
        self.assertEqual({each.answer.json()["error"]["code"] for each in answered}, {-31002})
        self.assertLessEqual(room.used, 1500)

    def test_every_end(self) -> None:
        """Cancelled, timed out, ended with its session or left: nothing is counted that is not held."""
        room = Room()
        self.rebuild(policy=Policy(room=room, hold_timeout=10))
        alice, bob = self.begin(ALICE), self.begin(BOB)
        self.house.backend.go_down()
        for number in range(3):
            self.post(messages.call(number, BIG), alice, ALICE)
            self.post(messages.call(number, BIG), bob, BOB)
        full = room.used
        self.post(messages.notification("notifications/cancelled", {"requestId": 1}), alice, ALICE)
        self.assertLess(room.used, full)
        self.house.ask("DELETE", "/mcp", (bob, BOB))
        self.house.clock.advance(11)
        self.assertEqual(room.used, 0)


class Counted(StreamableCase):
    def test_reasons(self) -> None:
        """Every refusal is counted by its reason, also what is no request; /health and /metrics tell."""
        evil = (b"origin", b"https://evil.example")
        self.house.ask("GET", "/health", (evil,))
        self.house.ask("GET", "/nothing", (evil,))
        self.house.ask("GET", "/nothing")
        self.house.ask("PUT", "/mcp")
        self.post(b"{")
        self.post(b" " * 5000)
        self.post(messages.call(1), (b"mcp-session-id", b"made up"))
        expected = {
            "origin_refused": 2,
            "no_such_path": 1,
            "method_refused": 1,
            "not_json": 1,
            "body_too_large": 1,
            "unknown_session": 1,
        }
        self.assertEqual(self.house.refusals, expected)
        self.assertEqual(self.house.ask("GET", "/health").answer.json()["proxy"]["refusals"], expected)
        text = self.house.ask("GET", "/metrics").answer.body.decode()
        self.assertIn('mcp_proxy_refusals_total{reason="origin_refused"} 2.0', text)

    def test_no_request(self) -> None:
        """What cannot be read, or does not come in time, is answered in JSON and counted; silence is neither."""
        self.rebuild(stack="lean")
        connections = [self.house.connect() for _ in range(4)]
        connections[0].send(b"nonsense\r\n\r\n")
        connections[1].send(b"GET /mcp HTTP/1.1\r\n")
        connections[2].send(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        self.house.clock.pump([1.0] * int(lean.TIMEOUT + 2 * lean.SWEEP_INTERVAL))
        self.assertTrue(all(each.closed for each in connections))
        for connection, status in zip(connections, (400, 408, 408), strict=False):
            answer = read_answer(connection.raw, closed=True)
            assert answer is not None
            self.assert_json_error(answer, status, -32600)
        self.assertEqual(connections[3].raw, b"")
        self.assertEqual(self.house.refusals, {"malformed_request": 1, "too_slow": 2})

    def test_stalled(self) -> None:
        """A client that is dropped because it reads nothing is counted, by either way of HTTP; a slow one is not."""
        for stack in ("lean", "klein"):
            self.house.close()
            self.rebuild(stack=stack)
            slow, stuck = self.house.stream(), self.house.stream()
            slow.stop_reading()
            stuck.stop_reading()
            self.house.clock.advance(29)
            slow.read_again()
            self.house.clock.advance(2)
            self.assertEqual((slow.closed, stuck.closed), (False, True))
            self.assertEqual(self.house.refusals, {"client_stalled": 1}, stack)

    def test_stalled_answer(self) -> None:
        """So is one that does not take a whole answer."""
        self.rebuild(stack="lean")
        stuck = self.house.ask("GET", "/health")
        stuck.stop_reading()
        self.house.clock.pump([1.0] * int(30 + 2 * lean.SWEEP_INTERVAL))
        self.assertTrue(stuck.closed)
        self.assertEqual(self.house.refusals, {"client_stalled": 1})

    def test_held(self) -> None:
        """What cannot be held is counted by the limit that it is over, which the client is told."""
        for options, name, reason in (
            ({"max_held": 1}, "HOLD_MAX_REQUESTS", "too_many_held"),
            ({"max_held_bytes": 1000}, "HOLD_MAX_BYTES", "too_much_held"),
            ({"room": Room(1000)}, "HOLD_MAX_TOTAL_BYTES", "too_much_held_in_all"),
        ):
            self.house.close()
            self.rebuild(policy=Policy(**options))
            session = self.begin()
            self.house.backend.go_down()
            self.post(messages.call(1, BIG), session)
            error = self.assert_answer(self.post(messages.call(2, BIG), session).answer, 2)["error"]
            self.assertEqual((error["code"], error["data"]["delivered"]), (-31004, "no"))
            self.assertIn(name, error["message"])
            self.assertEqual(self.house.refusals, {reason: 1})

    def test_in_flight(self) -> None:
        """So is what would be one request too many for the backend."""
        self.patch(exchanges, "MAX_IN_FLIGHT", 1)
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        self.post(messages.call(1), session)
        self.assertEqual(self.assert_answer(self.post(messages.call(2), session).answer, 2)["error"]["code"], -31004)
        self.assertEqual(self.house.refusals, {"too_many_in_flight": 1})

    def test_questions(self) -> None:
        """A question of the backend's that is dropped counts as well."""
        self.patch(questions, "MAX_QUESTIONS", 1)
        self.listen(self.begin())
        for number in range(3):
            self.link.tell(messages.request("roots/list", number))
        self.assertEqual(self.house.refusals, {"too_many_questions": 2})

    def test_events(self) -> None:
        """So does what the backend sends that is too large, whether somebody waits for it or not."""
        session = self.begin()
        self.house.backend.answers["tools/call"] = silent
        asked = self.post(messages.call(1), session)
        about = self.link.outgoing[-1].exchange
        self.link.owner.link_oversized(self.link, Oversized(b"", b"", 99), about)
        self.link.owner.link_oversized(self.link, Oversized(b"", b"", 99))
        self.assertEqual(self.assert_answer(asked.answer, 1)["error"]["code"], -31002)
        self.assertEqual(self.house.refusals, {"event_too_large": 2})

    def test_modern(self) -> None:
        """A request of the revision without sessions that contradicts itself counts, too."""
        refused = self.house.ask("POST", "/mcp", (*JSON_HEAD, modern.VERSION_HEADER), encoded(modern.call(1)))
        self.assertEqual((refused.answer.status, refused.answer.json()["error"]["code"]), (400, -32020))
        self.assertEqual(self.house.refusals, {"header_mismatch": 1})
