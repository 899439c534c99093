"""What ``/metrics`` tells, and to whom."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from mcp_proxy.session.interfaces import HTTPAnswer, Refusal
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import HouseCase
from tests.memory.test_modern import ModernCase
from tests.support import messages, modern
from tests.support.http1 import HeaderList
from tests.support.memory import JSON_HEAD
from tests.support.messages import encoded

TOKEN = "a-token-of-operators"


class MetricsCase(HouseCase):
    def value(self, name: str, **labels: str) -> float:
        """What the page says now; 0 for what it does not have."""
        answer = self.house.ask("GET", "/metrics").answer
        self.assertEqual(answer.status, 200)
        families = text_string_to_metric_families(answer.body.decode())
        found = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"mcp_proxy_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found)


class Counted(MetricsCase):
    def call(self, path: str, identity: Any = 1, method: str = "tools/call") -> None:
        self.house.post(path, messages.request(method, identity, {"name": "add", "arguments": {}}))

    def test_answered(self) -> None:
        """A request that the backend answered is counted by method and by the kind of answer."""
        path = self.house.initialized().path
        self.call(path, 1)
        self.call(path, 2)
        self.call(path, 3, "prompts/get")
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="result", delivery="yes"), 2)
        self.assertEqual(self.value("requests_total", method="prompts/get", outcome="error", delivery="yes"), 1)
        self.assertEqual(self.value("request_seconds_count", method="tools/call"), 2)
        self.assertEqual(self.value("added_seconds_count"), 4)

    def test_methods_are_bounded(self) -> None:
        """A client cannot make series by inventing methods."""
        path = self.house.initialized().path
        for number in range(50):
            self.call(path, number, f"x/{number}")
        self.assertEqual(self.value("requests_total", method="other"), 50)
        self.assertNotIn(b"x/", self.house.ask("GET", "/metrics").answer.body)

    def test_time(self) -> None:
        """The time of the backend is that of the request, and is not taken for ours."""
        path = self.house.initialized().path
        self.house.backend.answers["tools/call"] = lambda asked: None
        self.call(path)
        self.house.clock.advance(2)
        self.assertEqual(self.value("in_flight"), 1)
        self.house.backend.link.tell(messages.result(1, {}))
        self.assertEqual(self.value("in_flight"), 0)
        self.assertEqual(self.value("request_seconds_sum", method="tools/call"), 2)
        self.assertEqual(self.value("added_seconds_sum"), 0)

    def test_sessions(self) -> None:
        """Sessions, their phases and open streams are as they are when the page is asked for."""
        streams = [self.house.initialized() for _ in range(3)]
        self.assertEqual((self.value("sessions"), self.value("streams", transport="sse")), (3, 3))
        self.assertEqual(self.value("session_phases", phase="live"), 3)
        streams[0].hang_up()
        self.house.clock.advance(6)
        self.assertEqual((self.value("sessions"), self.value("streams", transport="sse")), (3, 2))
        self.assertEqual(self.value("session_phases", phase="dormant"), 1)

    def test_held(self) -> None:
        """What is held is seen while it is, with the time that it took when it is over; it is no time of ours."""
        stream = self.house.initialized()
        before = self.value("added_seconds_count")
        self.house.backend.go_down()
        self.call(stream.path)
        self.assertEqual(self.value("held"), 1)
        self.house.clock.advance(3)
        self.house.backend.come_back()
        self.assertEqual((self.value("held"), self.value("handshakes_replayed_total")), (0, 1))
        self.assertEqual((self.value("hold_seconds_count"), self.value("hold_seconds_sum")), (1, 3))
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="result"), 1)
        self.assertEqual(self.value("added_seconds_count"), before)

    def test_not_delivered(self) -> None:
        """A hold that ends without a backend is an outcome of its own, and so is having no room."""
        self.rebuild(policy=Policy(max_held=1, hold_timeout=10.0))
        stream = self.house.initialized()
        self.house.backend.go_down()
        self.call(stream.path, 1)
        self.call(stream.path, 2)
        self.house.clock.advance(10)
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="not_delivered", delivery="no"), 1)
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="overloaded", delivery="no"), 1)
        self.assertEqual(self.value("hold_seconds_sum"), 10)

    def test_repeated(self) -> None:
        """A list that was on the link when it broke is held like any other, and ends once."""
        stream = self.house.initialized()
        self.house.backend.answers["tools/list"] = lambda asked: None
        self.call(stream.path, 1, "tools/list")
        self.house.backend.go_down()
        self.house.clock.advance(2)
        self.house.backend.answers["tools/list"] = lambda asked: messages.result(asked["id"], {"tools": []})
        self.house.backend.come_back()
        self.assertEqual(self.value("hold_seconds_sum"), 2)
        self.assertEqual(self.value("requests_total", method="tools/list"), 1)

    def test_unknown(self) -> None:
        """A call that was lost with its link is counted with how far it had got."""
        stream = self.house.initialized()
        self.house.backend.answers["tools/call"] = lambda asked: None
        self.call(stream.path)
        self.house.backend.go_down()
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="unknown", delivery="yes"), 1)

    def test_refused(self) -> None:
        """A request that the backend refused by HTTP is counted as that."""
        stream = self.house.initialized()
        self.house.backend.refusals["tools/call"] = Refusal(401, "401", HTTPAnswer(401, (), b"no"))
        self.call(stream.path)
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="refused"), 1)

    def test_cancelled(self) -> None:
        """A request that its client cancelled ends as that, once, whatever the backend still says."""
        stream = self.house.initialized()
        self.house.backend.answers["tools/call"] = lambda asked: None
        self.call(stream.path)
        for _ in range(2):
            self.house.post(stream.path, messages.notification("notifications/cancelled", {"requestId": 1}))
        self.house.backend.link.tell(messages.result(1, {}))
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="cancelled"), 1)
        self.assertEqual(self.value("requests_total", method="tools/call"), 1)

    def test_events(self) -> None:
        """Messages of the backend's, and those that a client has missed, are counted; so is one that does not read."""
        stream = self.house.initialized()
        self.house.backend.link.tell(messages.notification("notifications/tools/list_changed", {}))
        seen = stream.events[-1].id.encode()
        stream.hang_up()
        for _ in range(2):
            self.house.backend.link.tell(messages.notification("notifications/tools/list_changed", {}))
        again = self.house.stream((b"last-event-id", seen))
        self.assertEqual((self.value("events_relayed_total"), self.value("events_replayed_total")), (3, 2))
        again.stop_reading()
        self.assertEqual(self.value("client_stalls_total"), 1)

    def test_backend(self) -> None:
        """The backend's health is what ``/health`` says."""
        self.assertEqual(self.value("backend_healthy"), 0)
        self.successResultOf(self.house.health.check())
        self.house.initialized()
        self.assertEqual((self.value("backend_healthy"), self.value("backend_links")), (1, 1))
        self.house.backend.go_down()
        self.assertEqual(self.value("backend_healthy"), 0)
        self.assertEqual(self.value("current_outage_seconds"), 1)

    def test_nobodys_else(self) -> None:
        """Two proxies in one process count for themselves."""
        self.call(self.house.initialized().path)
        first = self.house
        self.rebuild()
        self.assertEqual(self.value("requests_total"), 0)
        first.close()

    def test_process(self) -> None:
        """There is also what the process uses."""
        self.assertIn(b"\nprocess_cpu_seconds_total ", self.house.ask("GET", "/metrics").answer.body)


