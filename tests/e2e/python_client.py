"""A client of the official Python SDK, 1.x or 2.x, driven by a test: ``python -m tests.e2e.python_client``.

It and the clients in ``typescript`` understand the same commands. A command is one line of JSON on stdin, its
answer one line on stdout, when it is ready: commands do not wait for each other. One process can be many
clients; a command names its own by ``client``.

    {"id": 1, "client": "a", "do": "call", "tool": "echo", "arguments": {"text": "hi"}}
    {"id": 1, "value": {"text": "hi", "progress": []}}
    {"id": 1, "error": {"code": -31002, "message": "...", "data": {...}}}

==========  ===================  ===========================================================================
do          with                 value
==========  ===================  ===========================================================================
connect     url, transport       the server's capabilities; the client stays connected until the process ends.
                                 The transport is "sse" or "streamable", or "modern" for 2026-07-28
list                             the names of the tools
call        tool, arguments      text, progress (the numbers reported)
read        uri                  the text of the resource
resources                        the URIs of the resources
prompts                          the names of the prompts
prompt      name, arguments      the text of the prompt
subscribe   uri                  null
set_level   level                null
ping                             null
cancel      tool                 null; the calls of this tool are cancelled
seen                             every request and notification that has come from the server, oldest first
version                          the revision; for the transport "modern" of 2.x, as the next three
listen       uris                null, when the server has agreed to tell of changes of these resources
events                           the changes that it has told of, as text
reported                         the numbers that calls of the client were told, oldest first
hold                             null; from now on, requests of the server are not answered
release                          null; they are answered again, and those that came meanwhile as well
==========  ===================  ===========================================================================

An error whose ``code`` is null is not one that the server or the proxy answered with.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import anyio
import mcp
from anyio.streams.memory import MemoryObjectReceiveStream
from mcp import ClientSession, types
from mcp.client import streamable_http
from mcp.client.sse import sse_client
from mcp.shared.message import SessionMessage
from pydantic import AnyUrl

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]

IS_SDK2 = version("mcp").startswith("2.")
SDKError: type[Exception] = getattr(mcp, "MCPError" if IS_SDK2 else "McpError")
#: As patient as the TypeScript SDK is by default; this one would wait for ever. The unit depends on the SDK.
REQUEST_TIMEOUT: Any = 60.0 if IS_SDK2 else timedelta(seconds=60)

TRANSPORTS: dict[str, Callable[[str], Any]] = {
    "sse": sse_client,
    # An early 1.x has only the older spelling.
    "streamable": getattr(streamable_http, "streamable_http_client", None) or streamable_http.streamablehttp_client,
}

# 2.x warns of everything that the revision 2026-07-28 has no more.
warnings.filterwarnings("ignore", ".* 2026-07-28")


class Client:
    """One client: its commands are the methods called ``do_...``."""

    def __init__(self) -> None:
        self._session: ClientSession
        self._seen: list[dict[str, Any]] = []
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._calls: dict[str, list[tuple[int, asyncio.Task[Any]]]] = {}
        self._events: list[str] = []
        self._reported: list[float] = []
        self._listening: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None

    async def do_connect(self, url: str, transport: str) -> Any:
        ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        is_modern = transport == "modern"
        life = self._live_without_session(url, ready) if is_modern else self._live(TRANSPORTS[transport](url), ready)
        self._life = asyncio.create_task(life)
        return await ready

    async def _live_without_session(self, url: str, ready: asyncio.Future[Any]) -> None:
        """Find out which revision the server speaks, as clients of 2026-07-28 do; only 2.x can."""
        try:
            make: Any = getattr(mcp, "Client")  # noqa: B009
            callbacks = {"sampling_callback": self._sample, "elicitation_callback": self._elicit}
            async with make(url, mode="auto", read_timeout_seconds=REQUEST_TIMEOUT, **callbacks) as self._session:
                found: Any = self._session
                ready.set_result(found.server_capabilities.model_dump(by_alias=True, exclude_none=True))
                await asyncio.Event().wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def do_version(self) -> Any:
        session: Any = self._session
        return session.protocol_version

    async def do_listen(self, uris: list[str]) -> None:
        session: Any = self._session
        ready = asyncio.get_running_loop().create_future()

        async def listen() -> None:
            async with session.listen(resource_subscriptions=uris) as events:
                ready.set_result(None)
                async for event in events:
                    self._events.append(repr(event))

        self._listening = asyncio.create_task(listen())
        await ready

    async def do_events(self) -> Any:
        return self._events

    async def _live(self, connection: Any, ready: asyncio.Future[Any]) -> None:
        try:
            async with (
                connection as (incoming, outgoing, *_),
                self._watched(incoming) as seen,
                ClientSession(
                    seen,
                    outgoing,
                    REQUEST_TIMEOUT,
                    sampling_callback=self._sample,
                    elicitation_callback=self._elicit,
                ) as self._session,
            ):
                shown = await self._session.initialize()
                ready.set_result(shown.capabilities.model_dump(by_alias=True, exclude_none=True))
                await asyncio.Event().wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)

    @asynccontextmanager
    async def _watched(self, incoming: Incoming) -> AsyncIterator[Incoming]:
        """Pass every message on, and note those that are not answers.

        This has to happen before the SDK gets them: it handles one after the other, and swallows some.
        """
        writer, reader = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)

        async def relay() -> None:
            async with incoming, writer:
                async for item in incoming:
                    if isinstance(item, SessionMessage):
                        message = item.message.model_dump(by_alias=True, mode="json", exclude_none=True)
                        if "method" in message:
                            self._seen.append(message)
                    await writer.send(item)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay)
            yield reader
            tasks.cancel_scope.cancel()

    async def _sample(self, context: Any, params: Any) -> types.CreateMessageResult:
        await self._may_answer.wait()
        content = types.TextContent(type="text", text="blue")
        return types.CreateMessageResult(role="assistant", content=content, model="none")

    async def _elicit(self, context: Any, params: Any) -> types.ElicitResult:
        await self._may_answer.wait()
        return types.ElicitResult(action="accept", content={"answer": "blue"})

    async def do_list(self) -> Any:
        return [tool.name for tool in (await self._session.list_tools()).tools]

    async def do_call(self, tool: str, arguments: dict[str, Any]) -> Any:
        numbers: list[float] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            numbers.append(progress)
            self._reported.append(progress)

        task = asyncio.current_task()
        assert task is not None
        self._calls.setdefault(tool, []).append((getattr(self._session, "_request_id", 0), task))
        called = await self._session.call_tool(tool, arguments, progress_callback=on_progress)
        result = called.model_dump(by_alias=True)
        text = "".join(part["text"] for part in result["content"] if part["type"] == "text")
        if result["isError"]:
            raise RuntimeError(text)
        return {"text": text, "progress": numbers}

    async def do_cancel(self, tool: str) -> None:
        """The SDK 1.x cannot cancel but by saying so; 2.x says so itself when the task is cancelled that waits."""
        for identity, task in self._calls.get(tool, []):
            if IS_SDK2:
                task.cancel()
                continue
            params = types.CancelledNotificationParams(**{"requestId": identity})
            cancelled: Any = types.CancelledNotification(method="notifications/cancelled", params=params)
            await self._session.send_notification(types.ClientNotification(cancelled))

    async def do_read(self, uri: str) -> Any:
        (content,) = (await self._session.read_resource(url(uri))).contents
        assert isinstance(content, types.TextResourceContents)
        return content.text

    async def do_resources(self) -> Any:
        return [str(resource.uri) for resource in (await self._session.list_resources()).resources]

    async def do_prompts(self) -> Any:
        return [prompt.name for prompt in (await self._session.list_prompts()).prompts]

    async def do_prompt(self, name: str, arguments: dict[str, str]) -> Any:
        (message,) = (await self._session.get_prompt(name, arguments)).messages
        assert isinstance(message.content, types.TextContent)
        return message.content.text

    async def do_subscribe(self, uri: str) -> None:
        await self._session.subscribe_resource(url(uri))

    async def do_set_level(self, level: types.LoggingLevel) -> None:
        await self._session.set_logging_level(level)

    async def do_ping(self) -> None:
        await self._session.send_ping()

    async def do_seen(self) -> Any:
        return self._seen

    async def do_reported(self) -> Any:
        return self._reported

    async def do_hold(self) -> None:
        self._may_answer.clear()

    async def do_release(self) -> None:
        self._may_answer.set()


def url(uri: str) -> Any:
    """Return what the SDK takes for a URI."""
    return uri if IS_SDK2 else AnyUrl(uri)


async def perform(client: Client, id: int, do: str, **arguments: Any) -> None:
    """Perform a command and print its answer."""
    answer: dict[str, Any] = {"id": id}
    try:
        answer["value"] = await getattr(client, f"do_{do}")(**arguments)
    except SDKError as exception:
        error: types.ErrorData = exception.error  # type: ignore[attr-defined]
        answer["error"] = {"code": error.code, "message": error.message, "data": error.data}
    except Exception as error:
        answer["error"] = {"code": None, "message": repr(error), "data": None}
    print(json.dumps(answer), flush=True)


async def perform_all() -> None:
    """Perform the commands on stdin, until it ends."""
    clients: dict[str, Client] = {}
    tasks = set()
    async for line in anyio.wrap_file(sys.stdin):
        command = json.loads(line)
        name = command.pop("client")
        client = clients.setdefault(name, Client())
        task = asyncio.create_task(perform(client, **command))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def main() -> None:
    """Serve the test."""
    asyncio.run(perform_all())


if __name__ == "__main__":
    main()
