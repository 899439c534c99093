"""Whose a session is: the credential that it belongs to, what the backend thinks of it, and its renewal."""

from __future__ import annotations

import hmac

from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire.headers import Headers, credential, end_to_end, is_renewal, standing


class Credentials:
    """The client's credential and the standing headers that go with it.

    A client renews its token from time to time. A message with a new one is passed on for the backend to judge; only
    what the backend has accepted owns the session.

    :param owner: digest of the credential.
    :param headers: the headers of the client's first request.
    """

    __slots__ = ("_is_refused", "_own", "_renewal", "challenge", "headers", "owner")

    def __init__(self, owner: bytes, headers: Headers) -> None:
        self.owner = owner
        self.headers = standing(end_to_end(headers))
        self._own = credential(headers)
        self.challenge: HTTPAnswer | None = None
        self._is_refused = False
        self._renewal: tuple[bytes, Headers, bytes] | None = None

    @property
    def for_link(self) -> Headers:
        """What the next link is opened with: a refused token is not worth another try if there is a new one."""
        return self._renewal[1] if self._is_refused and self._renewal is not None else self.headers

    def is_own(self, headers: Headers) -> bool:
        """Whether these headers show the credential that it belongs to."""
        return hmac.compare_digest(credential(headers), self._own)

    def seen(self, headers: Headers) -> None:
        """A message came with these end-to-end headers: the newest of its owner's hold."""
        newest = standing(headers)
        if newest is not self.headers and credential(headers) == self._own:
            self.headers = newest

    def challenged(self, challenge: HTTPAnswer) -> None:
        """The backend wants to see another credential."""
        self.challenge = challenge

    def take_challenge(self) -> HTTPAnswer | None:
        """A refusal that the client has not seen yet; it is shown once."""
        challenge, self.challenge = self.challenge, None
        self._is_refused = self._is_refused or (challenge is not None and challenge.status == 401)
        return challenge

    def may_renew(self, headers: Headers) -> bool:
        """Whether these headers may be the client's with a new token."""
        return is_renewal(self.headers, headers, asked_for=self._is_refused)

    def renew(self, owner: bytes, headers: Headers) -> None:
        """A message has come with a new token; it counts as soon as the backend has accepted it."""
        if owner != self.owner:
            self._renewal = (owner, standing(end_to_end(headers)), credential(headers))

    def accepted(self, headers: Headers) -> bool:
        """The backend has accepted something with these headers; tells whether that makes the new token count."""
        if not self._is_refused and self._renewal is None:
            return False
        shown = credential(headers)
        if shown == self._own:
            self._is_refused = False
        if self._renewal is None or shown != credential(self._renewal[1]):
            return False
        self.owner, self.headers, self._own = self._renewal
        self._renewal, self._is_refused = None, False
        return True