class OtherTransports(MetricsCase, ModernCase):
    def test_modern(self) -> None:
        """A request of the revision without sessions is counted like any other, and is no session that stays."""
        self.answer_to(modern.request("tools/list"))
        self.backend.answers["tools/call"] = lambda asked: None
        asked = self.ask(modern.request("tools/call", 2, {"name": "echo"}))
        self.assertEqual((self.value("in_flight"), self.value("sessions")), (1, 0))
        self.assertEqual(self.value("session_phases", phase="live"), 1)
        self.link.stream()
        self.assertEqual(self.value("streams", transport="modern"), 1)
        asked.hang_up()
        self.assertEqual((self.value("in_flight"), self.value("streams"), self.value("session_phases")), (0, 0, 0))
        self.assertEqual(self.value("requests_total", method="tools/list", outcome="result"), 1)
        self.assertEqual(self.value("requests_total", method="tools/call", outcome="cancelled", delivery="yes"), 1)
        self.assertEqual(self.value("requests_total"), 2)

    def test_streamable(self) -> None:
        """A reply is a stream from the moment that it becomes one; what is resumed is counted."""
        accept = (b"accept", b"application/json, text/event-stream")
        head = (*JSON_HEAD, accept)
        hello = self.house.ask("POST", "/mcp", head, encoded(messages.initialize("hello"))).answer
        session = (b"mcp-session-id", hello.header(b"mcp-session-id"))
        self.backend.correlates = True
        self.backend.answers["tools/call"] = lambda asked: None
        asked = self.house.ask("POST", "/mcp", (*head, session), encoded(messages.call(1)))
        self.assertEqual((self.value("sessions"), self.value("streams", transport="streamable")), (1, 0))
        self.link.tell(messages.notification("notifications/progress", {"progressToken": 1, "progress": 1}), about=1)
        self.assertEqual((self.value("streams", transport="streamable"), self.value("events_relayed_total")), (1, 1))
        seen = asked.events[-1].id.encode()
        asked.hang_up()
        self.link.tell(messages.result(1, {}))
        self.house.ask("GET", "/mcp", (accept, session, (b"last-event-id", seen)))
        self.assertEqual((self.value("streams"), self.value("events_replayed_total")), (0, 1))


