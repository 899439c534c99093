"""The envelope of a request of revision 2026-07-28: what its headers and its ``_meta`` say, and whether they agree.

That revision has no handshake and no session: each request tells its revision and its client's capabilities in
``_meta``, and repeats in headers what an intermediary may want to route by. Whoever reads both must refuse a request in
which they differ (specification 2026-07-28, "Streamable HTTP", server validation).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from typing import Any

from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import HeaderMismatch, InvalidParams, UnsupportedVersion
from mcp_proxy.wire.headers import Headers, once
from mcp_proxy.wire.jsonrpc import Message

VERSION = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL = "io.modelcontextprotocol/logLevel"
SERVER_INFO = "io.modelcontextprotocol/serverInfo"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"

VERSION_HEADER = b"mcp-protocol-version"
METHOD_HEADER = b"mcp-method"
NAME_HEADER = b"mcp-name"

#: Capabilities, of clients and of servers, that are not translated: they mean something else, or nothing, in the
#: revisions with a handshake.
UNTRANSLATED = ("tasks", "extensions")

#: Errors by which servers of older revisions speak of versions and sessions, be it under the id of the request.
OF_SESSIONS = (-32600, -32000, -32001)

#: Which member of params the name header repeats, for the methods that need one.
_NAMES = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
_ENCODED, _END = "=?base64?", "?="


def is_modern(message: Message, headers: Headers) -> bool:
    """Whether a message belongs to a revision without handshake; each tells for itself, whatever came before."""
    if b"protocolVersion" in message.body and VERSION in _meta(message):
        return True
    return once(headers, _says_modern)


def _says_modern(headers: Headers) -> bool:
    if any(name.lower() == b"mcp-session-id" for name, _ in headers):
        return False
    versions = _values(headers, VERSION_HEADER)
    return any(version and version not in revisions.LEGACY for version in versions)


def end_of_listen(identity: bytes) -> bytes:
    """The result that ends a ``subscriptions/listen`` as it should, its id given as JSON text."""
    meta = {SUBSCRIPTION: jsonrpc.value_of(identity)}
    return jsonrpc.result(identity, {"resultType": "complete", "_meta": meta})


def check(message: Message, headers: Headers) -> None:
    """Whether a request is complete, and its headers say what its body says.

    :raises InvalidParams: its ``_meta`` lacks what every request has.
    :raises HeaderMismatch: a header is missing, comes twice, cannot be read, or differs from the body.
    :raises UnsupportedVersion: its revision is not spoken here.
    """
    meta = _meta(message)
    version = meta.get(VERSION)
    if not isinstance(version, str):
        raise InvalidParams(f"params._meta must have {VERSION}, a string.")
    if not isinstance(meta.get(CAPABILITIES), dict):
        raise InvalidParams(f"params._meta must have {CAPABILITIES}, an object.")
    _compare(headers, VERSION_HEADER, "MCP-Protocol-Version", version)
    _compare(headers, METHOD_HEADER, "Mcp-Method", message.method)
    member = _NAMES.get(message.method)
    name = message.params().get(member) if member is not None else None
    if isinstance(name, str):
        _compare(headers, NAME_HEADER, "Mcp-Name", name, is_encoded=True)
    if version not in revisions.MODERN:
        raise UnsupportedVersion(
            f"Revision {version[:40]!r} is not spoken here.",
            supported=list(revisions.MODERN),
            requested=version,
        )


def envelope_headers(method: str, params: dict[str, Any]) -> Headers:
    """The headers that repeat what a request of ours says."""
    name = params.get(_NAMES.get(method, ""))
    own: Headers = ((b"Mcp-Name", encoded(name)),) if isinstance(name, str) else ()
    version = revisions.MODERN[-1].encode()
    return ((b"MCP-Protocol-Version", version), (b"Mcp-Method", encoded(method)), *own)


def encoded(value: str) -> bytes:
    """A value as a header can hold it: in base64 where it is not plain, or would be taken for base64."""
    is_marked = value.startswith(_ENCODED) and value.endswith(_END)
    if value.isascii() and value.isprintable() and value == value.strip() and not is_marked:
        return value.encode()
    return f"{_ENCODED}{b64encode(value.encode('utf-8', 'replace')).decode()}{_END}".encode()


def _compare(headers: Headers, name: bytes, shown: str, wanted: str, *, is_encoded: bool = False) -> None:
    values = _values(headers, name)
    if len(values) != 1:
        raise HeaderMismatch(f"A request has one {shown} header; this one has {len(values)}.")
    value = _decoded(values[0], shown) if is_encoded else values[0]
    if value != wanted:
        raise HeaderMismatch(f"The {shown} header differs from the body of the request.")


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip(" \t") for own, value in headers if own.lower() == name]


def _decoded(value: str, shown: str) -> str:
    """The text of a value, which is in base64 where a header could not hold it."""
    if not (value.startswith(_ENCODED) and value.endswith(_END)):
        return value
    try:
        return b64decode(value[len(_ENCODED) : -len(_END)], validate=True).decode("utf-8")
    except (NotBase64, UnicodeDecodeError, ValueError):
        raise HeaderMismatch(f"The {shown} header is not valid base64 of UTF-8.") from None


def _meta(message: Message) -> dict[str, Any]:
    meta = message.params().get("_meta")
    return meta if isinstance(meta, dict) else {}
