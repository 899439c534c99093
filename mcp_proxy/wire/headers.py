"""Which headers of a client go on to the backend.

End-to-end headers pass; what belongs to one connection, to one message's framing, or to the proxy's own
conversation with the client does not (RFC 9110 §7.6.1).
"""

from __future__ import annotations

from collections.abc import Iterable

Header = tuple[bytes, bytes]
Headers = tuple[Header, ...]

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
_OF_OUR_SIDE = frozenset((b"origin", b"referer", b"last-event-id", b"mcp-session-id", b"mcp-protocol-version"))
_DROPPED = _HOP_BY_HOP | _OF_THE_MESSAGE | _OF_OUR_SIDE

#: Belong to one request, so a request that the proxy makes by itself does not repeat them.
_OF_ONE_REQUEST = frozenset((b"traceparent", b"tracestate", b"baggage", b"x-request-id", b"idempotency-key"))

#: What a client proves with who it is.
CREDENTIALS = (b"authorization", b"x-api-key")


def end_to_end(headers: Iterable[Header]) -> Headers:
    """The headers that cross, in order; names compare without case, ``Connection`` may name more to drop."""
    headers = tuple(headers)
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    return tuple(
        (name, value)
        for name, value in headers
        if name.lower() not in _DROPPED and name.lower() not in named and not name.lower().startswith(b"sec-")
    )


def standing(headers: Iterable[Header]) -> Headers:
    """Those that hold for a whole session and so go with what the proxy sends on its own."""
    return tuple((name, value) for name, value in headers if name.lower() not in _OF_ONE_REQUEST)


def credential(headers: Iterable[Header]) -> bytes:
    """What identifies the client, as bytes to be digested: its credential headers, or nothing for an anonymous one."""
    found = sorted((name.lower(), value) for name, value in headers if name.lower() in CREDENTIALS)
    return b"".join(b"%d:%s=%d:%s;" % (len(name), name, len(value), value) for name, value in found)
