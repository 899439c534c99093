"""The MCP servers behind the proxy that are made with the official Python SDK 2.x: by itself, and by FastMCP.

``python -m tests.e2e.backend_server2 mcp|fastmcp|stateless PORT FOLDER``: the SDK's own server, or FastMCP's with or
without sessions. They offer what `tests.e2e.backend_server` does as far as the scenarios need it.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastmcp import Context, FastMCP
from fastmcp.server.middleware import Middleware
from mcp import types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2e.folder import Folder

# The SDK warns of everything that the revision 2026-07-28 has no more.
warnings.filterwarnings("ignore", ".* 2026-07-28")

TEXT = {"type": "string"}
#: Each tool with the properties that it takes.
TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"text": TEXT},
    "pid": {},
    "append": {"line": TEXT, "gate": TEXT},
    "ask": {"kind": {"enum": ["elicitation"]}},
}
QUESTION = {"type": "object", "properties": {"answer": TEXT}, "required": ["answer"]}


async def health(request: Request) -> Response:
    """Tell that this process is up."""
    return JSONResponse({"status": "ok", "pid": os.getpid()})


async def append(folder: Folder, line: str, gate: str) -> str:
    """Perform the mutation, and wait for the gate."""
    folder.add_to_ledger(line)
    await folder.pass_gate(gate)
    return f"appended {line}"


def sdk_app(folder: Folder) -> Starlette:
    """The application of the SDK's own server."""

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        tools = TOOLS | {name: {} for name in folder.extra_tools()}
        return types.ListToolsResult(
            tools=[
                types.Tool(name=name, input_schema={"type": "object", "properties": properties})
                for name, properties in tools.items()
            ]
        )

    async def call_tool(
        context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        given = params.arguments or {}
        if params.name == "echo":
            text = given["text"]
        elif params.name == "pid":
            text = str(os.getpid())
        elif params.name == "append":
            text = await append(folder, given["line"], given.get("gate", ""))
        else:
            answer = await context.session.elicit_form("Which colour?", QUESTION, context.request_id)
            text = f"{answer.action}: {(answer.content or {}).get('answer')}"
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

    async def journal(context: ServerRequestContext[Any, Any], call_next: Any) -> Any:
        folder.journal(json.loads(json.dumps({"method": context.method, "params": context.params}, default=str)))
        return await call_next(context)

    server: Server[Any] = Server("e2e-backend", version="2.0", on_list_tools=list_tools, on_call_tool=call_tool)
    server.middleware.append(journal)
    return server.streamable_http_app(custom_starlette_routes=[Route("/health", health)])


class Journal(Middleware):
    """Writes down every message, before it is handled."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def on_message(self, context: Any, call_next: Any) -> Any:
        """A request or a notification has come."""
        params = context.message
        if hasattr(params, "model_dump"):
            params = params.model_dump(by_alias=True, mode="json", exclude_none=True)
        self._folder.journal(json.loads(json.dumps({"method": context.method, "params": params}, default=str)))
        return await call_next(context)


def fastmcp_app(folder: Folder, *, is_stateless: bool) -> Starlette:
    """The application of FastMCP's server."""
    server: FastMCP[Any] = FastMCP("e2e-backend", middleware=[Journal(folder)])
    server.custom_route("/health", ["GET"])(health)

    @server.tool(name="echo")
    async def _echo(text: str) -> str:
        return text

    @server.tool(name="pid")
    async def _pid() -> str:
        return str(os.getpid())

    @server.tool(name="append")
    async def _append(line: str, gate: str = "") -> str:
        return await append(folder, line, gate)

    @server.tool(name="ask")
    async def _ask(kind: Literal["elicitation"], context: Context) -> str:
        answer: Any = await context.session.elicit_form("Which colour?", QUESTION, context.request_id)
        return f"{answer.action}: {(answer.content or {}).get('answer')}"

    return server.http_app(stateless_http=is_stateless)


def main() -> None:
    """Serve on PORT until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["mcp", "fastmcp", "stateless"])
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    folder = Folder(given.folder)
    app = sdk_app(folder) if given.kind == "mcp" else fastmcp_app(folder, is_stateless=given.kind == "stateless")
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
