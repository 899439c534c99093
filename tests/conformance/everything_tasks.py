"""The tasks that the conformance suite wants of a server: calls that go on after their answer (extension SEP-2663).

The Python SDK knows nothing of them, so all of it is here: the tools, the methods ``tasks/...``, and what a listen
tells of them. The work is lost with the process; a server that has a folder then knows its tasks as failed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server.subscriptions import SUBSCRIPTION_ID_META_KEY, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value

from tests.conformance.everything_tools import CHANGES, Context, Input, Json, content, form, form_question, text, tool

EXTENSION = "io.modelcontextprotocol/tasks"
#: Milliseconds for which a task is kept at least, and between two questions how it is doing.
TTL, POLL_INTERVAL = 3_600_000, 200
#: Seconds that a job works before it fails.
EFFORT = 0.2

#: Asks the client these questions; returns the answers by key.
Ask = Callable[[dict[str, Json]], Awaitable[dict[str, Json]]]
Work = Callable[[Ask], Awaitable[Json]]


class Task:
    """What became of one call.

    :ivar questions: those that wait for an answer, by key.
    :ivar outcome: what it ended with: its ``result`` or its ``error``.
    """

    def __init__(self, work: Work, identity: str) -> None:
        self.identity = identity
        self.status = "working"
        self.questions: dict[str, Json] = {}
        self.outcome: Json = {}
        self._answers: dict[str, Json] = {}
        self._created = self._updated = _now()
        self._changed = asyncio.Event()
        self._work = asyncio.create_task(self._run(work))

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("completed", "failed", "cancelled")

    @property
    def summary(self) -> Json:
        """What each answer tells of it."""
        times: Json = {"createdAt": self._created, "lastUpdatedAt": self._updated}
        return {"taskId": self.identity, "status": self.status, **times, "ttlMs": TTL, "pollIntervalMs": POLL_INTERVAL}

    @property
    def details(self) -> Json:
        """All there is to tell."""
        asked: Json = {"inputRequests": dict(self.questions)} if self.status == "input_required" else {}
        return {**self.summary, **asked, **self.outcome}

    async def changes(self) -> AsyncIterator[Json]:
        """Tell how it is now and whenever that changes, until it is over."""
        while True:
            changed, over = self._changed, self.is_over
            yield self.details
            if over:
                return
            await changed.wait()

    def answer(self, answers: dict[str, Json]) -> None:
        """Take answers; those to nothing that was asked are ignored."""
        for key in answers.keys() & self.questions.keys():
            del self.questions[key]
            self._answers[key] = answers[key]
        self._change("input_required" if self.questions else "working")

    def cancel(self) -> None:
        """End it, unless it is over."""
        self._change("cancelled")
        self._work.cancel()

    async def _run(self, work: Work) -> None:
        try:
            self.outcome = {"result": await work(self._ask)}
            self._change("completed")
        except MCPError as error:
            self.outcome = {"error": {"code": error.error.code, "message": error.error.message}}
            self._change("failed")

    async def _ask(self, questions: dict[str, Json]) -> dict[str, Json]:
        self.questions = dict(questions)
        self._change("input_required")
        while self.questions:
            await self._changed.wait()
        return self._answers

    def _change(self, status: str) -> None:
        if not self.is_over:
            self.status, self._updated = status, _now()
            self._changed.set()
            self._changed = asyncio.Event()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


class Tasks:
    """All of them.

    :ivar folder: where a process leaves their names for the next one, if it does.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._tasks: dict[str, Task] = {}

    def begin(self, work: Work, identity: str = "") -> Task:
        """Begin one."""
        task = Task(work, identity or secrets.token_urlsafe(16))
        self._tasks[task.identity] = task
        if self.folder is not None:
            (self.folder / f"{task.identity}.task").touch()
        return task

    def find(self, identity: str) -> Task | None:
        """Return one; of those that another process has begun nothing is left but that they cannot succeed."""
        kept = () if self.folder is None else (path.stem for path in self.folder.glob("*.task"))
        if identity not in self._tasks and identity in kept:
            return self.begin(_lost, identity)
        return self._tasks.get(identity)


async def _lost(ask: Ask) -> Json:
    raise MCPError(types.INTERNAL_ERROR, "the server has ended before the task")


TASKS = Tasks()


# Tools --------------------------------------------------------------------------------------------------------------


def missing() -> MCPError:
    """Return what is said to a client that does not know of tasks, where there is no other way."""
    needed: Json = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
    return MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "this needs tasks", needed)


def knows_tasks(context: Context) -> bool:
    """Whether the client declares, in this request, that it knows of tasks."""
    capabilities = context.session.client_capabilities
    return EXTENSION in ((capabilities.extensions if capabilities else None) or {})


async def begun(call: Input, work: Work, *, is_required: bool = False) -> Json:
    """Return the task that does this work; for a client without tasks, the result of the work."""
    if call.is_stateless and knows_tasks(call.context):
        return {"resultType": "task", **TASKS.begin(work).summary}
    if is_required:
        raise missing()

    async def ask(questions: dict[str, Json]) -> dict[str, Json]:
        return call.given(questions)

    return await work(ask)


