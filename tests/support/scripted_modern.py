"""A backend that speaks revision 2026-07-28, and the earlier ones to whoever begins with a handshake."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from tests.support import messages, modern
from tests.support.messages import Json, encoded
from tests.support.scripted import Asked, BackendConnection, Got, Stream, response
from tests.support.scripted_streamable import JSON_HEADER, Reply, Session, StreamableBackend, refusal

DISCOVERED: Json = {
    "resultType": "complete",
    "supportedVersions": [modern.VERSION],
    "capabilities": {"tools": {"listChanged": True}},
    "ttlMs": 0,
    "cacheScope": "private",
}


class ModernBackend(StreamableBackend):
    """See the module. ``honours`` is what it will tell of.

    ``violations`` are also what contradicts itself, and what has no place in this revision.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.honours: set[str] = {"toolsListChanged", "promptsListChanged", "resourcesListChanged"}
        self.answers["server/discover"] = lambda stream, asked: messages.result(asked["id"], DISCOVERED)
        self.answers["subscriptions/listen"] = self._listen

    def take_post(self, connection: BackendConnection, asked: Asked) -> None:
        """POST: a message that stands for itself, or one of a session."""
        message = json.loads(asked.body)
        if modern.META_VERSION not in message.get("params", {}).get("_meta", {}):
            super().take_post(connection, asked)
            return
        wrong = _contradiction(message, asked.headers)
        if wrong:
            self.violations.append({wrong: asked.headers})
            connection.write(refusal(400, -32020, wrong))
            return
        self.got.append(Got(message, asked.headers, "", self.generation))
        reply = self._reply(connection, asked, message, Session("", "", initialized=True))
        self.on_message(connection, reply, message)

    def open_stream(self, connection: BackendConnection, asked: Asked) -> None:
        """GET: only of a session."""
        if "mcp-session-id" not in asked.headers:
            self.violations.append({"GET": asked.headers})
        super().open_stream(connection, asked)

    def _listen(self, stream: Stream, asked: Json) -> None:
        assert isinstance(stream, Reply)
        wanted = asked["params"]["notifications"]
        stream.begin()
        stream.send(modern.acknowledged(asked["id"], **{name: wanted[name] for name in wanted if name in self.honours}))

    def listening(self, identity: Any) -> Reply:
        """The newest subscription with this id."""
        found = [
            each
            for each in self.replies.values()
            if each.message.get("method") == "subscriptions/listen" and repr(each.message["id"]) == repr(identity)
        ]
        return found[-1]


def _contradiction(message: Json, headers: dict[str, str]) -> str:
    """What a strict server would not take."""
    if "id" not in message:
        return "a notification"
    for name in ("mcp-session-id", "last-event-id"):
        if name in headers:
            return name
    if modern.META_CAPABILITIES not in message["params"]["_meta"]:
        return "no capabilities"
    expected = {name.decode(): value.decode() for name, value in modern.headers_of(message)}
    for name, value in expected.items():
        if _decoded(headers.get(name, "")) != _decoded(value):
            return f"{name} is {headers.get(name)!r}"
    accept = headers.get("accept", "")
    return "" if "application/json" in accept and "text/event-stream" in accept else "Accept"


def _decoded(value: str) -> str:
    return b64decode(value[9:-2]).decode() if value.startswith("=?base64?") else value


def _no(status: int, code: int) -> Callable[[Any], bytes]:
    return lambda identity: response(status, encoded(messages.error(identity, code)), JSON_HEADER)


#: How servers of this revision only answer ``initialize``, by the id of the request.
NO_HANDSHAKE: dict[str, Callable[[Any], bytes]] = {
    "typescript": _no(400, -32022),
    "python": _no(400, -32602),
    "header": _no(400, -32020),
    "unknown": _no(404, -32601),
    "plain": lambda identity: response(404, b"Not Found"),
    "method": lambda identity: response(405, b"Method Not Allowed"),
    "answered": _no(200, -32601),
}


class ModernOnlyBackend(ModernBackend):
    """It knows no handshake; ``no_handshake`` is how it says so, ``discovered`` what it says of itself."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.no_handshake = "typescript"
        self.honours.add("resourceSubscriptions")
        self.discovered: Json = {
            **DISCOVERED,
            "capabilities": {
                "tools": {},
                "prompts": {"listChanged": True},
                "resources": {"subscribe": True},
                "logging": {},
                "extensions": {"io.modelcontextprotocol/tasks": {}},
            },
            "instructions": "Be kind.",
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "modern", "version": "7"}},
        }
        self.answers["server/discover"] = lambda stream, asked: messages.result(asked["id"], self.discovered)
        self.answers["tools/list"] = lambda stream, asked: messages.result(
            asked["id"], {"resultType": "complete", "tools": self.tools, "ttlMs": 5, "cacheScope": "public"}
        )
        self.answers["tools/call"] = lambda stream, asked: messages.result(
            asked["id"], {"resultType": "complete", "echo": asked["params"]["arguments"]}
        )
        for name in ("ping", "logging/setLevel", "resources/subscribe"):
            del self.answers[name]

    def take_post(self, connection: BackendConnection, asked: Asked) -> None:
        """POST: only a message that stands for itself."""
        message = json.loads(asked.body)
        if modern.META_VERSION in message.get("params", {}).get("_meta", {}):
            super().take_post(connection, asked)
        elif message.get("method") != "initialize":
            self.violations.append(message)
            connection.write(refusal(400, -32602, "no _meta"))
        else:
            connection.write(NO_HANDSHAKE[self.no_handshake](message["id"]))

    def open_stream(self, connection: BackendConnection, asked: Asked) -> None:
        """GET: there is none; HTTP+SSE is looked for where it would be."""
        self.violations.append({"GET": asked.path})
        connection.write(response(405))

    def end_session(self, connection: BackendConnection, asked: Asked) -> None:
        """DELETE: there is none."""
        self.violations.append({"DELETE": asked.path})
        connection.write(response(405))

    def filters(self) -> list[Json]:
        """What it was asked to tell of, each time."""
        return [each.message["params"]["notifications"] for each in self.deliveries("subscriptions/listen")]

    def newest_listen(self) -> Reply:
        """The stream of changes that was opened last."""
        return self.reply_to("subscriptions/listen")

    def change(self, method: str, **params: Any) -> None:
        """Tell of a change on every stream that asked for it and is open."""
        for reply in [*self.replies.values()]:
            if reply.message.get("method") == "subscriptions/listen" and not reply.connection.closed and reply.begun:
                reply.send(modern.told(method, reply.message["id"], **params))

    def input_required(self, asked: Json, state: str | None = None, **inputs: Json) -> Json:
        """An answer that asks for more."""
        result: Json = {"resultType": "input_required"}
        if inputs:
            result["inputRequests"] = inputs
        if state is not None:
            result["requestState"] = state
        return messages.result(asked["id"], result)
