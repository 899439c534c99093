"""What once went wrong in revision 2026-07-28."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel, globalLogPublisher

from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import ALICE
from tests.memory.test_modern import DISCOVERED, HOLD, ModernCase, silent
from tests.support import messages, modern
from tests.support.messages import encoded


class Regressions(ModernCase):
    def test_discover_from_memory(self) -> None:
        """While the backend is away, a principal is shown what it was told the last time, under the new id."""
        self.ask(modern.request("server/discover", 1), ALICE)
        self.backend.go_down()
        for identity in (2, "2"):
            answer = self.answer_to(modern.request("server/discover", identity), ALICE)
            self.assertEqual((answer.status, answer.header(b"content-type")), (200, b"application/json"))
            self.assertEqual(answer.json(), messages.result(identity, DISCOVERED))

    def test_discover_keeps_no_error(self) -> None:
        """An error of the backend's is not what is shown while it is away."""
        self.rebuild(policy=Policy(hold_timeout=3.0))
        self.backend.answers["server/discover"] = lambda asked: messages.error(asked["id"], -32603)
        self.answer_to(modern.request("server/discover", 1))
        self.backend.opens = False
        client = self.ask(modern.request("server/discover", 2))
        self.house.clock.advance(4)
        self.assertEqual(client.answer.status, 503, client.answer.body)

    def test_discover_in_flight(self) -> None:
        """A discover in flight at the loss, with nothing known, is 503 when its time is up."""
        self.backend.answers["server/discover"] = silent
        client = self.ask(modern.request("server/discover", 1))
        self.backend.go_down()
        self.house.clock.advance(HOLD + 1)
        self.assertEqual(client.answer.status, 503, client.answer.body)

    def test_discover_in_flight_known(self) -> None:
        """The same with something known is answered with that."""
        self.ask(modern.request("server/discover", 1))
        self.backend.answers["server/discover"] = silent
        client = self.ask(modern.request("server/discover", 2))
        self.backend.go_down()
        self.house.clock.advance(HOLD + 1)
        self.assertEqual(client.answer.json(), messages.result(2, DISCOVERED))

    def test_discover_through_gateway(self) -> None:
        """A gateway before a backend that is away says 503 twice: so does the proxy, not 200 with an error."""
        refusal = Refusal(503, "503", HTTPAnswer(503, (), b""))
        self.backend.refusals["server/discover"] = refusal
        client = self.ask(modern.request("server/discover", 1))
        self.backend.refusals["server/discover"] = refusal
        self.house.clock.advance(1)
        self.assertEqual(client.answer.status, 503, client.answer.body)

    def test_spent_later(self) -> None:
        """When the budget of the outage is spent, later requests are answered at once."""
        self.backend.go_down()
        self.backend.spent = True
        self.assert_error(self.answer_to(modern.call(2)), 200, -31001, 2)

    def test_large_subscription(self) -> None:
        """A subscription whose id is a number that JSON parsers round keeps it."""
        for identity in (2**60, "mcp-proxy/9"):
            client = self.ask(modern.listen(identity, toolsListChanged=True))
            seen = client.messages[0]["params"]["_meta"][modern.META_SUBSCRIPTION]
            self.assertEqual(seen, identity)

    def test_escaped_slash(self) -> None:
        """A body that spells the key with an escaped slash, as PHP does, is modern whatever session is named."""
        message = modern.call(1)
        body = encoded(message).replace(b"/", b"\\/")
        headers = (modern.JSON_KIND, modern.BOTH_KINDS, *modern.headers_of(message), (b"mcp-session-id", b"old"))
        answer = self.house.ask("POST", "/mcp", headers, body).answer
        self.assertEqual(answer.status, 200, answer.body)

    def test_cancelling_is_no_warning(self) -> None:
        """A client that leaves was not answered, so the log does not say so."""
        seen: list[str] = []

        def observer(event: dict[str, Any]) -> None:
            if event["log_level"] is LogLevel.warn:
                seen.append(event["log_format"])

        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.backend.answers["tools/call"] = silent
        self.ask(modern.call(1)).hang_up()
        self.assertEqual(seen, [])

    def test_labels(self) -> None:
        """Two requests at a time have two names in the log."""
        self.backend.answers["tools/call"] = silent
        self.ask(modern.call(1))
        self.ask(modern.call(2))
        one, two = self.house.registry
        self.assertNotEqual(one.label, two.label)
