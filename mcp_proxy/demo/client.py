"""The demo's client: the official SDK, connected once, and a count of what went over the wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.shared.session import ProgressFnT
from mcp.types import TextContent

#: As patient as most clients are.
PATIENCE = timedelta(seconds=60)


class Wire:
    """What the client sent: how many streams it opened, and which address its messages went to."""

    def __init__(self) -> None:
        self.streams = 0
        self.addresses: set[str] = set()
        self.handshakes = 0

    def make_http_client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
        auth: httpx.Auth | None = None,
    ) -> httpx.AsyncClient:
        """Return an HTTP client for the SDK, whose requests are counted."""
        return httpx.AsyncClient(
            headers=headers,
            timeout=timeout,
            auth=auth,
            event_hooks={"request": [self._count]},
            # HTTP_PROXY and its like are for the world outside, not for this machine.
            trust_env=False,
        )

    async def _count(self, request: httpx.Request) -> None:
        if request.method == "GET":
            self.streams += 1
        else:
            self.addresses.add(request.url.path)
            self.handshakes += json.loads(request.content).get("method") == "initialize"


class Client:
    """One session with the tools of the demo's server."""

    def __init__(self, session: ClientSession, wire: Wire) -> None:
        self._session = session
        self.wire = wire

    async def call(self, tool: str, on_progress: ProgressFnT | None = None, **arguments: Any) -> str:
        """Call a tool and return its text.

        :raises McpError: the call was answered with an error.
        """
        result = await self._session.call_tool(tool, arguments, progress_callback=on_progress)
        return "\n".join(part.text for part in result.content if isinstance(part, TextContent))

    async def server_pid(self) -> int:
        """Ask who is answering."""
        return int(json.loads(await self.call("server_info"))["pid"])


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Client]:
    """Connect, once: nothing in here, nor in the SDK's client, would connect a second time."""
    wire = Wire()
    async with (
        sse_client(url, httpx_client_factory=wire.make_http_client) as (incoming, outgoing),
        ClientSession(incoming, outgoing, read_timeout_seconds=PATIENCE) as session,
    ):
        await session.initialize()
        yield Client(session, wire)
