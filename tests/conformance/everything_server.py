"""The MCP server that the conformance suite is run against.

``python -m tests.conformance.everything_server --port PORT``. The suite knows what a server offers by fixed names
(``test_simple_text``, ``test://static-text``, ...), so a server has to be written for it; `everything_tools` has what
is behind the names, `everything_tasks` what goes on after its answer. This one is built on the low level of the
official Python SDK, 2.x. It listens on 127.0.0.1 only: Streamable HTTP at ``/mcp``, for clients of the handshake and of
the stateless revisions, and ``GET /health``.

It needs a virtual environment of its own, because the project's has the SDK's 1.x.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server.caching import CACHEABLE_METHODS
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.conformance.everything_tasks import (
    EXTENSION,
    TASKS,
    Listener,
    TaskParams,
    UpdateParams,
    cancel_task,
    get_task,
    update_task,
)
from tests.conformance.everything_tools import (
    PROMPTS,
    RESOURCES,
    SCHEMAS,
    TEMPLATE,
    TOOLS,
    Context,
    Input,
    Json,
    Unanswered,
    asks,
    form_question,
    prompt_blocks,
    resource_contents,
)
from tests.e2e.legacy_only import legacy_only
from tests.e2e.modern_only import modern_only

Handler = Callable[[Context, Any], Awaitable[Json]]

NAME = "conformance-target"
#: Milliseconds after which a client whose stream was closed shall come back.
RETRY = 100


async def list_tools(context: Context, params: Any) -> Json:
    """Answer ``tools/list``."""
    return {
        "tools": [
            {"name": name, "description": function.__doc__, "inputSchema": SCHEMAS[name]}
            for name, function in TOOLS.items()
        ]
    }


async def call_tool(context: Context, params: types.CallToolRequestParams) -> Json:
    """Answer ``tools/call``."""
    if params.name not in TOOLS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name}")
    try:
        return await TOOLS[params.name](Input(context, params))
    except Unanswered as question:
        return question.result


async def list_prompts(context: Context, params: Any) -> Json:
    """Answer ``prompts/list``."""
    return {
        "prompts": [
            {
                "name": name,
                "description": description,
                "arguments": [{"name": each, "description": each, "required": True} for each in arguments],
            }
            for name, (description, arguments) in PROMPTS.items()
        ]
    }


async def get_prompt(context: Context, params: types.GetPromptRequestParams) -> Json:
    """Answer ``prompts/get``."""
    if params.name not in PROMPTS:
        raise MCPError(types.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    blocks = prompt_blocks(params.name, Input(context, params))
    if blocks is None:
        return asks(user_context=form_question("What context should the prompt use?", context="string"))
    return {"messages": [{"role": "user", "content": block} for block in blocks]}


async def list_resources(context: Context, params: Any) -> Json:
    """Answer ``resources/list``."""
    return {
        "resources": [
            {"uri": uri, "name": uri.removeprefix("test://"), "description": description, "mimeType": mime_type}
            for uri, (description, mime_type, _) in RESOURCES.items()
        ]
    }


async def list_templates(context: Context, params: Any) -> Json:
    """Answer ``resources/templates/list``."""
    template = {"uriTemplate": TEMPLATE, "name": "template", "description": "One of many."}
    return {"resourceTemplates": [{**template, "mimeType": "application/json"}]}


async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> Json:
    """Answer ``resources/read``."""
    return {"contents": [resource_contents(str(params.uri))]}


async def complete(context: Context, params: types.CompleteRequestParams) -> Json:
    """Answer ``completion/complete``."""
    values = [each for each in ("paris", "park", "party") if each.startswith(params.argument.value)]
    return {"completion": {"values": values, "total": len(values), "hasMore": False}}


async def accept(context: Context, params: Any) -> Json:
    """Answer a request whose answer says nothing: subscriptions and the log level."""
    return {}


#: Each method with the type of its parameters.
METHODS: dict[str, tuple[type[BaseModel], Handler]] = {
    "tools/list": (types.PaginatedRequestParams, list_tools),
    "tools/call": (types.CallToolRequestParams, call_tool),
    "prompts/list": (types.PaginatedRequestParams, list_prompts),
    "prompts/get": (types.GetPromptRequestParams, get_prompt),
    "resources/list": (types.PaginatedRequestParams, list_resources),
    "resources/templates/list": (types.PaginatedRequestParams, list_templates),
    "resources/read": (types.ReadResourceRequestParams, read_resource),
    "resources/subscribe": (types.SubscribeRequestParams, accept),
    "resources/unsubscribe": (types.UnsubscribeRequestParams, accept),
    "completion/complete": (types.CompleteRequestParams, complete),
    "logging/setLevel": (types.SetLevelRequestParams, accept),
    "tasks/get": (TaskParams, get_task),
    "tasks/update": (UpdateParams, update_task),
    "tasks/cancel": (TaskParams, cancel_task),
}


def era_aware(handler: Handler) -> Handler:
    """Return the handler, adding to its results what the stateless revisions want in each."""

    async def answer(context: Context, params: Any) -> Json:
        result = await handler(context, params)
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            while "inputRequests" in result:
                result = await handler(context, await answered(context, params, result))
            return result
        hints: Json = {"ttlMs": 0, "cacheScope": "private"} if context.method in CACHEABLE_METHODS else {}
        return {"resultType": "complete", **hints, **result}

    return answer


async def answered(context: Context, params: Any, result: Json) -> Any:
    """Ask as servers of the revisions with a handshake do, in requests of their own; return the params with answers."""
    here = ServerMessageMetadata(related_request_id=context.request_id)
    answers: dict[str, Any] = {}

    async def ask(key: str, question: Json) -> None:
        request, kind = QUESTIONS[question["method"]]
        answers[key] = await context.session.send_request(request.model_validate(question), kind, metadata=here)

    async with anyio.create_task_group() as tasks:
        for key, question in result["inputRequests"].items():
            tasks.start_soon(ask, key, question)
    return params.model_copy(update={"input_responses": answers, "request_state": result.get("requestState")})


#: Each question with the types of the request and its answer.
QUESTIONS: dict[str, tuple[type[Any], type[Any]]] = {
    "elicitation/create": (types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": (types.ListRootsRequest, types.ListRootsResult),
}


class Events(EventStore):
    """The events of all streams, for clients that come back with the id of the last one they have seen."""

    def __init__(self) -> None:
        self._streams: dict[str, list[tuple[str, types.JSONRPCMessage | None]]] = {}
        self._stream_of: dict[str, str] = {}

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        """Keep an event and return its id; a message of None is the empty event that only tells an id."""
        event_id = f"{os.getpid()}-{len(self._stream_of)}"
        self._stream_of[event_id] = stream_id
        self._streams.setdefault(stream_id, []).append((event_id, message))
        return event_id

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what came later on the stream of this event, and return the stream."""
        stream_id = self._stream_of.get(last_event_id)
        if stream_id is not None:
            events = self._streams[stream_id]
            seen = [event_id for event_id, _ in events].index(last_event_id)
            for event_id, message in events[seen + 1 :]:
                if message is not None:
                    await send_callback(EventMessage(message, event_id))
        return stream_id


