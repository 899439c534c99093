"""Headers: which of them cross to the backend, which stand for a session, and who a client is."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire.headers import (
    Fields,
    Header,
    Headers,
    credential,
    end_to_end,
    is_renewal,
    once,
    standing,
    without_own_key,
)

MANY = settings(max_examples=150, deadline=None)
NAMES = st.sampled_from(
    (
        *(b"Connection", b"connection", b"Keep-Alive", b"TE", b"Upgrade", b"Host", b"Content-Length", b"X-API-Key"),
        *(b"Authorization", b"X-Custom", b"x-other", b"Sec-Fetch-Mode", b"Origin", b"Cookie", b"Traceparent"),
    )
)
VALUES = st.sampled_from((b"", b"close", b"X-Custom", b"x-other, AUTHORIZATION", b" , x-custom ,", b"connection", b"1"))
LISTS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


def names(headers: Headers) -> list[bytes]:
    """The names alone."""
    return [name for name, _ in headers]


class EndToEnd(SynchronousTestCase):
    def test_pass(self) -> None:
        """Credentials, cookies and headers that nobody here knows cross as they are, in order, also when repeated."""
        headers = (
            (b"X-API-Key", b"k"),
            (b"Authorization", b"Bearer t"),
            (b"X-Custom", b"1"),
            (b"x-custom", b"2"),
            (b"Cookie", b"a=b"),
            (b"User-Agent", b"c/1"),
            (b"Traceparent", b"00"),
            (b"X-Forwarded-For", b"10.0.0.1"),
        )
        self.assertEqual(end_to_end(headers), headers)

    def test_hop_by_hop(self) -> None:
        """What belongs to one connection does not cross, in whatever case it is spelled."""
        for name in (
            *(b"Connection", b"Keep-Alive", b"Proxy-Authenticate", b"Proxy-Authorization", b"Proxy-Connection"),
            *(b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade"),
        ):
            for spelled in (name, name.lower(), name.upper()):
                self.assertEqual(end_to_end([(spelled, b"x"), (b"X-Custom", b"1")]), ((b"X-Custom", b"1"),), spelled)

    def test_of_the_message(self) -> None:
        """What describes the client's own message or its view of the proxy does not cross."""
        for name in (
            *(b"Host", b"Content-Length", b"Content-Type", b"Content-Encoding", b"Accept", b"Accept-Encoding"),
            *(b"Cache-Control", b"Pragma", b"Range", b"Expect", b"Origin", b"Referer", b"Last-Event-ID"),
            *(b"Mcp-Session-Id", b"Sec-Fetch-Site", b"sec-ch-ua"),
        ):
            self.assertEqual(end_to_end([(name, b"x")]), (), name)

    def test_revision(self) -> None:
        """A revision that a handshake agreed on is told by the proxy itself; any other belongs to the request."""
        for version, crosses in ((b"2024-11-05", False), (b"2025-11-25", False), (b"2026-07-28", True), (b"x", True)):
            header = (b"MCP-Protocol-Version", version)
            self.assertEqual(end_to_end([header]), (header,) if crosses else (), version)

    def test_connection_names_more(self) -> None:
        """What Connection names does not cross, wherever Connection stands and however often."""
        headers = (
            (b"X-One", b"1"),
            (b"connection", b"close, x-ONE ,X-Two"),
            (b"X-Two", b"2"),
            (b"X-Three", b"3"),
            (b"CONNECTION", b"x-four"),
            (b"x-Four", b"4"),
        )
        self.assertEqual(end_to_end(headers), ((b"X-Three", b"3"),))

    def test_any_iterable(self) -> None:
        """Headers may come from an iterator."""
        self.assertEqual(end_to_end(iter([(b"X-One", b"1"), (b"Connection", b"x-one")])), ())

    @MANY
    @given(LISTS)
    def test_idempotent(self, headers: list[Header]) -> None:
        """What has crossed once crosses again unchanged, and nothing is added or reordered."""
        once = end_to_end(headers)
        self.assertEqual(end_to_end(once), once)
        rest = iter(headers)
        self.assertTrue(all(header in rest for header in once), "not a subsequence")


class Standing(SynchronousTestCase):
    def test_standing(self) -> None:
        """What belongs to one request does not go with what the proxy sends by itself; all else does."""
        kept: Headers = ((b"Authorization", b"t"), (b"X-Custom", b"1"))
        dropped = (b"Traceparent", b"tracestate", b"Baggage", b"X-Request-ID", b"Idempotency-Key")
        self.assertEqual(standing([*kept[:1], *((name, b"x") for name in dropped), *kept[1:]]), kept)