class Admitted(HouseCase):
    def status(self, *headers: tuple[bytes, bytes], peer: str = "127.0.0.1") -> int:
        """How the page answers."""
        self.house.peer = peer
        answer = self.house.ask("GET", "/metrics", headers).answer
        if answer.status != 200:
            self.assert_json_error(answer, answer.status, -32600)
            self.assertNotIn(b"mcp_proxy_", answer.body)
        return answer.status

    def test_without_token(self) -> None:
        """Without a token the page is for this machine, and not for what another proxy on it passes on."""
        self.assertEqual([self.status(peer=peer) for peer in ("127.0.0.1", "127.1.2.3", "::1")], [200] * 3)
        self.assertEqual(self.status(peer="::ffff:127.0.0.1"), 200)
        for peer in ("192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", ""):
            self.assertEqual(self.status(peer=peer), 403, peer)
        for name in (b"forwarded", b"x-forwarded-for", b"x-real-ip"):
            self.assertEqual(self.status((name, b"127.0.0.1")), 403, name)

    def test_with_token(self) -> None:
        """With a token it is for whoever has that, from wherever, and for nobody else."""
        self.rebuild(admin_token=TOKEN)
        right = (b"authorization", b"Bearer " + TOKEN.encode())
        self.assertEqual([self.status(right, peer=peer) for peer in ("127.0.0.1", "192.0.2.1")], [200, 200])
        self.assertEqual(self.status((b"authorization", b"bearer  " + TOKEN.encode())), 200)
        wrongs: list[HeaderList] = [
            (),
            ((b"authorization", TOKEN.encode()),),
            ((b"authorization", b"Basic " + TOKEN.encode()),),
            ((b"authorization", b"Bearer " + TOKEN.encode()[:-1]),),
            ((b"authorization", b"Bearer " + TOKEN.encode() + b"x"),),
            ((b"authorization", b"Bearer \xff"),),
            ((b"authorization", b"Bearer"),),
            ((b"x-api-key", TOKEN.encode()),),
        ]
        for wrong in wrongs:
            self.assertEqual(self.status(*wrong), 401, wrong)

    def test_challenge(self) -> None:
        """A program that has no token is told what is wanted."""
        self.rebuild(admin_token=TOKEN)
        answer = self.house.ask("GET", "/metrics").answer
        self.assertIn(b"Bearer", answer.header(b"www-authenticate"))
        self.assertEqual(self.flushLoggedErrors(), [])
