"""Makes a server of the Python SDK 2.x one of revision 2026-07-28 only, which the SDK itself does not offer."""

from __future__ import annotations

import json
from typing import Any

MODERN = b"2026-07-28"


def modern_only(app: Any, path: str = "/mcp") -> Any:
    """Answer whatever is not of the revision as the TypeScript SDK does with ``legacy: 'reject'``."""

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != path:
            await app(scope, receive, send)
        elif scope["method"] != "POST":
            await answer(send, 405, b"")
        elif dict(scope["headers"]).get(b"mcp-protocol-version") == MODERN:
            await app(scope, receive, send)
        else:
            message = json.loads(await body_of(receive))
            data = {"supported": [MODERN.decode()], "requested": "an older one"}
            error = {"code": -32022, "message": "Unsupported protocol version", "data": data}
            await answer(send, 400, json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "error": error}).encode())

    return refusing


async def body_of(receive: Any) -> bytes:
    """The whole body of a request."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    return body


async def answer(send: Any, status: int, body: bytes) -> None:
    """Answer whole."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
