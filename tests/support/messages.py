"""MCP messages, as plain values and as bytes."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

VERSION = "2024-11-05"
CLIENT_INFO: Json = {"name": "test-client", "version": "1.2.3"}
TOOLS: list[Json] = [{"name": "echo", "inputSchema": {"type": "object"}}]


def request(method: str, identity: Any = 1, params: Json | None = None) -> Json:
    """A request."""
    message = {"jsonrpc": "2.0", "id": identity, "method": method}
    return message if params is None else {**message, "params": params}


def notification(method: str, params: Json | None = None) -> Json:
    """A notification."""
    message: Json = {"jsonrpc": "2.0", "method": method}
    return message if params is None else {**message, "params": params}


def result(identity: Any, value: Json) -> Json:
    """A successful answer."""
    return {"jsonrpc": "2.0", "id": identity, "result": value}


def error(identity: Any, code: int, text: str = "no") -> Json:
    """An error answer."""
    return {"jsonrpc": "2.0", "id": identity, "error": {"code": code, "message": text}}


def initialize(identity: Any = 0, capabilities: Json | None = None) -> Json:
    """The client's first request."""
    params = {"protocolVersion": VERSION, "capabilities": capabilities or {}, "clientInfo": CLIENT_INFO}
    return request("initialize", identity, params)


def initialize_result(capabilities: Json | None = None, name: str = "scripted") -> Json:
    """What a backend says to it."""
    return {
        "protocolVersion": VERSION,
        "capabilities": {"tools": {}, "resources": {"subscribe": True}, "logging": {}}
        if capabilities is None
        else capabilities,
        "serverInfo": {"name": name, "version": "1"},
    }


def call(identity: Any = 1, arguments: Json | None = None, name: str = "echo") -> Json:
    """A tool call."""
    return request("tools/call", identity, {"name": name, "arguments": arguments or {}})


def encoded(message: Any) -> bytes:
    """As JSON text."""
    return json.dumps(message).encode()
