"""Requests of revision 2026-07-28, and the headers that repeat what they say."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from tests.support import messages
from tests.support.http1 import HeaderList
from tests.support.messages import Json

VERSION = "2026-07-28"
META_VERSION = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
META_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
JSON_KIND = (b"content-type", b"application/json")
BOTH_KINDS = (b"accept", b"application/json, text/event-stream")
VERSION_HEADER = (b"mcp-protocol-version", VERSION.encode())
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"

_NAMED = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}


def meta(**more: Any) -> Json:
    """What each request tells of its client."""
    return {META_VERSION: VERSION, META_CAPABILITIES: {}, **more}


def request(method: str, identity: Any = 1, params: Json | None = None, **more: Any) -> Json:
    """A request; ``more`` goes into its ``_meta``."""
    return messages.request(method, identity, {**(params or {}), "_meta": meta(**more)})


def notification(method: str, params: Json | None = None) -> Json:
    """A notification."""
    return messages.notification(method, {**(params or {}), "_meta": meta()})


def call(identity: Any = 1, arguments: Json | None = None, name: str = "echo", **more: Any) -> Json:
    """A tool call."""
    return request("tools/call", identity, {"name": name, "arguments": arguments or {}}, **more)


def listen(identity: Any = 1, **filter_: Any) -> Json:
    """A request to be told of changes."""
    return request("subscriptions/listen", identity, {"notifications": filter_})


def acknowledged(identity: Any, **filter_: Any) -> Json:
    """The backend will tell of these."""
    return messages.notification(ACKNOWLEDGED, {"notifications": filter_, "_meta": {META_SUBSCRIPTION: identity}})


def told(method: str, identity: Any, **params: Any) -> Json:
    """A notification of a subscription."""
    return messages.notification(method, {**params, "_meta": {META_SUBSCRIPTION: identity}})


def encoded_name(name: str) -> bytes:
    """A name as a header can hold it."""
    is_marker = name.startswith("=?base64?") and name.endswith("?=")
    if name.isascii() and name.isprintable() and name == name.strip() and not is_marker:
        return name.encode()
    return b"=?base64?" + b64encode(name.encode()) + b"?="


def headers_of(message: Json) -> HeaderList:
    """The headers that belong to a message."""
    method, params = message["method"], message.get("params", {})
    version = params.get("_meta", {}).get(META_VERSION, VERSION)
    named = params.get(_NAMED.get(method, ""))
    own: HeaderList = ((b"mcp-name", encoded_name(named)),) if isinstance(named, str) else ()
    return ((b"mcp-protocol-version", version.encode()), (b"mcp-method", method.encode()), *own)
