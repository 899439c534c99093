"""Which headers of a client go on to the backend.

End-to-end headers pass; what belongs to one connection, to one message's framing, or to the proxy's own
conversation with the client does not (RFC 9110 §7.6.1).
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from mcp_proxy.wire.revisions import LEGACY

Header = tuple[bytes, bytes]
Headers = tuple[Header, ...]
T = TypeVar("T")


class Fields(tuple[Header, ...]):
    """The headers of a head, and what was made of them: the next request on a connection often has the very same."""

    known: dict[Any, Any] | None = None


def once(headers: Headers, work: Callable[[Headers], T]) -> T:
    """What a function makes of headers that depends on nothing else; for the same :class:`Fields` it is asked once."""
    if type(headers) is not Fields:
        return work(headers)
    try:
        return headers.known[work]  # type: ignore[index,no-any-return]
    except (KeyError, TypeError):  # TypeError: nothing is known yet
        made = work(headers)
        if headers.known is None:
            headers.known = {}
        headers.known[work] = made
        return made


def size_of(headers: Headers) -> int:
    """How many bytes they have."""
    return sum(len(name) + len(value) for name, value in headers)


def first_of(headers: Headers) -> dict[bytes, bytes]:
    """The values by their names; of several the first."""
    return once(headers, _first_of)


def _first_of(headers: Headers) -> dict[bytes, bytes]:
    return dict(reversed(headers))


_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
#: Set anew for each request to the backend, because they describe that request.
_OF_THE_MESSAGE = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"pragma",
        b"range",
    )
)
#: Between the client and the proxy: the guard has judged Origin, and sessions and events have ids of our own.
_OF_OUR_SIDE = frozenset((b"origin", b"referer", b"last-event-id", b"mcp-session-id"))
#: Of a revision with a handshake, which the proxy makes itself; a later one belongs to the request.
_AGREED_VERSIONS = frozenset(version.encode() for version in LEGACY)
_DROPPED = _HOP_BY_HOP | _OF_THE_MESSAGE | _OF_OUR_SIDE

#: Belong to one request, so a request that the proxy makes by itself does not repeat them.
_OF_ONE_REQUEST = frozenset((b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"idempotency-key"))

#: The key that the proxy itself may want to see; the backend never sees it.
OWN_KEY = b"x-proxy-key"
#: What a client proves with who it is.
CREDENTIALS = frozenset((b"authorization", b"x-api-key", OWN_KEY))


class _Fate(Enum):
    """What becomes of a header."""

    CROSSES = 0
    DROPPED = 1
    CONNECTION = 2  # dropped, and may name more
    VERSION = 3  # crosses if it is a revision without handshake


@lru_cache(maxsize=1024)
def _fate(name: bytes) -> _Fate:
    name = name.lower()
    if name == b"connection":
        return _Fate.CONNECTION
    if name == b"mcp-protocol-version":
        return _Fate.VERSION
    return _Fate.DROPPED if name in _DROPPED or name.startswith(b"sec-") else _Fate.CROSSES


def end_to_end(headers: Headers) -> Headers:
    """The headers that cross, in order; names compare without case, ``Connection`` may name more to drop."""
    return once(headers, _crossing)


def _crossing(headers: Headers) -> Headers:
    crossing: list[Header] = []
    named: set[bytes] = set()
    for header in headers:
        fate = _fate(header[0])
        if fate is _Fate.CROSSES or (fate is _Fate.VERSION and header[1].strip() not in _AGREED_VERSIONS):
            crossing.append(header)
        elif fate is _Fate.CONNECTION:
            named.update(token.strip().lower() for token in header[1].split(b","))
    if named:
        crossing = [header for header in crossing if header[0].lower() not in named]
    return Fields(crossing)


def standing(headers: Headers) -> Headers:
    """Those that hold for a whole session and so go with what the proxy sends on its own."""
    return once(headers, _standing)


def _standing(headers: Headers) -> Headers:
    return Fields(header for header in headers if header[0].lower() not in _OF_ONE_REQUEST)


def without_own_key(headers: Headers) -> Headers:
    """What of a client's headers, with names in lower case, the backend may see."""
    return once(headers, _without_own_key)


def _without_own_key(headers: Headers) -> Headers:
    for name, _ in headers:
        if name == OWN_KEY:
            return tuple(header for header in headers if header[0] != OWN_KEY)
    return headers


def credential(headers: Headers) -> bytes:
    """What identifies the client, as bytes to be digested: its credential headers, or nothing for an anonymous one."""
    return once(headers, _credential)


def _credential(headers: Headers) -> bytes:
    found = [(name.lower(), value) for name, value in headers if name.lower() in CREDENTIALS]
    found.sort()
    return b"".join(b"%d:%s=%d:%s;" % (len(name), name, len(value), value) for name, value in found)


def is_renewal(old: Headers, new: Headers, *, asked_for: bool) -> bool:
    """Whether other credentials can be those of the same client: a bearer token that replaces another.

    Nothing here proves it: whoever asks must still let the backend judge the new token.

    :param asked_for: the backend has refused the old token, so a new one is what the client was told to bring. If
        it has not, both must be JWTs that name the same issuer and subject.
    """
    before, after = _bearer(old), _bearer(new)
    if before is None or after is None:
        return False
    if any(_value(old, name) != _value(new, name) for name in (b"x-api-key", OWN_KEY)):
        return False
    claimed = _subject(after)
    return asked_for or (claimed is not None and claimed == _subject(before))


def _value(headers: Headers, name: bytes) -> bytes | None:
    return next((value for own, value in headers if own.lower() == name), None)


def _bearer(headers: Headers) -> bytes | None:
    scheme, _, token = (_value(headers, b"authorization") or b"").partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None


def _subject(token: bytes) -> tuple[str, str] | None:
    """Issuer and subject that a JWT claims; None for any other token."""
    parts = token.split(b".")
    try:
        claims = msgspec.json.decode(urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
        issuer, subject = claims["iss"], claims["sub"]
    except (IndexError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return (issuer, subject) if len(parts) == 3 and isinstance(issuer, str) and isinstance(subject, str) else None
