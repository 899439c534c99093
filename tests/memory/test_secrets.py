"""What must never be logged."""

from __future__ import annotations

import io
from typing import Any

from twisted.logger import globalLogPublisher

from mcp_proxy.logs import make_observer
from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import HouseCase
from tests.support import messages
from tests.support.memory import Connection

HEADERS = (
    (b"authorization", b"Bearer s3cret-bearer"),
    (b"x-api-key", b"s3cret-key"),
    (b"cookie", b"sid=s3cret-cookie"),
)
SECRETS = ("s3cret-bearer", "s3cret-key", "s3cret-cookie", "s3cret-argument", "s3cret-challenge", "s3cret-result")


class Secrets(HouseCase):
    def setUp(self) -> None:
        """Everything that is logged is kept, as text and as JSON."""
        super().setUp()
        self.rebuild(policy=Policy(max_held=1, hold_timeout=10.0))
        self.text = io.StringIO()
        self.events: list[Any] = []
        for observer in (make_observer("text", "debug", self.text), make_observer("json", "debug", self.text)):
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)
        keep: Any = self.events.append
        globalLogPublisher.addObserver(keep)
        self.addCleanup(globalLogPublisher.removeObserver, keep)

    def live_through(self) -> Connection:
        """A session with about everything that can happen to one."""
        house = self.house
        arguments = {"password": "s3cret-argument"}
        stream = house.initialized(*HEADERS)

        def call(identity: Any) -> None:
            house.post(stream.path, messages.call(identity, arguments), *HEADERS)

        call(1)
        house.backend.link.tell(messages.notification("notifications/x", {"token": "s3cret-result"}))
        house.backend.link.tell(messages.result("nobody", {"token": "s3cret-result"}))
        house.backend.link.tell(messages.request("sampling/createMessage", 0, {"text": "s3cret-argument"}))
        house.post(stream.path, messages.result("unknown", {"text": "s3cret-argument"}), *HEADERS)
        house.post(stream.path, b'{"jsonrpc": "2.0", "id": "s3cret-argument", ', *HEADERS)
        house.post(stream.path, messages.notification("notifications/cancelled", {"requestId": 5}), *HEADERS)
        challenge = HTTPAnswer(401, ((b"www-authenticate", b"s3cret-challenge"),), b"s3cret-challenge")
        for refusal in (Refusal(401, "401", challenge), Refusal(500, "500"), Refusal(0, "lost"), Refusal(404, "404")):
            house.backend.refusals["tools/call"] = refusal
            call(refusal.status + 1000)
            call(refusal.status + 2000)
        house.backend.go_down()
        for identity in range(3):
            call(f"down-{identity}")
        house.clock.advance(11)
        house.backend.come_back()
        stream.hang_up()
        again = house.stream(*HEADERS, (b"last-event-id", stream.events[-1].id.encode()))
        house.stream((b"last-event-id", stream.events[-1].id.encode()))
        again.stop_reading()
        house.clock.advance(60)
        house.post(stream.path + "x", messages.call(1, arguments), *HEADERS)
        return stream

    def test_no_secret(self) -> None:
        """A whole life at debug level leaves no credential, argument, result or whole session id in the log."""
        stream = self.live_through()
        token = stream.path.rpartition("/")[2]
        text = self.text.getvalue()
        self.assertGreater(text.count("\n"), 20)
        for secret in (*SECRETS, token):
            self.assertNotIn(secret, text)

    def test_no_secret_in_fields(self) -> None:
        """Not even the fields of the events that no format shows hold one."""
        stream = self.live_through()
        token = stream.path.rpartition("/")[2]
        for event in self.events:
            shown = repr({name: value for name, value in event.items() if name not in ("log_source", "log_logger")})
            for secret in (*SECRETS, token):
                self.assertNotIn(secret, shown)

    def test_own_failure(self) -> None:
        """A failure of the proxy's own is logged without the session and answered without the reason."""
        stream = self.house.initialized(*HEADERS)

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        session = self.house.session_of(stream)
        self.patch(type(session), "receive", fail)
        answer = self.house.post(stream.path, messages.call(1), *HEADERS)
        self.assert_json_error(answer, 500, -32603)
        self.assertNotIn(b"a bug", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertNotIn(session.id, self.text.getvalue())
