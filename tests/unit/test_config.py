"""Settings: where a value comes from, what is allowed, and what a refusal says."""

from __future__ import annotations

from pathlib import Path

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.config import VARIABLES, ConfigError, Settings, load


class Precedence(SynchronousTestCase):
    def env_file(self, text: str) -> Path:
        path = Path(self.mktemp())
        path.write_text(text, encoding="utf-8")
        return path

    def test_defaults(self) -> None:
        """Without any source every setting has the default of the table."""
        settings = load({}, {}, None)
        self.assertEqual(settings, Settings())
        self.assertEqual(settings.backend_url, "http://localhost:3000")
        self.assertEqual((settings.proxy_host, settings.proxy_port), ("127.0.0.1", 8001))
        self.assertEqual((settings.reconnect_delay, settings.max_reconnect_attempts), (2.0, 10))
        self.assertEqual(settings.allowed_origins, ())

    def test_order(self) -> None:
        """A flag wins over the environment, that over the .env file."""
        file = self.env_file("PROXY_PORT=1\nMAX_SESSIONS=1\nMAX_BODY_BYTES=1\n")
        environ = {"PROXY_PORT": "2", "MAX_SESSIONS": "2"}
        settings = load({"PROXY_PORT": "3", "MAX_SESSIONS": None}, environ, file)
        self.assertEqual((settings.proxy_port, settings.max_sessions, settings.max_body_bytes), (3, 2, 1))

    def test_empty_is_unset(self) -> None:
        """An empty or blank variable lets the next source decide."""
        file = self.env_file("PROXY_PORT=1\nMAX_SESSIONS=\nLOG_LEVEL\n")
        settings = load({}, {"PROXY_PORT": "", "MAX_SESSIONS": " "}, file)
        self.assertEqual((settings.proxy_port, settings.max_sessions), (1, 1000))

    def test_empty_flag(self) -> None:
        """An empty flag is a value: it empties a list that the environment sets."""
        settings = load({"ALLOWED_HOSTS": ""}, {"ALLOWED_HOSTS": "a"}, None)
        self.assertEqual(settings.allowed_hosts, ())

    def test_unknown_names(self) -> None:
        """Names that are not in the table are ignored."""
        self.assertEqual(load({}, {"PATH": "/bin"}, self.env_file("OTHER=1\n")), Settings())

    def test_no_file(self) -> None:
        """A .env file that does not exist is no error."""
        self.assertEqual(load({}, {}, Path(self.mktemp())), Settings())

    def test_file_is_literal(self) -> None:
        """Quotes and a byte order mark go away, a dollar sign stays."""
        file = self.env_file("\ufeffBACKEND_URL='http://u:${HOME}@h'\n")
        self.assertEqual(load({}, {}, file).backend_url, "http://u:${HOME}@h")

    def test_file_is_not_text(self) -> None:
        """A .env file that is not UTF-8 is refused in one line."""
        file = Path(self.mktemp())
        file.write_bytes(b"PROXY_PORT=\xff\n")
        error = self.assertRaises(ConfigError, load, {}, {}, file)
        self.assertEqual(str(error), f"{file} cannot be read: it is not UTF-8")


