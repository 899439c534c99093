"""Keys of the proxy's own, beside what the backend wants to see."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock

from mcp_proxy.config import ConfigError, Settings, read_keys
from mcp_proxy.frontend.guard import Guard
from mcp_proxy.service import make_service
from mcp_proxy.wire.headers import is_renewal
from tests.memory.house_case import ALICE
from tests.memory.test_streamable import StreamableCase
from tests.support import messages

ONE, TWO = (b"x-proxy-key", b"the-first-of-the-keys"), (b"x-proxy-key", b"the-second-of-the-keys")
WRONG = ((b"x-proxy-key", b""), (b"x-proxy-key", b"the-first-of-the-key"), (b"authorization", b"Bearer " + ONE[1]))


class Keys(StreamableCase):
    def setUp(self) -> None:
        """A house that wants one of two keys."""
        super().setUp()
        self.rebuild(guard=Guard(("https://ide.example",), keys=(ONE[1], TWO[1])))

    def test_wanted(self) -> None:
        """Every route of MCP wants a key, and says so; what machines ask does not."""
        for headers in ((), *((wrong,) for wrong in WRONG)):
            for method, path in (
                ("POST", "/mcp"),
                ("GET", "/mcp"),
                ("DELETE", "/mcp"),
                ("GET", "/mcp/sse"),
                ("POST", "/mcp/messages/x"),
                ("GET", "/%6dcp"),
                ("GET", "/.well-known/oauth-protected-resource"),
            ):
                answer = self.house.ask(method, path, headers, b"{}" if method == "POST" else None).answer
                self.assertIn("X-Proxy-Key", self.assert_json_error(answer, 403, -32600)["message"])
        self.assertEqual((self.house.backend.made, self.house.backend_port.fetched), ([], []))
        self.assertEqual(self.house.refusals, {"key_wanted": 28})
        for path in ("/health", "/metrics", "/"):
            self.assertEqual(self.house.ask("GET", path).answer.status, 200)

    def test_served(self) -> None:
        """Each of the keys does, beside whatever the backend wants."""
        for key in (ONE, TWO):
            session = self.begin(key, ALICE)
            self.assert_answer(self.post(messages.call(1), session, key, ALICE).answer, 1)

    def test_owner(self) -> None:
        """A session belongs to the key as well: with the other one its id is unknown."""
        session = self.begin(ONE, ALICE)
        self.assert_json_error(self.post(messages.call(1), session, TWO, ALICE).answer, 404, -32600)
        self.assert_json_error(self.post(messages.call(1), session, ALICE).answer, 403, -32600)

    def test_newest_headers(self) -> None:
        """The newest headers of the session's owner are those that a new link gets, as without keys."""
        session = self.begin(ONE, ALICE)
        self.post(messages.call(1), session, ONE, ALICE, (b"x-own", b"new"))
        self.restart()
        self.assertIn((b"x-own", b"new"), self.link.headers)

    def test_preflight(self) -> None:
        """A browser, which sends no key with its question, is answered."""
        headers = ((b"origin", b"https://ide.example"), (b"access-control-request-method", b"POST"))
        self.assertEqual(self.house.ask("OPTIONS", "/mcp", headers).answer.status, 204)

    def test_renewal(self) -> None:
        """A new token is only taken with the same key."""
        old, new = (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")
        self.assertTrue(is_renewal((old, ONE), (new, ONE), asked_for=True))
        self.assertFalse(is_renewal((old, ONE), (new, TWO), asked_for=True))

    def test_not_shown(self) -> None:
        """No key is in a text about the guard."""
        self.assertNotIn("the-first", repr(Guard(keys=(ONE[1],))))


class Files(StreamableCase):
    def write(self, text: str) -> str:
        """A file with this text."""
        path = Path(self.mktemp())
        path.write_text(text, "utf-8")
        return str(path)

    def test_read(self) -> None:
        """A key a line; empty lines and comments mean nothing."""
        name = self.write("# ours\n\n  the-first-of-the-keys  \nthe-second-of-the-keys\n")
        self.assertEqual(read_keys(name), (ONE[1], TWO[1]))

    def test_refused(self) -> None:
        """A file without a key does not admit everybody: it ends the program, as does a bad key, which is not shown."""
        for text, reason in (
            ("", "holds no key"),
            ("# none\n", "holds no key"),
            ("\nshort-secret", "line 2"),
            ("x" * 16 + " y", "line 1"),
        ):
            name = self.write(text)
            error = self.assertRaises(ConfigError, read_keys, name)
            self.assertIn(reason, str(error))
            self.assertNotIn("secret", str(error))
            self.assertRaises(SystemExit, make_service, Settings(proxy_api_keys_file=name), Clock())
