"""An MCP server of revision 2026-07-28, made with the official Python SDK 2.x; of no other, or of those before as well.

``python -m tests.e2e.backend_modern [--both] PORT FOLDER``. It offers what `tests.e2e.backend_server` does; its
questions are results that ask for input, or requests to a client that has a session.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from mcp import types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.e2e.folder import Folder
from tests.e2e.modern_only import modern_only

warnings.filterwarnings("ignore", ".* 2026-07-28")

TEXT = {"type": "string"}
#: Each tool with the properties that it takes.
TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"text": {**TEXT, "x-mcp-header": "Text"}},
    "pid": {},
    "append": {"line": TEXT, "gate": TEXT},
    "count": {"to": {"type": "integer"}, "gate": TEXT},
    "ask": {"kind": {"enum": ["sampling", "elicitation"]}},
}
QUESTION: dict[str, Any] = {"type": "object", "properties": {"answer": TEXT}, "required": ["answer"]}

Context = ServerRequestContext[Any, Any]


class Bus(InMemorySubscriptionBus):
    """A bus that knows how many listen."""

    listening = 0

    def subscribe(self, listener: Any) -> Any:
        """One more listens."""
        leave = super().subscribe(listener)
        self.listening += 1

        def left() -> None:
            nonlocal leave
            if leave is not None:
                leave()
                leave = None
                self.listening -= 1

        return left


class Backend:
    """The server, and the web application around it."""

    def __init__(self, folder: Folder, *, knows_both: bool = False) -> None:
        self._folder = folder
        self._knows_both = knows_both
        self._bus = Bus()
        self._server: Server[Any] = Server(
            "e2e-modern",
            version="2.0",
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_read_resource=self._read_resource,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_subscribe_resource=self._subscribe if knows_both else None,
            on_subscriptions_listen=ListenHandler(self._bus),
        )
        self._subscribers: dict[str, list[ServerSession]] = {}
        self._server.middleware.append(self._journal)

    def app(self) -> Any:
        """Return the web application."""
        routes = [Route("/health", self._health), Route("/touch", self._touch, methods=["POST"])]
        app = self._server.streamable_http_app(custom_starlette_routes=routes)
        return app if self._knows_both else modern_only(app)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "pid": os.getpid()})

    async def _touch(self, request: Request) -> Response:
        """Tell whoever listens, and clients that have subscribed in their sessions, that a resource has changed."""
        uri = request.query_params["uri"]
        subscribers = self._subscribers.get(uri, [])
        for session in subscribers:
            await session.send_resource_updated(uri)
        await self._bus.publish(ResourceUpdated(uri=uri))
        return JSONResponse({"told": len(subscribers) + self._bus.listening})

    async def _subscribe(self, context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Those that have a session subscribe by a request."""
        self._subscribers.setdefault(params.uri, []).append(context.session)
        return types.EmptyResult()

    async def _journal(self, context: Context, call_next: Any) -> Any:
        self._folder.journal(json.loads(json.dumps({"method": context.method, "params": context.params}, default=str)))
        return await call_next(context)

    async def _list_tools(self, context: Context, params: Any) -> types.ListToolsResult:
        tools = TOOLS | {name: {} for name in self._folder.extra_tools()}
        return types.ListToolsResult(
            tools=[
                types.Tool(name=name, input_schema={"type": "object", "properties": properties})
                for name, properties in tools.items()
            ]
        )

    async def _list_resources(self, context: Context, params: Any) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[types.Resource(uri="note://open", name="open")])

    async def _read_resource(self, context: Context, params: types.ReadResourceRequestParams) -> Any:
        name = params.uri.partition("//")[2]
        await self._folder.pass_gate(name)
        text = f"{params.uri} of {os.getpid()}"
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=params.uri, text=text)])

    async def _list_prompts(self, context: Context, params: Any) -> types.ListPromptsResult:
        prompt = types.Prompt(name="greet", arguments=[types.PromptArgument(name="who", required=True)])
        return types.ListPromptsResult(prompts=[prompt])

    async def _get_prompt(self, context: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        text = types.TextContent(type="text", text=f"Greet {(params.arguments or {}).get('who')}.")
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])

    async def _call_tool(self, context: Context, params: types.CallToolRequestParams) -> Any:
        given = params.arguments or {}
        if params.name == "ask" and not params.input_responses:
            if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
                return _asked(given["kind"])
            text = await _answered(context, given["kind"])
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)])
        text = await getattr(self, f"_tool_{params.name}")(context, params, **given)
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)])

    async def _tool_echo(self, context: Context, params: Any, text: str) -> str:
        return text

    async def _tool_pid(self, context: Context, params: Any) -> str:
        return str(os.getpid())

    async def _tool_append(self, context: Context, params: Any, line: str, gate: str = "") -> str:
        self._folder.add_to_ledger(line)
        try:
            await self._folder.pass_gate(gate)
        except anyio.get_cancelled_exc_class():
            self._folder.add_to_ledger(f"cancelled {line}")
            raise
        return f"appended {line}"

    async def _tool_count(self, context: Context, params: Any, to: int, gate: str = "") -> str:
        for number in range(1, to + 1):
            await context.session.report_progress(number, to)
        await self._folder.pass_gate(gate)
        return f"counted to {to}"

    async def _tool_ask(self, context: Context, params: types.CallToolRequestParams, kind: str) -> str:
        (answer,) = (params.input_responses or {}).values()
        assert params.request_state == f"asked by {os.getpid()}"
        if isinstance(answer, types.ElicitResult):
            return f"{answer.action}: {(answer.content or {}).get('answer')}"
        assert isinstance(answer, types.CreateMessageResult) and isinstance(answer.content, types.TextContent)
        return answer.content.text


async def _answered(context: Context, kind: str) -> str:
    """The answer of a client that has a session."""
    if kind == "sampling":
        text = types.TextContent(type="text", text="Which colour?")
        message = types.SamplingMessage(role="user", content=text)
        sampled = await context.session.create_message([message], max_tokens=10, related_request_id=context.request_id)
        assert isinstance(sampled.content, types.TextContent)
        return sampled.content.text
    answer = await context.session.elicit_form("Which colour?", QUESTION, context.request_id)
    return f"{answer.action}: {(answer.content or {}).get('answer')}"


def _asked(kind: str) -> types.InputRequiredResult:
    """The result that asks first."""
    question: Any
    if kind == "sampling":
        text = types.TextContent(type="text", text="Which colour?")
        message = types.SamplingMessage(role="user", content=text)
        question = types.CreateMessageRequest(
            params=types.CreateMessageRequestParams(messages=[message], max_tokens=10)
        )
    else:
        question = types.ElicitRequest(
            params=types.ElicitRequestFormParams(message="Which colour?", requested_schema=QUESTION)
        )
    return types.InputRequiredResult(input_requests={"colour": question}, request_state=f"asked by {os.getpid()}")


def main() -> None:
    """Serve on PORT until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--both", action="store_true")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    app = Backend(Folder(given.folder), knows_both=given.both).app()
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