class Values(SynchronousTestCase):
    def accept(self, name: str, text: str) -> object:
        return getattr(load({}, {name: text}, None), name.lower())

    def refuse(self, name: str, *texts: str) -> None:
        for text in texts:
            error = self.assertRaises(ConfigError, load, {name: text}, {}, None)
            self.assertIn(name, str(error))
            self.assertEqual(len(str(error).splitlines()), 1)

    def test_url(self) -> None:
        """A backend URL is http or https with a host; a path prefix loses its last slash."""
        self.assertEqual(self.accept("BACKEND_URL", "https://u:p@h:1/a/"), "https://u:p@h:1/a")
        self.assertEqual(self.accept("BACKEND_URL", "http://[::1]:3000/"), "http://[::1]:3000")
        self.assertEqual(self.accept("BACKEND_URL", "http://h/mcp-servers"), "http://h/mcp-servers")
        self.refuse("BACKEND_URL", "", "localhost:3000", "ftp://h", "http://", "http:///x", "http://h?q=1")
        self.refuse("BACKEND_URL", "http://h#f", "http://h:0", "http://h:99999", "http://h:", "http://h:x")
        self.refuse("BACKEND_URL", "http://a b", "http://h/\nx", "http://[::1", "/h")

    def test_paths(self) -> None:
        """A path starts with one slash; it may have a query, but no fragment."""
        self.assertEqual(self.accept("BACKEND_SSE_PATH", "/sse?a=1"), "/sse?a=1")
        self.refuse("BACKEND_SSE_PATH", "", "sse", "//host/sse", "/sse#x", "/s se", "http://h/sse")

    def test_host(self) -> None:
        """The host is a name or an address, without port, brackets or scheme."""
        for text in ("0.0.0.0", "::", "::1", "localhost", "proxy.example.com"):
            self.assertEqual(self.accept("PROXY_HOST", text), text)
        self.refuse("PROXY_HOST", "", "localhost:80", "[::1]", "http://h", "a b", "a/b", ":")

    def test_whole_numbers(self) -> None:
        """Counts are plain digits within their range."""
        self.assertEqual(self.accept("PROXY_PORT", "0"), 0)
        self.assertEqual(self.accept("PROXY_PORT", " 65535 "), 65535)
        self.assertEqual(self.accept("MAX_RECONNECT_ATTEMPTS", "0"), 0)
        self.refuse("PROXY_PORT", "", "-1", "65536", "80.0", "1_0", "0x50", "true", "1e3", "٣", "9" * 5000)
        self.refuse("MAX_SESSIONS", "0")

    def test_seconds(self) -> None:
        """Times are finite decimal numbers above zero."""
        for text, value in (("2", 2.0), ("0.5", 0.5), (".25", 0.25), ("1800", 1800.0)):
            self.assertEqual(self.accept("RECONNECT_DELAY", text), value)
        self.refuse("RECONNECT_DELAY", "", "0", "0.0", "-1", "nan", "inf", "1_0", "True", "1e3", "2s", "9" * 400)

    def test_listen(self) -> None:
        """LISTEN is checked as a Twisted endpoint without opening it."""
        for text in ("tcp:8001", r"tcp6:0:interface=\:\:1", "unix:/run/no-such-folder/proxy.sock"):
            self.assertEqual(self.accept("LISTEN", text), text)
        self.refuse("LISTEN", "8001", "tcp:", "tcp:x", "nope:1", "tcp:1:bogus=2", "ssl:443:privateKey=/none")

    def test_words(self) -> None:
        """Settings with a few words take these words in any case, and no others."""
        self.assertEqual(self.accept("RETRY_TOOL_CALLS", "annotated"), "annotated")
        self.assertEqual(self.accept("LOG_LEVEL", "DEBUG"), "debug")
        self.refuse("RETRY_TOOL_CALLS", "", "always", "true")
        self.refuse("LOG_FORMAT", "xml")

    def test_lists(self) -> None:
        """Lists are split at commas, lower-cased and checked item by item; a star stands alone."""
        origins = self.accept("ALLOWED_ORIGINS", "https://App.example, vscode-webview://abc,http://[::1]:3")
        self.assertEqual(origins, ("https://app.example", "vscode-webview://abc", "http://[::1]:3"))
        self.assertEqual(self.accept("ALLOWED_ORIGINS", "*"), ("*",))
        self.assertEqual(self.accept("ALLOWED_HOSTS", "a.example,[::1]:8001,b:80"), ("a.example", "[::1]:8001", "b:80"))
        self.refuse("ALLOWED_ORIGINS", "app.example", "https://a/path", "https://a,", "https://a,*", "https://u@a")
        self.refuse("ALLOWED_HOSTS", "http://a", "a/b", "a b", ",", "a:b", "*,a", "::1")

    @given(st.sampled_from(VARIABLES), st.text())
    def test_any_text(self, variable: object, text: str) -> None:
        """Any text at all is either taken or refused with a one-line ConfigError."""
        name = variable.name  # type: ignore[attr-defined]
        try:
            load({name: text}, {}, None)
        except ConfigError as error:
            self.assertTrue(str(error).startswith(name))
            self.assertEqual(len(str(error).splitlines()), 1)


class Endpoints(SynchronousTestCase):
    """BACKEND_URL may be the whole URL of an endpoint, as it stands in the configuration of clients."""

    def test_named(self) -> None:
        """The path of an endpoint is taken from it."""
        for url, base, mcp_path, sse_path in (
            ("http://h:1", "http://h:1", "/mcp", "/mcp/sse"),
            ("http://h:1/mcp", "http://h:1", "/mcp", "/mcp/sse"),
            ("http://h:1/a/mcp/", "http://h:1/a", "/mcp/", "/mcp/sse"),
            ("http://h:1/sse", "http://h:1", "/mcp", "/sse"),
            ("http://h:1/mcp/sse", "http://h:1", "/mcp", "/mcp/sse"),
            ("http://h:1/a/", "http://h:1/a", "/mcp", "/mcp/sse"),
            ("http://mcp", "http://mcp", "/mcp", "/mcp/sse"),
        ):
            settings = load({}, {"BACKEND_URL": url}, None)
            self.assertEqual(
                (settings.backend_url, settings.backend_mcp_path, settings.backend_sse_path),
                (base, mcp_path, sse_path),
                url,
            )

    def test_set_apart(self) -> None:
        """A path that is set by itself follows whatever path BACKEND_URL has."""
        settings = load({"BACKEND_MCP_PATH": "/v2"}, {"BACKEND_URL": "http://h/mcp"}, None)
        self.assertEqual((settings.backend_url, settings.backend_mcp_path), ("http://h/mcp", "/v2"))
        settings = load({}, {"BACKEND_URL": "http://h/sse", "BACKEND_SSE_PATH": "/events"}, None)
        self.assertEqual((settings.backend_url, settings.backend_sse_path), ("http://h/sse", "/events"))


