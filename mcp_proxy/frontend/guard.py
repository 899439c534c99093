"""Who may ask at all: Origin and Host of every request, and what kind of body a message may come in.

A page in a browser can reach a server on this machine. Its Origin, which it cannot forge, or the name under which
it found us give it away (DNS rebinding; MCP specification, "Transports", security warning).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address

from attrs import field, frozen

from mcp_proxy.frontend.stream import ClientRequest
from mcp_proxy.wire.errors import (
    HostRefused,
    KeyWanted,
    LengthRequired,
    NotAcceptable,
    OnlyLocal,
    OriginRefused,
    TokenWanted,
    UnsupportedMediaType,
)
from mcp_proxy.wire.headers import OWN_KEY, Headers, once

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
ANY = "*"
#: What another proxy adds: whoever has sent the request is not who has connected.
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
#: What operators and their machines ask, by the one spelling of each; it needs no key and is not counted.
FOR_OPERATORS = frozenset(("/health", "/ready", "/metrics", "/"))
#: What pages of other origins may see of an answer, if they may ask at all (CORS).
_SHARED = ("/mcp", "/.well-known/")
_EXPOSED = (b"access-control-expose-headers", b"Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After")
_VARY = (b"vary", b"Origin")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?")
_HEADER_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z, ]{1,2000}")
#: For how many seconds a browser need not ask again whether it may ask.
_MAX_AGE = b"600"


@frozen(eq=False)
class Guard:
    """What is admitted.

    :ivar origins: origins such as ``https://ide.example``; none means those on this machine, ``*`` any.
    :ivar hosts: host names, with or without port, beside those of this machine; ``*`` is any.
    :ivar keys: of which a client must show one; none means that it need not.
    """

    origins: Collection[str] = ()
    hosts: Collection[str] = ()
    keys: Collection[bytes] = field(default=(), repr=False)

    def admit(self, request: ClientRequest) -> None:
        """Let a request pass.

        :raises OriginRefused: it comes from a page elsewhere.
        :raises HostRefused: it was sent to a name that is not ours.
        """
        origin = once(request.headers, self._origin)
        if origin is not None and self.origins and request.path.startswith(_SHARED):
            request.stream.shared = self._shared(origin)

    def _origin(self, headers: Headers) -> str | None:
        """That of the page that asks, if it is one; not told of who may not pass."""
        hosts, origins = _values(headers, b"host"), _values(headers, b"origin")
        if len(hosts) != 1:
            raise HostRefused("A request has one Host header.")
        host = hosts[0]
        if not self._is_our_host(host):
            raise HostRefused(f"Host {_shown(host)} is not served here. Add it to ALLOWED_HOSTS to admit it.")
        for origin in origins:
            if not self._is_our_origin(origin):
                raise OriginRefused(f"Origin {_shown(origin)} is not allowed. Add it to ALLOWED_ORIGINS to admit it.")
        return origins[-1] if origins else None

    def check_key(self, request: ClientRequest) -> None:
        """Let a request pass that is for the backend.

        :raises KeyWanted: there are keys, and it shows none of them.
        """
        if self.keys and request.path not in FOR_OPERATORS:
            given = request.header(OWN_KEY)
            # all are compared, so that the time tells nothing
            if not sum(hmac.compare_digest(given, key) for key in self.keys):
                raise KeyWanted()

    def preflight(self, request: ClientRequest) -> Headers | None:
        """How a browser is told what a page may send, if it asks that; the request was admitted."""
        is_asked = request.method == "OPTIONS" and request.header(b"access-control-request-method")
        if not (is_asked and request.stream.shared):
            return None
        allowed: Headers = (
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-max-age", _MAX_AGE),
        )
        names = request.header(b"access-control-request-headers")
        # any header may go on to the backend; that one with credentials needs to be named, * does not do
        if _HEADER_NAMES.fullmatch(names):
            allowed = (*allowed, (b"access-control-allow-headers", names))
        return allowed

    def _shared(self, origin: str) -> Headers:
        """What lets a page of this origin read the answer; cookies are not for it."""
        if ANY in self.origins:
            return ((b"access-control-allow-origin", b"*"), _EXPOSED)
        return ((b"access-control-allow-origin", origin.encode("latin-1")), _EXPOSED, _VARY)

    def _is_our_host(self, host: str) -> bool:
        if ANY in self.hosts:
            return True
        # No page elsewhere can make a browser send a loopback name, so these are safe, and health checks use them.
        name = _hostname(host)
        return name in _LOOPBACK or host.lower() in self.hosts or name in self.hosts

    def _is_our_origin(self, origin: str) -> bool:
        if ANY in self.origins:
            return True
        if self.origins:
            return origin.lower() in self.origins
        scheme, _, host = origin.partition("://")
        return scheme.lower() in ("http", "https") and _hostname(host) in _LOOPBACK


@frozen
class AdminGuard:
    """Who may see what is for operators: whoever knows the token; without one, this machine.

    :ivar token: the token, or nothing.
    """

    token: str = field(default="", repr=False)

    def admit(self, request: ClientRequest) -> None:
        """Let a request pass.

        :raises TokenWanted: there is a token, and it was not sent.
        :raises OnlyLocal: there is none, and the request comes from elsewhere, or by way of another proxy.
        """
        if self.token:
            scheme, _, given = request.header(b"authorization").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token.encode()):
                raise TokenWanted()
        elif not _is_loopback(request.peer) or any(request.header(name) for name in _FORWARDED):
            raise OnlyLocal()


def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def check_message_head(request: ClientRequest) -> None:
    """Whether a POST can carry a message.

    :raises UnsupportedMediaType: its body is not said to be JSON.
    :raises LengthRequired: it has no body, as HTTP goes.
    """
    if not request.has_length:
        raise LengthRequired()
    kind = once(request.headers, _content_type)
    if kind != b"application/json":
        raise UnsupportedMediaType(
            f"The body must be application/json, not {_shown(kind.decode('latin-1')) or 'untyped'}."
        )


def check_post_head(request: ClientRequest) -> None:
    """Whether a POST can carry messages, and its client can read a reply.

    :raises UnsupportedMediaType, LengthRequired, NotAcceptable: it does not look so.
    """
    check_message_head(request)
    check_reply_head(request)


def is_plain_post(headers: Headers) -> bool:
    """Whether a POST with these headers, and a length, passes :func:`check_post_head`."""
    return _content_type(headers) == b"application/json" and _takes_replies(headers)


def check_stream_head(request: ClientRequest) -> None:
    """Whether the client can read an event stream.

    :raises NotAcceptable: it says that it cannot.
    """
    accept = _accept(request.headers)
    if accept and not any(kind in accept for kind in (b"text/event-stream", b"text/*", b"*/*")):
        raise NotAcceptable()


def check_reply_head(request: ClientRequest) -> None:
    """Whether the client can read a reply, which may be one response or an event stream.

    :raises NotAcceptable: it says that it cannot.
    """
    if not once(request.headers, _takes_replies):
        raise NotAcceptable("The Accept header must name both application/json and text/event-stream.")


def _takes_replies(headers: Headers) -> bool:
    accept = _accept(headers)
    return not accept or b"*/*" in accept or (b"application/json" in accept and b"text/event-stream" in accept)


def _accept(headers: Headers) -> bytes:
    """What the client can read; the list may be spread over lines (RFC 9110 §5.3)."""
    return b",".join(value for name, value in headers if name == b"accept").lower()


def _content_type(headers: Headers) -> bytes:
    return _first(headers, b"content-type").partition(b";")[0].strip().lower()


def _first(headers: Headers, name: bytes) -> bytes:
    return next((value for own, value in headers if own == name), b"")


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1") for own, value in headers if own == name]


@lru_cache(maxsize=1024)
def _hostname(host: str) -> str:
    """The name without a port; nothing for what is no name, such as one with a user before it or a path behind it."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _shown(text: str) -> str:
    """A header of the client's, safe to be repeated to it."""
    return "".join(char for char in text[:100] if char.isprintable())