class Credential(SynchronousTestCase):
    def test_anonymous(self) -> None:
        """A client without credentials has none, whatever else it sends."""
        self.assertEqual(credential([]), b"")
        self.assertEqual(credential([(b"Cookie", b"a"), (b"X-Custom", b"1")]), b"")

    def test_differs(self) -> None:
        """Other values, the same value in another header, and both instead of one are other clients."""
        different: list[Headers] = [
            (),
            ((b"Authorization", b""),),
            ((b"Authorization", b"a"),),
            ((b"Authorization", b"A"),),
            ((b"X-API-Key", b"a"),),
            ((b"Authorization", b"a"), (b"X-API-Key", b"a")),
            ((b"Authorization", b"a"), (b"Authorization", b"a")),
        ]
        self.assertEqual(len({credential(headers) for headers in different}), len(different))

    def test_same(self) -> None:
        """The case of names, their order, and other headers make no other client."""
        first = credential([(b"Authorization", b"a"), (b"X-API-Key", b"b"), (b"X-Custom", b"1")])
        self.assertEqual(credential([(b"x-api-key", b"b"), (b"AUTHORIZATION", b"a")]), first)

    @MANY
    @given(
        *2
        * (
            st.lists(
                st.tuples(
                    st.sampled_from((b"authorization", b"x-api-key")),
                    st.text("ab0123:;=-", max_size=12).map(str.encode)
                    | st.sampled_from((b"a;9:x-api-key=1:b", b"1:a;13:authorization=1:b")),
                ),
                max_size=3,
            ),
        )
    )
    def test_not_by_concatenation(self, one: list[Header], other: list[Header]) -> None:
        """Two clients have the same credential only if their credential headers are the same."""
        self.assertEqual(credential(one) == credential(other), sorted(one) == sorted(other))

    def test_not_by_crafted_value(self) -> None:
        """No value of one header looks like a value and another header."""
        both = credential([(b"authorization", b"a"), (b"x-api-key", b"b")])
        for crafted in (b"a;9:x-api-key=1:b", b"a;9:x-api-key=1:b;", b"a9:x-api-key=1:b"):
            self.assertNotEqual(credential([(b"authorization", crafted)]), both)


class Renewal(SynchronousTestCase):
    def bearer(self, token: bytes) -> Headers:
        """Headers with this token."""
        return ((b"Authorization", b"Bearer " + token),)

    def jwt(self, signature: bytes = b"s", **claims: object) -> Headers:
        """Headers with a token that claims this."""
        return self.bearer(b"h." + urlsafe_b64encode(msgspec.json.encode(claims)).rstrip(b"=") + b"." + signature)

    def test_same_subject(self) -> None:
        """A token of the same issuer for the same subject may replace one that still holds."""
        self.assertTrue(
            is_renewal(self.jwt(iss="i", sub="s", exp=1), self.jwt(b"t", iss="i", sub="s"), asked_for=False)
        )

    def test_other_subject(self) -> None:
        """A token for somebody else, of another issuer, or of nobody does not replace one that still holds."""
        old = self.jwt(iss="i", sub="s")
        for new in (self.jwt(iss="i", sub="x"), self.jwt(iss="x", sub="s"), self.jwt(sub="s"), self.jwt(iss=1, sub=2)):
            self.assertFalse(is_renewal(old, new, asked_for=False))
        nobody = self.jwt(name="n")
        self.assertFalse(is_renewal(nobody, nobody, asked_for=False))

    def test_asked_for(self) -> None:
        """Once the backend has refused a token any other bearer token may replace it, but nothing else may."""
        old = self.bearer(b"opaque")
        self.assertTrue(is_renewal(old, self.bearer(b"other"), asked_for=True))
        self.assertFalse(is_renewal(old, self.bearer(b"other"), asked_for=False))
        for new in (
            (),
            ((b"Authorization", b"Basic x"),),
            self.bearer(b""),
            (*self.bearer(b"o"), (b"X-API-Key", b"k")),
        ):
            self.assertFalse(is_renewal(old, new, asked_for=True), new)

    def test_garbage(self) -> None:
        """A token that only looks like a JWT is an opaque one."""
        old = self.jwt(iss="i", sub="s")
        for payload in (b"", b"bbbb", b"!", b"\xff", urlsafe_b64encode(b"[]"), urlsafe_b64encode(b"null")):
            self.assertFalse(is_renewal(old, self.bearer(b"h." + payload + b".s"), asked_for=False), payload)

    def test_bottomless_token(self) -> None:
        """A token whose claims are nested without end is an opaque one."""
        nest = self.bearer(b"h." + urlsafe_b64encode(b"[" * 9000) + b".s")
        self.assertFalse(is_renewal(self.jwt(iss="i", sub="s"), nest, asked_for=False))


class Once(SynchronousTestCase):
    def test_once(self) -> None:
        """A function is asked once for the same headers, and each time for any other tuple."""
        asked: list[Headers] = []

        def count(headers: Headers) -> int:
            asked.append(headers)
            return len(headers)

        fields = Fields(((b"a", b"b"),))
        self.assertEqual([once(fields, count), once(fields, count), once(fields, len)], [1, 1, 1])
        self.assertEqual(len(asked), 1)
        plain = tuple(fields)
        self.assertEqual([once(plain, count), once(plain, count)], [1, 1])
        self.assertEqual(len(asked), 3)

    def test_same_value(self) -> None:
        """It makes no difference to anybody else."""
        headers = ((b"authorization", b"x"), (b"traceparent", b"y"), (b"accept", b"z"))
        fields = Fields(headers)
        self.assertEqual((fields, hash(fields)), (headers, hash(headers)))
        for work in (end_to_end, standing, credential, without_own_key):
            self.assertEqual((work(fields), work(fields)), (work(headers), work(headers)))