class Secret(SynchronousTestCase):
    def test_values(self) -> None:
        """The token of operators is long, visible and without spaces, or there is none."""
        self.assertEqual(load({}, {"ADMIN_TOKEN": "x" * 16}, None).admin_token, "x" * 16)
        self.assertEqual(load({"ADMIN_TOKEN": ""}, {"ADMIN_TOKEN": "x" * 16}, None).admin_token, "")
        for text in ("x" * 15, "x" * 16 + " x", "\u00e4" * 16):
            self.assertRaises(ConfigError, load, {}, {"ADMIN_TOKEN": text}, None)

    def test_never_shown(self) -> None:
        """It is in no text about the settings, not even in one that refuses it."""
        settings = load({}, {"ADMIN_TOKEN": "s3cret-s3cret-s3cret"}, None)
        self.assertEqual(settings.describe()["ADMIN_TOKEN"], "***")
        self.assertNotIn("s3cret", repr(settings))
        error = self.assertRaises(ConfigError, load, {}, {"ADMIN_TOKEN": "s3cret s3cret s3cret"}, None)
        self.assertIn("ADMIN_TOKEN", str(error))
        self.assertNotIn("s3cret", str(error))


class Messages(SynchronousTestCase):
    def test_flag(self) -> None:
        """A refusal names variable, source, value and what is allowed."""
        error = self.assertRaises(ConfigError, load, {"PROXY_PORT": "x"}, {}, None)
        self.assertEqual(
            str(error),
            "PROXY_PORT (from flag --proxy-port) is 'x', but must be a whole number from 0 to 65535",
        )

    def test_sources(self) -> None:
        """The environment and the .env file are named as such."""
        error = self.assertRaises(ConfigError, load, {}, {"LOG_LEVEL": "loud"}, None)
        self.assertIn("LOG_LEVEL (from the environment) is 'loud', but must be one of debug, info", str(error))
        Path(".env").write_text("LOG_LEVEL=loud\n", encoding="utf-8")
        self.addCleanup(Path(".env").unlink)
        error = self.assertRaises(ConfigError, load, {}, {}, Path(".env"))
        self.assertIn("LOG_LEVEL (from .env) is 'loud'", str(error))

    def test_no_credential(self) -> None:
        """Whatever is wrong with a URL, its user, password and query do not appear."""
        for text in (
            "ftp://user:s3cret@h",
            "user:s3cret@h:1",
            "http://user:s3/cret@h",
            "http://user:s3@cret@h:x",
            "http:/user:s3cret@h",
            "http://h?key=s3cret",
            "http://h?a@b=s3cret",
        ):
            for name in ("BACKEND_URL", "ALLOWED_ORIGINS", "PROXY_HOST"):
                message = str(self.assertRaises(ConfigError, load, {name: text}, {}, None))
                for secret in ("user", "s3", "cret", "key="):
                    self.assertNotIn(secret, message)


class Effective(SynchronousTestCase):
    def test_describe(self) -> None:
        """The description has every variable as text, without credentials."""
        settings = Settings(
            backend_url="https://user:s3cret@h/@scope/x",
            backend_sse_path="/sse?key=s3cret",
            allowed_hosts=("a", "b"),
            reconnect_delay=0.5,
        )
        shown = settings.describe()
        self.assertEqual(list(shown), [variable.name for variable in VARIABLES])
        self.assertEqual(shown["BACKEND_URL"], "https://***@h/@scope/x")
        self.assertEqual(shown["BACKEND_SSE_PATH"], "/sse?***")
        self.assertEqual(shown["ALLOWED_HOSTS"], "a,b")
        self.assertEqual((shown["RECONNECT_DELAY"], shown["HOLD_TIMEOUT"]), ("0.5", "45"))
        self.assertEqual(settings.backend_url_redacted, "https://***@h/@scope/x")

    def test_defaults_round_trip(self) -> None:
        """The description of the defaults is the table's own text, and can be loaded again."""
        shown = Settings().describe()
        self.assertEqual(shown, {variable.name: variable.default for variable in VARIABLES})
        self.assertEqual(load({}, shown, None), Settings())

    def test_endpoint(self) -> None:
        """The endpoint is made of host and port, quoted, unless LISTEN gives it."""
        self.assertEqual(Settings().endpoint, "tcp:8001:interface=127.0.0.1:backlog=1024")
        self.assertEqual(load({"PROXY_HOST": "::1"}, {}, None).endpoint, r"tcp:8001:interface=\:\:1:backlog=1024")
        self.assertEqual(Settings(listen="unix:/run/x").endpoint, "unix:/run/x")

    def test_repr(self) -> None:
        """The settings in a traceback or a log show no credential either."""
        settings = load({"BACKEND_URL": "http://user:s3cret@h", "BACKEND_SSE_PATH": "/sse?s3cret"}, {}, None)
        self.assertNotIn("s3cret", repr(settings))
        self.assertIn("http://***@h", repr(settings))

    def test_frozen(self) -> None:
        """Settings do not change."""
        with self.assertRaises(attrs.exceptions.FrozenInstanceError):
            Settings().proxy_port = 1  # type: ignore[misc]