@tool(schema=form(name="string"))
async def greet(call: Input) -> Json:
    """Greet, which is never a task."""
    return content(text(f"Hello, {call.arguments['name']}!"))


@tool(schema={"type": "object", "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}}})
async def slow_compute(call: Input) -> Json:
    """Take so many seconds; none is no task."""
    seconds = call.arguments.get("seconds", 0)

    async def work(ask: Ask) -> Json:
        await asyncio.sleep(seconds)
        return content(text(f"{call.arguments.get('label', 'computed')} after {seconds} s"))

    return await begun(call, work) if seconds else content(text("computed at once"))


@tool()
async def failing_job(call: Input) -> Json:
    """Work for a while, and return that it was in vain."""

    async def work(ask: Ask) -> Json:
        await asyncio.sleep(EFFORT)
        return {**content(text("the job has failed")), "isError": True}

    return await begun(call, work, is_required=True)


@tool()
async def protocol_error_job(call: Input) -> Json:
    """Work for a while, and end without a result."""

    async def work(ask: Ask) -> Json:
        await asyncio.sleep(EFFORT)
        raise MCPError(types.INTERNAL_ERROR, "the job has broken down")

    return await begun(call, work)


@tool(schema=form(filename="string"))
async def confirm_delete(call: Input) -> Json:
    """Ask whether to delete a file."""
    question = form_question(f"Delete {call.arguments['filename']}?", confirm="boolean")

    async def work(ask: Ask) -> Json:
        answer = (await ask({"confirm": question}))["confirm"]
        return content(text("deleted" if (answer.get("content") or {}).get("confirm") else "kept"))

    return await begun(call, work)


@tool()
async def multi_input(call: Input) -> Json:
    """Ask two questions at once."""
    questions = {key: form_question(f"What is your {key} name?", name="string") for key in ("first", "last")}

    async def work(ask: Ask) -> Json:
        answers = await ask(questions)
        return content(text(" ".join(str(answers[key].get("content")) for key in questions)))

    return await begun(call, work)


@tool()
async def test_tool_with_task(call: Input) -> Json:
    """Ask for a name first, and begin a task then."""
    if not knows_tasks(call.context):
        raise missing()
    answer = call.given({"user_name": form_question("What is your name?", name="string")})["user_name"]

    async def work(ask: Ask) -> Json:
        await asyncio.sleep(EFFORT)
        return content(text(f"Hello, {(answer.get('content') or {}).get('name')}!"))

    return await begun(call, work, is_required=True)


# Methods ------------------------------------------------------------------------------------------------------------


class TaskParams(types.RequestParams):
    """What names a task."""

    task_id: str


class UpdateParams(TaskParams):
    """What answers its questions."""

    input_responses: dict[str, dict[str, Any]]


def named(context: Context, params: TaskParams) -> Task:
    """Return the task.

    :raises MCPError: the client does not know of tasks, the header names another one, or there is no such task.
    """
    if not knows_tasks(context):
        raise missing()
    headers = {} if context.request is None else context.request.headers
    if decode_header_value(headers.get(MCP_NAME_HEADER)) != params.task_id:
        raise MCPError(types.HEADER_MISMATCH, f"{MCP_NAME_HEADER} header does not match the request body's 'taskId'")
    task = TASKS.find(params.task_id)
    if task is None:
        raise MCPError(types.INVALID_PARAMS, "Unknown task", {"taskId": params.task_id})
    return task


async def get_task(context: Context, params: TaskParams) -> Json:
    """Answer ``tasks/get``."""
    return named(context, params).details


async def update_task(context: Context, params: UpdateParams) -> Json:
    """Answer ``tasks/update``."""
    named(context, params).answer(params.input_responses)
    return {}


async def cancel_task(context: Context, params: TaskParams) -> Json:
    """Answer ``tasks/cancel``."""
    named(context, params).cancel()
    return {}


class Listener:
    """Answers ``subscriptions/listen``: the SDK does, but where tasks are asked for; then only they are told of."""

    def __init__(self) -> None:
        self._others = ListenHandler(CHANGES)

    async def __call__(
        self, context: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Serve one stream."""
        wanted = (params.notifications.model_extra or {}).get("taskIds")
        if not wanted:
            return await self._others(context, params)
        if not knows_tasks(context):
            raise missing()
        tasks = [task for task in map(TASKS.find, wanted) if task is not None]
        meta: Json = {SUBSCRIPTION_ID_META_KEY: context.request_id}

        async def send(method: str, body: Json) -> None:
            notification: Any = types.JSONRPCNotification(jsonrpc="2.0", method=method, params={**body, "_meta": meta})
            await context.session.send_notification(notification, related_request_id=context.request_id)

        async def follow(task: Task) -> None:
            async for details in task.changes():
                await send("notifications/tasks", details)

        honoured = {"notifications": {"taskIds": [task.identity for task in tasks]}}
        await send("notifications/subscriptions/acknowledged", honoured)
        await asyncio.gather(*(follow(task) for task in tasks))
        return types.SubscriptionsListenResult(_meta=meta)
