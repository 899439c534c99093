"""A client that does not read."""

from __future__ import annotations

from mcp_proxy.session.policy import Policy
from tests.memory.house_case import ALICE, BOB, HouseCase
from tests.support import messages
from tests.support.http1 import count_comments
from tests.support.memory import FakeLink


class Pressure(HouseCase):
    def setUp(self) -> None:
        """Two clients."""
        super().setUp()
        self.rebuild(stall_timeout=30.0, policy=Policy(linger=5.0))
        self.slow, self.quick = self.house.initialized(ALICE), self.house.initialized(BOB)
        self.slow_link, self.quick_link = self.house.backend.made

    def assert_paused(self, *expected: bool) -> None:
        links: tuple[FakeLink, ...] = (self.slow_link, self.quick_link)
        self.assertEqual(tuple(link.paused for link in links), expected)

    def test_own_link_only(self) -> None:
        """A slow client pauses its own link and nobody else's, and only for as long as it is slow."""
        self.slow.stop_reading()
        self.assert_paused(True, False)
        self.slow.read_again()
        self.assert_paused(False, False)

    def test_dropped(self) -> None:
        """A client that stays stuck is dropped; its session waits for it to come back."""
        self.slow.stop_reading()
        self.house.clock.advance(29.9)
        self.assertFalse(self.slow.closed)
        self.house.clock.advance(0.2)
        self.assertTrue(self.slow.closed)
        self.assertFalse(self.quick.closed)
        self.assert_paused(False, False)
        self.assertEqual(len(self.house.registry), 2)
        again = self.house.stream(ALICE, (b"last-event-id", self.slow.events[-1].id.encode()))
        self.assertEqual(again.path, self.slow.path)

    def test_read_in_time(self) -> None:
        """A client that reads again in time is kept; the deadline starts anew the next time."""
        for _ in range(3):
            self.slow.stop_reading()
            self.house.clock.advance(20)
            self.slow.read_again()
        self.assertFalse(self.slow.closed)

    def test_no_comments(self) -> None:
        """Nothing is piled up for a client that does not read."""
        self.slow.stop_reading()
        before = len(self.slow.raw)
        for _ in range(5):
            self.house.front.keep_alive()
        self.assertEqual(len(self.slow.raw), before)
        self.assertEqual(count_comments(self.quick.answer.body), 5)

    def test_new_link_is_paused(self) -> None:
        """A link that is made while the client is slow is paused, too."""
        self.slow.stop_reading()
        self.slow_link.lose()
        self.assertTrue(self.house.backend.link.paused)
        self.slow.read_again()
        self.assertFalse(self.house.backend.link.paused)

    def test_adopted_while_stuck(self) -> None:
        """A client that comes back while its old stream is stuck gets a link that runs."""
        self.slow.stop_reading()
        again = self.house.stream(ALICE, (b"last-event-id", self.slow.events[-1].id.encode()))
        self.assert_paused(False, False)
        self.slow_link.tell(messages.notification("notifications/x"))
        self.assertEqual(again.messages[-1]["method"], "notifications/x")

    def test_old_stream_has_no_say(self) -> None:
        """What becomes of the old stream afterwards neither pauses nor resumes the link of the new one."""
        self.slow.stop_reading()
        again = self.house.stream(ALICE, (b"last-event-id", self.slow.events[-1].id.encode()))
        again.stop_reading()
        self.slow.hang_up()
        self.assert_paused(True, False)
        self.house.clock.advance(31)
        self.assertTrue(again.closed)

    def test_superseded_and_stuck(self) -> None:
        """A superseded client that still reads nothing is dropped as well, so that its connection is not leaked."""
        self.slow.stop_reading()
        self.house.stream(ALICE, (b"last-event-id", self.slow.events[-1].id.encode()))
        self.house.clock.advance(31)
        self.assertTrue(self.slow.closed or self.slow.answer.complete)
