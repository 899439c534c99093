"""Pages in browsers: those of the configured origins may ask and read the answers (CORS)."""

from __future__ import annotations

from mcp_proxy.frontend.guard import ANY, Guard
from mcp_proxy.session.interfaces import HTTPAnswer
from tests.memory.test_streamable import StreamableCase
from tests.support import messages
from tests.support.http1 import Answer

PAGE = b"https://ide.example"
ORIGIN = (b"origin", PAGE)
EXPOSED = {"mcp-session-id", "mcp-protocol-version", "www-authenticate", "retry-after"}
PATHS = ("/mcp", "/mcp/sse", "/mcp/messages/x", "/.well-known/oauth-protected-resource/mcp")


class Case(StreamableCase):
    """A house that one origin may ask."""

    def setUp(self) -> None:
        """The house."""
        super().setUp()
        self.rebuild(guard=Guard((PAGE.decode(), "https://other.example")))

    def ask_before(self, path: str, *headers: tuple[bytes, bytes]) -> Answer:
        """A browser asks whether it may ask."""
        asking = (b"access-control-request-method", b"POST")
        return self.house.ask("OPTIONS", path, (asking, *headers)).answer

    def assert_readable(self, answer: Answer, origin: bytes = PAGE) -> None:
        """A page of this origin can read it, and what it says in MCP's headers."""
        shared = [value for name, value in answer.headers if name.lower() == b"access-control-allow-origin"]
        self.assertEqual(shared, [origin])
        exposed = answer.header(b"access-control-expose-headers").decode().lower().split(", ")
        self.assertEqual(set(exposed), EXPOSED)
        self.assertEqual(answer.header(b"access-control-allow-credentials"), b"")

    def assert_unreadable(self, answer: Answer) -> None:
        """No page can."""
        self.assertEqual([name for name, _ in answer.headers if name.lower().startswith(b"access-control-")], [])


class Answers(Case):
    def test_all(self) -> None:
        """Replies, streams, pages and errors are readable, and say that they differ by origin."""
        session = self.begin(ORIGIN)
        answers = [
            self.post(messages.initialize(1), ORIGIN).answer,
            self.post(messages.call(1), session, ORIGIN).answer,
            self.post(b"{", ORIGIN).answer,
            self.listen(session, ORIGIN).answer,
            self.house.stream(ORIGIN).answer,
            self.house.ask("PUT", "/mcp", (ORIGIN,)).answer,
            self.house.ask("GET", "/mcp/nothing", (ORIGIN,)).answer,
        ]
        for answer in answers:
            self.assert_readable(answer)
            self.assertEqual(answer.header(b"vary"), b"Origin")

    def test_others(self) -> None:
        """An origin that is not admitted, pages for operators, and programs get none of it."""
        self.assert_unreadable(self.house.ask("GET", "/mcp", ((b"origin", b"https://evil.example"),)).answer)
        for path in ("/metrics", "/health", "/ready", "/"):
            self.assert_unreadable(self.house.ask("GET", path, (ORIGIN,)).answer)
            self.assertEqual(self.ask_before(path, ORIGIN).status, 405)
        self.assert_unreadable(self.post(messages.initialize(1)).answer)

    def test_not_configured(self) -> None:
        """Where no origin is configured, pages of this machine are admitted, but no page reads what is said to it."""
        self.rebuild()
        local = (b"origin", b"http://localhost:6274")
        self.assert_unreadable(self.post(messages.initialize(1), local).answer)
        self.assertEqual(self.ask_before("/mcp", local).status, 405)

    def test_any(self) -> None:
        """If any origin is admitted, that is said, and not repeated what a page has sent."""
        self.rebuild(guard=Guard((ANY,)))
        answer = self.post(messages.initialize(1), (b"origin", b"https://a\xe9.example")).answer
        self.assert_readable(answer, b"*")

    def test_backend_has_no_say(self) -> None:
        """What the backend says of that for its own pages is not passed on beside ours."""
        headers = ((b"Access-Control-Allow-Origin", b"*"), (b"content-type", b"application/json"))
        self.house.backend_port.pages[PATHS[-1]] = HTTPAnswer(200, headers, b"{}")
        self.assert_readable(self.house.ask("GET", PATHS[-1], (ORIGIN,)).answer)


class Preflight(Case):
    def test_allowed(self) -> None:
        """A page may send what MCP needs and headers of its own; nothing is done yet."""
        names = b"content-type,authorization,mcp-session-id,mcp-param-region"
        for path in PATHS:
            answer = self.ask_before(path, ORIGIN, (b"access-control-request-headers", names))
            self.assertEqual((answer.status, answer.body), (204, b""), path)
            self.assert_readable(answer)
            self.assertEqual(answer.header(b"access-control-allow-methods"), b"GET, POST, DELETE")
            self.assertEqual(answer.header(b"access-control-allow-headers"), names)
            self.assertEqual(answer.header(b"access-control-max-age"), b"600")
        self.assertEqual((len(self.house.registry), self.house.backend.made, self.house.refusals), (0, [], {}))

    def test_refused(self) -> None:
        """A page elsewhere is refused; a path that is none is not found; OPTIONS without a question is no method."""
        self.assert_json_error(self.ask_before("/mcp", (b"origin", b"https://evil.example")), 403, -32600)
        self.assert_json_error(self.ask_before("/mcp/nothing", ORIGIN), 404, -32600)
        self.assert_json_error(self.ask_before("/mcp"), 405, -32600)
        self.assert_json_error(self.house.ask("OPTIONS", "/mcp", (ORIGIN,)).answer, 405, -32600)

    def test_odd_names(self) -> None:
        """What is no list of names is not repeated."""
        for value in (b"a:b", b"<script>", b"x" * 3000):
            answer = self.ask_before("/mcp", ORIGIN, (b"access-control-request-headers", value))
            self.assertEqual((answer.status, answer.header(b"access-control-allow-headers")), (204, b""))
