"""What nobody sends in earnest, for hypothesis: odd JSON-RPC messages, and how much of it is tried."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as some

from mcp_proxy.wire import modern, revisions
from tests.support.messages import Json

#: How many times as many examples are tried as usual: ``make fuzz`` has many.
TIMES = int(os.environ.get("FUZZ") or 1)

METHODS = some.sampled_from(
    (
        *sorted(revisions.METHODS),
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/message",
        "notifications/tasks",
        "notifications/roots/list_changed",
        "notifications/tools/list_changed",
        "notifications/resources/updated",
        "notifications/resources/list_changed",
        "notifications/elicitation/complete",
        "notifications/subscriptions/acknowledged",
        "roots/list",
        "sampling/createMessage",
        "elicitation/create",
        "x",
    )
)
#: Members that somebody looks at.
_NAMES = some.sampled_from(
    (
        *("_meta", "_meta", "_meta", "arguments", "capabilities", "clientInfo", "code", "content", "cursor", "data"),
        *("elicitation", "elicitationId", "extensions", "icons", "inputRequests", "inputResponses", "inputSchema"),
        *("instructions", "io.modelcontextprotocol/subscriptionId", "isError", "level", "listChanged", "logging"),
        *("message", "method", "mode", "name", "nextCursor", "notifications", "params", "progress", "progressToken"),
        *("prompts", "promptsListChanged", "protocolVersion", "requestId", "requestState", "resources", "resultType"),
        *("resourceSubscriptions", "resourcesListChanged", "resourceTemplates", "roots", "serverInfo", "subscribe"),
        *("supportedVersions", "task", "taskId", "taskIds", "tasks", "tools", "toolsListChanged", "total", "ttlMs"),
        *("uri", "url", "version", "x-mcp-header", "", "é"),
        *(modern.VERSION, modern.CAPABILITIES, modern.CLIENT_INFO, modern.LOG_LEVEL, modern.SUBSCRIPTION),
    )
)
_WORDS = some.sampled_from(
    (
        *revisions.LEGACY,
        *revisions.MODERN,
        *("2099-01-01", "", "a", "echo", "file:///x", "info", "nonsense", "input_required", "complete", "task", "form"),
        *("url", "mcp-proxy.1.AAAA", "mcp-proxy/1", "\ud83d\ude00", "\ud800", "line\nline", "\0", "x" * 300),
    )
)
ATOMS = (
    some.none()
    | some.booleans()
    | some.integers(-3, 3)
    | some.sampled_from((2**53, -(2**63), 2**64, 10**30, 0.5, 1e300, -0.0))
    | _WORDS
)
VALUES = some.recursive(
    ATOMS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = some.dictionaries(_NAMES, VALUES, max_size=5)
IDS = some.sampled_from((0, 1, 1, 2, "1", "a", "", "é", -1, 2**53, 1.0, "x" * 1000))
ODD_IDS = IDS | VALUES
#: What makes a request one of the revision without sessions.
_ENVELOPE = some.fixed_dictionaries(
    {modern.VERSION: some.just("2026-07-28") | VALUES, modern.CAPABILITIES: some.just({}) | VALUES},
    optional={modern.CLIENT_INFO: VALUES, modern.LOG_LEVEL: VALUES, "progressToken": ODD_IDS},
)


def examples(count: int) -> settings:
    """So many examples, however long each takes; more under ``make fuzz``."""
    return settings(max_examples=count * TIMES, deadline=None)


@some.composite
def params(draw: Any) -> Any:
    """Params of anything."""
    if draw(some.integers(0, 9)) == 0:
        return draw(VALUES)
    value = dict(draw(OBJECTS))
    if draw(some.booleans()):
        value["_meta"] = draw(_ENVELOPE | OBJECTS | some.fixed_dictionaries({"progressToken": ODD_IDS}))
    return value


@some.composite
def message(draw: Any) -> Json:
    """A message that is nearly one, or is one."""
    kind = draw(some.sampled_from(("request", "request", "notification", "result", "error", "odd")))
    value: Json = {"jsonrpc": "2.0"}
    if kind == "odd":
        names = some.sampled_from(("jsonrpc", "id", "method", "params", "result", "error", "x"))
        return {**value, **draw(some.dictionaries(names, VALUES, max_size=5))}
    if kind != "notification":
        value["id"] = draw(IDS if draw(some.integers(0, 9)) else ODD_IDS)
    if kind in ("request", "notification"):
        value["method"] = draw(METHODS)
        if draw(some.integers(0, 4)):
            value["params"] = draw(params())
    elif kind == "result":
        value["result"] = draw(OBJECTS | VALUES)
    else:
        value["error"] = draw(
            some.fixed_dictionaries({"code": some.integers(-32800, 3) | VALUES, "message": VALUES}) | VALUES
        )
    return value
