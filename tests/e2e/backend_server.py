"""The MCP server behind the proxy, of the official Python SDK 1.x.

``python -m tests.e2e.backend_server [--transport sse|streamable] PORT FOLDER``; a test steers it through the files in
FOLDER, see ``folder.py``.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from anyio.streams.memory import MemoryObjectReceiveStream
from mcp import McpError, types
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.message import SessionMessage
from pydantic import AnyUrl
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from tests.e2e.folder import Folder

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]

TEXT = {"type": "string"}
#: Each tool with the properties that it takes.
TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"text": TEXT},
    "pid": {},
    "append": {"line": TEXT, "gate": TEXT},
    "count": {"to": {"type": "integer"}, "gate": TEXT},
    "ask": {"kind": {"enum": ["sampling", "elicitation"]}},
}


class JournallingServer(Server[Any]):
    """A server that writes down every message of every session, whatever brings it, before it handles it."""

    folder: Folder

    async def run(
        self, incoming: Incoming, outgoing: Any, options: InitializationOptions, *args: Any, **kwargs: Any
    ) -> None:
        """Serve one session."""
        # The SDK serves subscriptions, but has no way to say so.
        assert options.capabilities.resources is not None
        options.capabilities.resources.subscribe = True
        writer, reader = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)

        async def relay() -> None:
            async with incoming, writer:
                async for item in incoming:
                    if isinstance(item, SessionMessage):
                        message = item.message.model_dump(by_alias=True, mode="json", exclude_none=True)
                        self.folder.journal(message)
                    await writer.send(item)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay)
            await super().run(reader, outgoing, options, *args, **kwargs)
            tasks.cancel_scope.cancel()


class Backend:
    """The server, and the web application around it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._server = JournallingServer("e2e-backend", version="1.0")
        self._server.folder = folder
        self._subscribers: dict[str, list[ServerSession]] = {}
        self._register()

    def app(self, transport: str) -> Starlette:
        """Return the web application."""
        ours = [Route("/health", self._health), Route("/touch", self._touch, methods=["POST"])]
        if transport == "sse":
            inbox = SseServerTransport("/backend/inbox/")

            async def serve(request: Request) -> Response:
                """Serve one client, from its first to its last message."""
                async with inbox.connect_sse(request.scope, request.receive, request._send) as streams:
                    await self._server.run(*streams, self._server.create_initialization_options())
                return _Sent()

            messages = Mount("/backend/inbox", app=inbox.handle_post_message)
            return Starlette(routes=[Route("/backend/sse", serve), messages, *ours])

        sessions = StreamableHTTPSessionManager(self._server)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with sessions.run():
                yield

        return Starlette(routes=[Route("/backend/mcp", _Endpoint(sessions)), *ours], lifespan=lifespan)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    async def _touch(self, request: Request) -> Response:
        """Tell every subscriber of a resource that it has changed."""
        uri = request.query_params["uri"]
        subscribers = self._subscribers.get(uri, [])
        for session in subscribers:
            await session.send_resource_updated(AnyUrl(uri))
        return JSONResponse({"told": len(subscribers)})

    def _register(self) -> None:
        server = self._server

        @server.list_tools()
        async def list_tools() -> list[types.Tool]:
            extra: dict[str, dict[str, Any]] = {name: {} for name in self._folder.extra_tools()}
            return [
                types.Tool(name=name, inputSchema={"type": "object", "properties": properties})
                for name, properties in (TOOLS | extra).items()
            ]

        @server.call_tool()
        async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
            text = await getattr(self, f"_tool_{name}")(**arguments)
            return [types.TextContent(type="text", text=text)]

        @server.list_resources()
        async def list_resources() -> list[types.Resource]:
            return [types.Resource(uri=AnyUrl("note://gated"), name="gated")]

        @server.read_resource()
        async def read_resource(uri: AnyUrl) -> Iterable[ReadResourceContents]:
            """Every resource waits for the gate of its name; one is missing."""
            if uri.host == "missing":
                raise McpError(types.ErrorData(code=-32002, message="no such note", data={"uri": str(uri)}))
            await self._folder.pass_gate(uri.host or "")
            return [ReadResourceContents(f"{uri} of {os.getpid()}", "text/plain")]

        @server.list_prompts()
        async def list_prompts() -> list[types.Prompt]:
            return [types.Prompt(name="greet", arguments=[types.PromptArgument(name="who", required=True)])]

        @server.get_prompt()
        async def get_prompt(name: str, arguments: dict[str, str] | None) -> types.GetPromptResult:
            text = types.TextContent(type="text", text=f"Greet {(arguments or {}).get('who')}.")
            return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])

        @server.subscribe_resource()
        async def subscribe(uri: AnyUrl) -> None:
            self._subscribers.setdefault(str(uri), []).append(server.request_context.session)

        @server.set_logging_level()
        async def set_level(level: types.LoggingLevel) -> None:
            """The journal has it already."""

    async def _tool_echo(self, text: str) -> str:
        return text

    async def _tool_pid(self) -> str:
        return str(os.getpid())

    async def _tool_append(self, line: str, gate: str = "") -> str:
        self._folder.add_to_ledger(line)
        try:
            await self._folder.pass_gate(gate)
        except anyio.get_cancelled_exc_class():
            if gate == "cancelled":  # where a test wants to see it
                self._folder.add_to_ledger(f"cancelled {line}")
            raise
        return f"appended {line}"

    async def _tool_count(self, to: int, gate: str = "") -> str:
        context = self._server.request_context
        token = context.meta.progressToken if context.meta else None
        for number in range(1, to + 1):
            if token is not None:
                await context.session.send_progress_notification(token, number, to)
        await self._folder.pass_gate(gate)
        return f"counted to {to}"

    async def _tool_ask(self, kind: str) -> str:
        session = self._server.request_context.session
        if kind == "sampling":
            question = types.TextContent(type="text", text="Which colour?")
            message = types.SamplingMessage(role="user", content=question)
            sampled = await session.create_message([message], max_tokens=10)
            assert isinstance(sampled.content, types.TextContent)
            return sampled.content.text
        schema = {"type": "object", "properties": {"answer": TEXT}, "required": ["answer"]}
        elicited = await session.elicit("Which colour?", schema)
        return f"{elicited.action}: {(elicited.content or {}).get('answer')}"


class _Endpoint:
    """A route's application; a plain function would get GET requests only."""

    def __init__(self, sessions: StreamableHTTPSessionManager) -> None:
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._sessions.handle_request(scope, receive, send)


class _Sent(Response):
    """The stream was the response; there is nothing left to send."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


def main() -> None:
    """Serve on PORT until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transport", choices=["sse", "streamable"], default="sse")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    app = Backend(Folder(given.folder)).app(given.transport)
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