def make_server() -> Server[Any]:
    """Return the server."""

    def schema_of(name: str) -> Mapping[str, Any] | None:
        return SCHEMAS.get(name)

    server: Server[Any] = Server(
        NAME, version="1.0", get_tool_input_schema=schema_of, on_subscriptions_listen=Listener()
    )
    server.extensions[EXTENSION] = {}
    for method, (params_type, handler) in METHODS.items():
        server.add_request_handler(method, params_type, era_aware(handler))
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return server


async def health(request: Request) -> Response:
    """Tell that the server is up."""
    return JSONResponse({"status": "ok", "pid": os.getpid()})


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="The MCP server that the conformance suite is run against.")
    parser.add_argument("--port", type=int, required=True, help="the port to listen on, on 127.0.0.1")
    parser.add_argument("--modern-only", action="store_true", help="know no revision that begins with a handshake")
    parser.add_argument("--legacy-only", action="store_true", help="know only revisions that begin with a handshake")
    parser.add_argument("--tasks", type=Path, help="the folder in which tasks outlive the process")
    options = parser.parse_args()
    TASKS.folder = options.tasks
    # Logging is deprecated from 2026-07-28 on; the suite tests it for the revisions before.
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    app = make_server().streamable_http_app(
        event_store=Events(), retry_interval=RETRY, custom_starlette_routes=[Route("/health", health)]
    )
    served: Any = modern_only(app) if options.modern_only else legacy_only(app) if options.legacy_only else app
    uvicorn.run(served, host="127.0.0.1", port=options.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
