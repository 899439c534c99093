"""The envelope of revision 2026-07-28: whose message it is, and whether its headers say what its body says."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import HeaderMismatch, InvalidParams, ProxyError, UnsupportedVersion
from mcp_proxy.wire.headers import Headers, end_to_end
from mcp_proxy.wire.modern import check, is_modern
from tests.support import messages, modern
from tests.support.messages import Json, encoded

MANY = settings(max_examples=150, deadline=None)
LEGACY = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
#: The methods with a name header, and the member of params that it repeats.
NAMED = (
    ("tools/call", "name"),
    ("prompts/get", "name"),
    ("resources/read", "uri"),
    ("tasks/get", "taskId"),
    ("tasks/update", "taskId"),
    ("tasks/cancel", "taskId"),
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


def checked(message: Json, headers: Headers | None = None) -> None:
    """Check a message under these headers, or under those that belong to it."""
    check(jsonrpc.parse(encoded(message)), modern.headers_of(message) if headers is None else headers)


def without(message: Json, name: bytes) -> Headers:
    """The headers of a message but for one."""
    return tuple(header for header in modern.headers_of(message) if header[0] != name)


def with_meta(meta: Any, method: str = "tools/list") -> Json:
    """A request with this ``_meta``."""
    return messages.request(method, 1, {"_meta": meta})


class CheckCase(SynchronousTestCase):
    def refused(self, kind: type[ProxyError], message: Json, headers: Headers | None = None) -> ProxyError:
        """The message is refused as this kind of error and none of another; return it."""
        error = self.assertRaises(ProxyError, checked, message, headers)
        self.assertIs(type(error), kind, error)
        refused: ProxyError = error
        return refused


class Meta(CheckCase):
    def test_complete(self) -> None:
        """A request with both required keys passes, with or without all the others."""
        checked(modern.request("tools/list"))
        checked(modern.request("tools/list", **{"io.modelcontextprotocol/clientInfo": messages.CLIENT_INFO}))
        checked(modern.request("tools/list", progressToken=1, traceparent="00-1-1-00", **{"com.example/x": None}))

    def test_incomplete(self) -> None:
        """Without revision or capabilities, or with either of a wrong kind, it is -32602 with HTTP status 400."""
        good = modern.meta()
        for meta in (
            *(None, [], "2026-07-28", 1, {}),
            *({modern.META_VERSION: "2026-07-28"}, {modern.META_CAPABILITIES: {}}),
            *({**good, modern.META_VERSION: value} for value in (None, 20260728, [], {}, True)),
            *({**good, modern.META_CAPABILITIES: value} for value in (None, "x", 1, [], False)),
        ):
            message = with_meta(meta)
            headers = (modern.VERSION_HEADER, (b"mcp-method", b"tools/list"))
            error = self.refused(InvalidParams, message, headers)
            self.assertEqual((error.answer.status, error.answer.code), (400, -32602), meta)
        self.refused(InvalidParams, messages.request("tools/list"))

    def test_names_what_lacks(self) -> None:
        """The error names the key."""
        for key in (modern.META_VERSION, modern.META_CAPABILITIES):
            meta = {name: value for name, value in modern.meta().items() if name != key}
            error = self.refused(InvalidParams, with_meta(meta), (modern.VERSION_HEADER, (b"mcp-method", b"x")))
            self.assertIn(key, error.message)


class Equality(CheckCase):
    def test_all_methods(self) -> None:
        """Headers that repeat the body pass, whatever the method, and no name is asked where there is none."""
        for method, member in NAMED:
            checked(modern.request(method, 1, {member: "some-name"}))
        for method in ("tools/list", "server/discover", "subscriptions/listen", "completion/complete", "x/y"):
            checked(modern.request(method, 1, {"name": "n", "uri": "u", "taskId": "t"}))

    def test_missing(self) -> None:
        """A required header that lacks is -32020 with HTTP status 400."""
        for method, member in NAMED:
            message = modern.request(method, 1, {member: "some-name"})
            for name, _ in modern.headers_of(message):
                error = self.refused(HeaderMismatch, message, without(message, name))
                self.assertEqual((error.answer.status, error.answer.code), (400, -32020), name)

    def test_different(self) -> None:
        """A header that says something else is refused; values compare with case, and whole."""
        for method, member in NAMED:
            message = modern.request(method, 1, {member: "some-name"})
            for name, value in modern.headers_of(message):
                for other in (b"", b"x", value.swapcase(), value + b"x", value[:-1], value + b"," + value):
                    if other != value:
                        self.refused(HeaderMismatch, message, (*without(message, name), (name, other)))

    def test_older_version(self) -> None:
        """A revision in the header that differs from the one in the body is refused for that."""
        message = modern.request("tools/list")
        for version in (b"2025-11-25", b"2026-07-27", b"2027-01-01"):
            headers = (*without(message, b"mcp-protocol-version"), (b"mcp-protocol-version", version))
            self.refused(HeaderMismatch, message, headers)

    def test_duplicate(self) -> None:
        """A header that comes twice is refused, also where both say the same, and in whatever case it is spelled."""
        message = modern.call()
        for name, value in modern.headers_of(message):
            for again in ((name, value), (name.title(), value), (name.upper(), b"other")):
                self.refused(HeaderMismatch, message, (*modern.headers_of(message), again))

    def test_header_case(self) -> None:
        """Names of headers compare without case."""
        message = modern.call()
        checked(message, tuple((name.upper(), value) for name, value in modern.headers_of(message)))
        checked(message, tuple((name.title(), value) for name, value in modern.headers_of(message)))

    def test_blanks(self) -> None:
        """Blanks and tabs around a value do not belong to it; within they do."""
        message = modern.call(name="a  b")
        checked(message, tuple((name, b" \t " + value + b"\t ") for name, value in modern.headers_of(message)))
        self.refused(HeaderMismatch, message, (*without(message, b"mcp-name"), (b"mcp-name", b"a b")))

    def test_no_name_in_body(self) -> None:
        """Where the body has no name that is text, there is nothing to repeat; that is for the backend to judge."""
        headers = (modern.VERSION_HEADER, (b"mcp-method", b"tools/call"))
        for params in ({}, {"name": 1}, {"name": None}, {"name": ["x"]}):
            checked(modern.request("tools/call", 1, params), headers)

    def test_parameters(self) -> None:
        """Headers of tool parameters are none of our business: any, none, several, and they cross as they are."""
        message = modern.call()
        more = ((b"Mcp-Param-Region", b"us-west1"), (b"mcp-param-region", b"=?base64?broken"), (b"Mcp-Param-", b""))
        headers = (*modern.headers_of(message), *more)
        checked(message, headers)
        self.assertEqual(end_to_end(headers), headers)


class Encoded(CheckCase):
    def under(self, name: str, value: bytes) -> None:
        """Check a call of this tool under this name header."""
        message = modern.call(name=name)
        checked(message, (*without(message, b"mcp-name"), (b"mcp-name", value)))

    def refused_under(self, name: str, value: bytes) -> None:
        """The same is refused."""
        error = self.assertRaises(HeaderMismatch, self.under, name, value)
        self.assertEqual((error.answer.status, error.answer.code), (400, -32020))

    def test_text(self) -> None:
        """Base64 of UTF-8 stands for the text, also where plain text would do."""
        for name in ("echo", "größe", "日本語", "🔧", " edge ", "two\nlines", "file:///a b/c?d=%20", ""):
            self.under(name, b"=?base64?" + b64encode(name.encode()) + b"?=")

    def test_like_the_marker(self) -> None:
        """A name that looks encoded must be encoded: plain, it stands for something else."""
        name = "=?base64?ZWNobw==?="
        self.under(name, b"=?base64?" + b64encode(name.encode()) + b"?=")
        self.refused_under(name, name.encode())
        self.under("=?base64?ZWNobw==", b"=?base64?ZWNobw==")  # without the end it is plain text
        self.under("ZWNobw==?=", b"ZWNobw==?=")

    def test_broken(self) -> None:
        """Bad padding, other alphabets, blanks within and what is no UTF-8 are refused."""
        for value in (b"ZWNobw", b"ZWNobw=", b"ZWNobw===", b"=ZWNobw=", b"ZWNo bw==", b"ZWNo\tbw==", b"Z-_obw==", b"!"):
            self.refused_under("echo", b"=?base64?" + value + b"?=")
        for value in (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80"):
            self.refused_under("echo", b"=?base64?" + b64encode(value) + b"?=")
        self.refused_under("echo", b"=?base64?\xe9?=")

    def test_different(self) -> None:
        """What decodes to another name is refused."""
        self.refused_under("echo", b"=?base64?" + b64encode(b"Echo") + b"?=")
        self.refused_under("echo", b"=?base64?" + b64encode(b" echo") + b"?=")

    def test_bare_bytes(self) -> None:
        """Text beyond ASCII as bare bytes does not stand for itself."""
        self.refused_under("größe", "größe".encode())

    def test_only_names(self) -> None:
        """Revision and method are never encoded."""
        message = modern.request("tools/list")
        for name, value in modern.headers_of(message):
            encoded_value = b"=?base64?" + b64encode(value) + b"?="
            self.refused(HeaderMismatch, message, (*without(message, name), (name, encoded_value)))

    @MANY
    @given(TEXT)
    def test_any_name(self, name: str) -> None:
        """Any name can be told in a header."""
        self.under(name, modern.encoded_name(name))

    @MANY
    @given(TEXT, TEXT)
    def test_any_other_name(self, name: str, other: str) -> None:
        """Another name passes for none."""
        if name != other:
            self.refused_under(name, modern.encoded_name(other))

    @MANY
    @given(st.binary(max_size=60))
    def test_any_bytes(self, value: bytes) -> None:
        """Whatever a header holds, it is accepted or refused, and nothing else."""
        for sent in (value, b"=?base64?" + value + b"?="):
            try:
                self.under("echo", sent)
            except HeaderMismatch:
                continue
            self.assertTrue(sent.strip(b" \t") == b"echo" or b"ZWNobw==" in sent, sent)


class Version(CheckCase):
    def versioned(self, version: str) -> Json:
        """A request of this revision, whose header is to say the same."""
        return with_meta({**modern.meta(), modern.META_VERSION: version})

    def test_unknown(self) -> None:
        """A revision that is not spoken in this way is -32022 with HTTP status 400, and told is what is spoken."""
        for version in ("2099-01-01", "2026-07-29", "DRAFT-2026-v1", "x" * 100, *LEGACY):
            error = self.refused(UnsupportedVersion, self.versioned(version))
            self.assertEqual((error.answer.status, error.answer.code), (400, -32022))
            self.assertEqual(error.data, {"supported": ["2026-07-28"], "requested": version})

    def test_order(self) -> None:
        """First the shape of ``_meta`` counts, then the headers, then the revision."""
        unknown = {**modern.meta(), modern.META_VERSION: "2099-01-01"}
        bare = {modern.META_VERSION: "2099-01-01"}
        self.refused(InvalidParams, with_meta(bare), ())
        self.refused(InvalidParams, with_meta({modern.META_CAPABILITIES: {}}), ((b"mcp-method", b"other"),))
        self.refused(HeaderMismatch, with_meta(unknown), ())
        self.refused(HeaderMismatch, with_meta(unknown), (modern.VERSION_HEADER, (b"mcp-method", b"tools/list")))
        named = messages.request("tools/call", 1, {"name": "echo", "_meta": unknown})
        self.refused(HeaderMismatch, named, without(named, b"mcp-name"))
        self.refused(UnsupportedVersion, named)


class IsModern(SynchronousTestCase):
    def decide(self, message: Any, *headers: tuple[bytes, bytes]) -> bool:
        """Whose message is it?"""
        return is_modern(jsonrpc.parse(message if isinstance(message, bytes) else encoded(message)), headers)

    def test_body(self) -> None:
        """A body that tells its revision is modern, whatever the headers say, a session's included."""
        for headers in (
            (),
            (modern.VERSION_HEADER,),
            ((b"mcp-protocol-version", b"2025-11-25"),),
            ((b"mcp-session-id", b"abc"), (b"mcp-protocol-version", b"2025-11-25")),
            ((b"Mcp-Session-Id", b"abc"),),
        ):
            self.assertTrue(self.decide(modern.request("tools/list"), *headers), headers)
        self.assertTrue(self.decide(with_meta({modern.META_VERSION: None})))
        self.assertTrue(self.decide(with_meta({modern.META_VERSION: "2025-11-25"})))
        self.assertTrue(self.decide(modern.notification("notifications/cancelled", {"requestId": 1})))

    def test_header(self) -> None:
        """A header with a revision that no handshake agrees on makes a message modern where there is no session."""
        for version in (b"2026-07-28", b" 2026-07-28 ", b"2099-01-01", b"nonsense"):
            for name in (b"mcp-protocol-version", b"MCP-Protocol-Version"):
                self.assertTrue(self.decide(messages.request("tools/list"), (name, version)), version)
                self.assertFalse(
                    self.decide(messages.request("tools/list"), (name, version), (b"MCP-Session-Id", b"s"))
                )

    def test_legacy(self) -> None:
        """Nothing said, nothing meant: a message without either is of a revision with a handshake."""
        for message in (
            *(messages.initialize(), messages.request("tools/list"), messages.result(1, {}), messages.error(1, -1)),
            messages.notification("notifications/initialized"),
        ):
            self.assertFalse(self.decide(message))
            self.assertFalse(self.decide(message, (b"mcp-protocol-version", b"")))
            for version in LEGACY:
                self.assertFalse(self.decide(message, (b"mcp-protocol-version", version.encode())), version)

    def test_elsewhere(self) -> None:
        """The key counts in ``_meta`` only: an argument or a name of that text makes nothing modern."""
        for params in (
            {"name": "x", "arguments": {modern.META_VERSION: "2026-07-28"}},
            {"name": modern.META_VERSION},
            {"_meta": {"x": {modern.META_VERSION: "2026-07-28"}}},
            {"_meta": modern.META_VERSION},
            {"_meta": [modern.META_VERSION]},
            {modern.META_VERSION: "2026-07-28"},
        ):
            self.assertFalse(self.decide(messages.request("tools/call", 1, params)), params)
        self.assertFalse(self.decide(messages.result(1, {"x": modern.META_VERSION})))

    @MANY
    @given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=8), max_size=4))
    def test_each_for_itself(self, meta: Json) -> None:
        """What decides is the one key, whatever else is there."""
        self.assertFalse(self.decide(with_meta(meta)))
        self.assertTrue(self.decide(with_meta({**meta, modern.META_VERSION: "2026-07-28"})))
