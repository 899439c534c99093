"""A backend that speaks revision 2026-07-28, and the earlier ones to whoever begins with a handshake."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from tests.support import messages, modern
from tests.support.messages import Json
from tests.support.scripted import Asked, BackendConnection, Got, Stream
from tests.support.scripted_streamable import Reply, Session, StreamableBackend, refusal

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
