"""Whose a session is: the owner changes only by the backend's word, and the link speaks for the owner."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.credentials import Credentials
from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire.headers import Headers

UNAUTHORIZED, FORBIDDEN = (HTTPAnswer(status, (), b"") for status in (401, 403))


def bearer(token: str, *more: tuple[bytes, bytes]) -> Headers:
    """The headers of a client with this token."""
    return ((b"authorization", b"Bearer " + token.encode()), *more)


OLD, NEW, NEWER = bearer("old"), bearer("new"), bearer("newer")


def challenged(answer: HTTPAnswer = UNAUTHORIZED) -> Credentials:
    """Credentials that the backend has refused, and whose client knows."""
    credentials = Credentials(b"old", OLD)
    credentials.challenged(answer)
    credentials.take_challenge()
    return credentials


class Standing(SynchronousTestCase):
    def test_kept(self) -> None:
        """Of the first request the headers are kept that hold for the session, and no other."""
        headers = bearer("old", (b"X-Tenant", b"t"), (b"Host", b"h"), (b"traceparent", b"1"), (b"origin", b"o"))
        self.assertEqual(Credentials(b"o", headers).headers, bearer("old", (b"X-Tenant", b"t")))

    def test_newest(self) -> None:
        """The newest headers of the owner's hold, without what belongs to one request."""
        credentials = Credentials(b"o", bearer("old", (b"x-tenant", b"1")))
        credentials.seen(bearer("old", (b"x-tenant", b"2"), (b"x-request-id", b"9")))
        self.assertEqual(credentials.headers, bearer("old", (b"x-tenant", b"2")))
        self.assertEqual(credentials.for_link, credentials.headers)

    def test_others(self) -> None:
        """Headers under another credential, or none, do not become the owner's."""
        credentials = Credentials(b"o", OLD)
        for headers in (NEW, (), (*OLD, (b"x-api-key", b"k"))):
            credentials.seen(headers)
            self.assertEqual(credentials.headers, OLD)


class Challenges(SynchronousTestCase):
    def test_shown_once(self) -> None:
        """A refusal is shown once, and the newest one counts."""
        credentials = Credentials(b"o", OLD)
        self.assertIsNone(credentials.take_challenge())
        credentials.challenged(UNAUTHORIZED)
        credentials.challenged(FORBIDDEN)
        self.assertEqual([credentials.take_challenge(), credentials.take_challenge()], [FORBIDDEN, None])

    def test_what_opens_renewal(self) -> None:
        """Only a client that was shown a 401 may bring any token; a 403, or one not yet shown, asks for none."""
        unseen = Credentials(b"o", OLD)
        unseen.challenged(UNAUTHORIZED)
        self.assertFalse(unseen.may_renew(NEW))
        self.assertFalse(challenged(FORBIDDEN).may_renew(NEW))
        self.assertTrue(challenged().may_renew(NEW))

    def test_only_tokens(self) -> None:
        """Also then neither another kind of credential nor another API key is a new token."""
        for headers in ((), ((b"authorization", b"Basic bmV3"),), (*NEW, (b"x-api-key", b"k"))):
            self.assertFalse(challenged().may_renew(headers), headers)


class Renewal(SynchronousTestCase):
    def test_accepted(self) -> None:
        """A new token counts from the moment when the backend has accepted it: owner, headers and link change."""
        credentials = challenged()
        credentials.renew(b"new", (*NEW, (b"traceparent", b"1")))
        self.assertEqual((credentials.owner, credentials.headers), (b"old", OLD))
        self.assertTrue(credentials.accepted(NEW))
        self.assertEqual((credentials.owner, credentials.headers, credentials.for_link), (b"new", NEW, NEW))
        self.assertFalse(credentials.may_renew(NEWER), "nobody has asked for yet another one")

    def test_accepted_once(self) -> None:
        """That it counts is told once."""
        credentials = challenged()
        credentials.renew(b"new", NEW)
        self.assertEqual([credentials.accepted(NEW), credentials.accepted(NEW)], [True, False])

    def test_old_accepted(self) -> None:
        """That the backend accepts something under the old token, or another, makes nobody owner."""
        credentials = challenged()
        self.assertFalse(credentials.accepted(OLD))
        credentials.renew(b"new", NEW)
        for headers in (OLD, NEWER, ()):
            self.assertFalse(credentials.accepted(headers))
        self.assertEqual(credentials.owner, b"old")

    def test_own_token(self) -> None:
        """The owner's own token is no renewal."""
        credentials = challenged()
        credentials.renew(b"old", OLD)
        self.assertFalse(credentials.accepted(OLD))
        self.assertEqual((credentials.owner, credentials.for_link), (b"old", OLD))

    def test_link(self) -> None:
        """A link is opened with a new token only if the old one was refused."""
        unasked = Credentials(b"old", OLD)
        unasked.renew(b"new", NEW)
        self.assertEqual(unasked.for_link, OLD)
        asked = challenged()
        self.assertEqual(asked.for_link, OLD, "there is nothing better yet")
        asked.renew(b"new", NEW)
        self.assertEqual(asked.for_link, NEW)
        asked.renew(b"newer", NEWER)
        self.assertEqual(asked.for_link, NEWER)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(("renew", "accepted", "seen", "refused")), st.sampled_from("abc"))))
    def test_owner(self, moves: list[tuple[str, str]]) -> None:
        """Whatever comes, the owner is who was last accepted of those that were the newest token at that time."""
        credentials, owner, newest = Credentials(b"a", bearer("a")), "a", ""
        for move, who in moves:
            if move == "renew":
                credentials.renew(who.encode(), bearer(who))
                newest = newest if who == owner else who
            elif move == "seen":
                credentials.seen(bearer(who))
            elif move == "refused":
                credentials.challenged(UNAUTHORIZED)
                credentials.take_challenge()
            else:
                self.assertEqual(credentials.accepted(bearer(who)), who == newest)
                owner, newest = (who, "") if who == newest else (owner, newest)
            self.assertEqual((credentials.owner, credentials.headers), (owner.encode(), bearer(owner)))
