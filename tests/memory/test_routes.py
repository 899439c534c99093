"""Routes, status pages and guards."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from treq.testing import StubTreq

from mcp_proxy.frontend.guard import Guard
from mcp_proxy.session.interfaces import HTTPAnswer
from tests.memory.house_case import HouseCase
from tests.support.http1 import HeaderList

ROUTES = {
    "/": {"GET"},
    "/health": {"GET"},
    "/ready": {"GET"},
    "/metrics": {"GET"},
    "/mcp": {"GET", "POST", "DELETE"},
    "/mcp/sse": {"GET", "POST", "DELETE"},
    "/mcp/messages/x": {"POST"},
}
WEIRD_PATHS = (
    "/%ff",
    "/%",
    "/%00",
    "/%zz",
    "/..",
    "/../../etc/passwd",
    "/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/mcp/",
    "/mcp/sse/",
    "/mcp/sse/x",
    "/mcp/messages",
    "/MCP/SSE",
    "/health/",
    "/;x",
    "/" + "a" * 12_000,
)
WEIRD_MESSAGE_PATHS = (
    "/mcp/messages/",
    "/mcp/messages//",
    "/mcp/messages/a/b/c",
    "/mcp/messages/../health",
    "/mcp/messages/%2e%2e%2fhealth",
    "/mcp/messages/%ff%fe",
    "/mcp/messages/%00",
    "/mcp/messages/" + "a" * 12_000,
)


class Pages(HouseCase):
    def page(self, path: str) -> tuple[int, Any]:
        answer = self.house.ask("GET", path).answer
        self.assertEqual(answer.header(b"content-type"), b"application/json")
        return answer.status, answer.json()

    def test_index(self) -> None:
        """The index names the program and where clients connect."""
        status, page = self.page("/")
        self.assertEqual((status, page["name"]), (200, "mcp-proxy"))
        self.assertEqual(page["endpoints"]["sse"], "GET /mcp/sse")

    def test_healthy(self) -> None:
        """With a backend that answers, the page says ok, how many clients there are and when it last looked."""
        self.successResultOf(self.house.health.check())
        self.house.initialized()
        status, page = self.page("/health")
        self.assertEqual((status, page["status"]), (200, "ok"))
        self.assertIs(page["proxy"]["healthy"], True)
        self.assertEqual(page["proxy"]["active_connections"], 1)
        self.assertIs(page["backend"]["healthy"], True)
        checked = datetime.fromisoformat(page["backend"]["last_check"])
        self.assertEqual(checked.timestamp(), self.house.clock.seconds())
        self.assertEqual(page["backend"]["url"], "http://***@backend:3000")

    def test_degraded(self) -> None:
        """With a backend that is down the proxy itself stays healthy, for a restart would cost its sessions."""
        self.house.backend_port.status = None
        self.house.backend.go_down()
        self.successResultOf(self.house.health.check())
        status, page = self.page("/health")
        self.assertEqual((status, page["status"]), (200, "degraded"))
        self.assertIs(page["proxy"]["healthy"], True)
        self.assertIs(page["backend"]["healthy"], False)
        self.assertEqual(page["backend"]["problem"], "connection refused")

    def test_never_checked(self) -> None:
        """Before the first check the page says so instead of guessing."""
        _, page = self.page("/health")
        self.assertEqual((page["status"], page["backend"]["last_check"]), ("degraded", None))

    def test_no_health_page(self) -> None:
        """A backend without a health page (404) is healthy."""
        self.house.backend_port.status = 404
        self.successResultOf(self.house.health.check())
        self.assertEqual(self.page("/health")[1]["status"], "ok")

    def test_three_strikes(self) -> None:
        """It takes three bad answers in a row to call a backend ill, and one good one to call it well."""
        self.successResultOf(self.house.health.check())
        self.house.backend_port.status = 500
        seen = []
        for _ in range(3):
            self.successResultOf(self.house.health.check())
            seen.append(self.page("/health")[1]["backend"]["healthy"])
        self.house.backend_port.status = 200
        self.successResultOf(self.house.health.check())
        self.assertEqual((seen, self.page("/health")[1]["backend"]["healthy"]), ([True, True, False], True))

    def test_ready(self) -> None:
        """Readiness follows the backend, and ends when the proxy stops."""
        self.assertEqual(self.page("/ready"), (503, {"ready": False, "reason": "Backend unavailable"}))
        self.successResultOf(self.house.health.check())
        self.assertEqual(self.page("/ready"), (200, {"ready": True}))
        self.house.status.is_stopping = True
        self.assertEqual(self.page("/ready"), (503, {"ready": False, "reason": "shutting down"}))

    def test_treq(self) -> None:
        """An ordinary HTTP client library reads the pages."""
        treq: Any = StubTreq(self.house.app.klein.resource())
        response = self.successResultOf(treq.get("http://localhost/health"))
        self.assertEqual(response.code, 200)
        page = json.loads(self.successResultOf(treq.content(response)))
        self.assertIs(page["proxy"]["healthy"], True)

    def test_head(self) -> None:
        """HEAD is answered like GET, without a body."""
        for path in ("/", "/health", "/ready", "/mcp/sse"):
            connection = self.house.ask("HEAD", path)
            self.assertEqual(connection.answer.body, b"", path)
            self.assertIn(connection.answer.status, (200, 503), path)
        self.assertEqual(len(self.house.registry), 0)


class Refusals(HouseCase):
    def test_unknown_paths(self) -> None:
        """Whatever path is asked for, the answer is JSON, and 404 if there is nothing."""
        for path in WEIRD_PATHS:
            for method in ("GET", "POST"):
                answer = self.house.ask(method, path, body=b"{}" if method == "POST" else None).answer
                self.assertNotEqual(answer.status, 200, path)
                self.assert_json_error(answer, 405 if answer.status == 405 else 404, -32600)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_raw_bytes(self) -> None:
        """A path with bytes that no request line may have is refused, without a word or in JSON."""
        for path in ("/caf\xe9", "/\x7f", "/mcp/messages/\xff"):
            answer = self.house.ask("GET", path).answer
            self.assertIn(answer.status, (400, 404), path)
            self.assertTrue(answer.body == b"" or answer.header(b"content-type") == b"application/json", path)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_slashes(self) -> None:
        """Superfluous slashes lead to a page of ours or to none, never to another place."""
        for path in ("//", "///", "///health", "//evil.example", "//evil.example/health", "/mcp//sse", "/mcp/sse//"):
            answer = self.house.ask("GET", path).answer
            self.assertIn(answer.status, (200, 404), path)
            self.assertEqual(answer.header(b"location"), b"", path)
            self.assertEqual(answer.header(b"content-type"), b"application/json", path)

    def test_unknown_message_paths(self) -> None:
        """A message path that names no session is 404, also one that tries to climb."""
        for path in WEIRD_MESSAGE_PATHS:
            answer = self.house.post(path, {"jsonrpc": "2.0", "id": 1, "method": "ping"})
            self.assert_json_error(answer, 404, -32600)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_no_warning(self) -> None:
        """A refusal is sent once: Twisted has nothing to warn of."""
        for method, path in (("GET", "/nothing"), ("DELETE", "/health"), ("HEAD", "/nothing"), ("GET", "/health")):
            self.assertTrue(self.house.ask(method, path).answer.complete)
            self.assertEqual([each["message"] for each in self.flushWarnings()], [], (method, path))

    def test_wrong_methods(self) -> None:
        """A wrong method is 405 and told which one is right."""
        for path, right in ROUTES.items():
            for wrong in {"PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "POST", "GET"} - right:
                answer = self.house.ask(wrong, path, body=b"").answer
                self.assert_json_error(answer, 405, -32600)
                allowed = set(answer.header(b"allow").decode().split(", "))
                self.assertEqual(allowed - {"HEAD"}, right, path)

    def test_weird_methods(self) -> None:
        """A method that is no word is refused, without a page of markup or an error in the log."""
        for method in ("G\xffT", "A" * 500, "<b>"):
            answer = self.house.ask(method, "/health").answer
            self.assertIn(answer.status, (400, 405, 501), method)
            self.assertNotIn(b"<html", answer.body.lower())
            self.assertEqual(self.flushLoggedErrors(), [], method)

    def test_echo_is_harmless(self) -> None:
        """What a client sent comes back in no answer as markup."""
        answer = self.house.ask("GET", "/<script>alert(1)</script>").answer
        self.assertNotIn(b"<script>", answer.body)
        answer = self.house.ask("GET", "/", ((b"host", b"<script>.example"),)).answer
        self.assertEqual(answer.header(b"content-type"), b"application/json")


class Guards(HouseCase):
    def every_route(self, headers: HeaderList, status: int, code: int) -> None:
        routes = [(method, path) for path, methods in ROUTES.items() for method in sorted(methods)]
        for method, path in (*routes, ("GET", "/nothing"), ("DELETE", "/health"), ("HEAD", "/mcp/sse")):
            body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}' if method == "POST" else None
            answer = self.house.ask(method, path, (*headers, (b"content-type", b"application/json")), body).answer
            self.assertEqual(answer.status, status, (method, path))
            if method != "HEAD":
                self.assert_json_error(answer, status, code)
        self.assertEqual(len(self.house.registry), 0)
        self.assertEqual(self.house.backend.made, [])

    def test_foreign_origin(self) -> None:
        """A page elsewhere is refused on every route, before anything happens."""
        self.every_route(((b"origin", b"https://evil.example"),), 403, -32600)
        self.every_route(((b"origin", b"null"),), 403, -32600)
        self.every_route(((b"origin", b"https://localhost.evil.example"),), 403, -32600)

    def test_foreign_host(self) -> None:
        """A name that is not ours is refused on every route (DNS rebinding)."""
        self.every_route(((b"host", b"evil.example"),), 421, -32600)
        self.every_route(((b"host", b"127.0.0.1.evil.example:8001"),), 421, -32600)
        self.every_route(((b"host", b"localhost@evil.example"),), 421, -32600)

    def test_weird_hosts(self) -> None:
        """Whatever Host says, the answer is a refusal in JSON."""
        for host in (
            b"",
            b"..",
            b"\xff",
            b"a" * 300,
            b"." * 100,
            b"[::1",
            b"localhost:99999999",
            b"local host",
            b"xn--\xe9",
        ):
            answer = self.house.ask("GET", "/health", ((b"host", host),)).answer
            self.assertIn(answer.status, (200, 400, 421), host)
            if answer.status != 200 and answer.body:
                self.assert_json_error(answer, answer.status, -32600)
            self.assertEqual(self.flushLoggedErrors(), [], host)

    def test_several_hosts(self) -> None:
        """A second Host or Origin header does not hide the first, nor the first the second."""
        for pair in (
            ((b"host", b"localhost"), (b"host", b"evil.example")),
            ((b"host", b"evil.example"), (b"host", b"localhost")),
        ):
            self.assertGreaterEqual(self.house.ask("GET", "/", pair).answer.status, 400, pair)
        for origins in ((b"http://localhost", b"https://evil.example"), (b"https://evil.example", b"http://localhost")):
            headers = tuple((b"origin", origin) for origin in origins)
            self.assertEqual(self.house.ask("GET", "/", headers).answer.status, 403, origins)

    def test_our_names(self) -> None:
        """Loopback names pass, with and without a port."""
        for host in (b"localhost", b"LocalHost:8001", b"127.0.0.1:8001", b"[::1]:8001"):
            headers = ((b"host", host), (b"origin", b"http://" + host))
            self.assertEqual(self.house.ask("GET", "/", headers).answer.status, 200, host)

    def test_allowed(self) -> None:
        """What the operator admits passes, nothing else."""
        self.rebuild(guard=Guard(("https://ide.example",), ("proxy.example",)))
        good = ((b"host", b"proxy.example:8001"), (b"origin", b"https://IDE.example"))
        self.assertEqual(self.house.ask("GET", "/", good).answer.status, 200)
        bad = ((b"host", b"proxy.example"), (b"origin", b"https://other.example"))
        self.assertEqual(self.house.ask("GET", "/", bad).answer.status, 403)


class WellKnown(HouseCase):
    PATH = "/.well-known/oauth-protected-resource/mcp"

    def test_passed_on(self) -> None:
        """A page that tells where to get a token comes from the backend as it is, whatever its status."""
        page = b'{"resource": "https://proxy.example/mcp"}'
        kind = (b"content-type", b"application/json")
        self.house.backend_port.pages[self.PATH] = HTTPAnswer(200, (kind,), page)
        answer = self.house.ask("GET", self.PATH, ((b"mcp-protocol-version", b"2025-11-25"), (b"x-own", b"1"))).answer
        self.assertEqual((answer.status, answer.body, answer.header(b"content-type")), (200, page, kind[1]))
        self.assertEqual(self.house.backend_port.fetched[0][0], self.PATH)
        self.assertIn((b"x-own", b"1"), self.house.backend_port.fetched[0][1])
        self.assertEqual(self.house.ask("GET", "/.well-known/other").answer.status, 404)

    def test_nobody_there(self) -> None:
        """Without a backend nobody knows: 503, to be tried again."""
        self.house.backend_port.status = None
        self.assert_json_error(self.house.ask("GET", self.PATH).answer, 503, -31001)

    def test_only_read(self) -> None:
        """Nothing but GET, and no other path, reaches the backend that way."""
        self.assertEqual(self.house.ask("POST", self.PATH, body=b"{}").answer.status, 405)
        for path in (
            "/.well-known",
            "/.well-known/",
            "/.well-known/../health",
            "/.well-known/%2e%2e/x",
            "/x/.well-known/y",
        ):
            self.house.ask("GET", path)
        self.assertEqual(self.house.backend_port.fetched, [])
