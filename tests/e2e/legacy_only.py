"""Takes a web application that serves all revisions of MCP, and leaves it those that begin with a handshake."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

#: What official servers of these revisions answer to a version that they do not know, or without a session.
REFUSAL = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "Bad Request: Server not initialized"}}


def legacy_only(app: ASGIApp) -> ASGIApp:
    """Return the application without the revisions from 2026 on."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a message of such a revision before it is looked at."""
        version = Headers(scope=scope).get("mcp-protocol-version", "") if scope["type"] == "http" else ""
        served = JSONResponse(REFUSAL, 400) if version >= "2026" else app
        await served(scope, receive, send)

    return serve
