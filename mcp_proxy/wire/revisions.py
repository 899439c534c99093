"""What the protocol revisions say about methods: the one place that knows them by name.

A method is *safe* when sending it twice is no different from sending it once, by its definition in the
specification (https://modelcontextprotocol.io/specification). ``tools/call`` is not: only its author knows.
"""

from __future__ import annotations

from mcp_proxy.wire.jsonrpc import Message

#: The revisions that begin with a handshake, the oldest first.
LEGACY = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
#: The revisions in which each request stands for itself.
MODERN = ("2026-07-28",)
#: The only revision in which messages may come in arrays.
BATCHING = "2025-03-26"

INITIALIZE = "initialize"
INITIALIZED = "notifications/initialized"
CANCELLED = "notifications/cancelled"
PROGRESS = "notifications/progress"
ROOTS_CHANGED = "notifications/roots/list_changed"
RESOURCE_UPDATED = "notifications/resources/updated"
TASK_CHANGED = "notifications/tasks"
PING = "ping"
SET_LEVEL = "logging/setLevel"
SUBSCRIBE = "resources/subscribe"
UNSUBSCRIBE = "resources/unsubscribe"
CALL_TOOL = "tools/call"
LIST_TOOLS = "tools/list"
DISCOVER = "server/discover"
LISTEN = "subscriptions/listen"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"

#: Each list that a client can read: its method, the member of the result that holds the items, the capability
#: that declares it, and what a client is told when it changed.
LISTS = {
    LIST_TOOLS: ("tools", "tools", "notifications/tools/list_changed"),
    "prompts/list": ("prompts", "prompts", "notifications/prompts/list_changed"),
    "resources/list": ("resources", "resources", "notifications/resources/list_changed"),
    "resources/templates/list": (
        "resourceTemplates",
        "resources",
        "notifications/resources/list_changed",
    ),
}

_SAFE = frozenset(LISTS) | {
    INITIALIZE,  # a link that was lost before the answer never had a session
    PING,
    SET_LEVEL,
    SUBSCRIBE,
    UNSUBSCRIBE,
    "completion/complete",
    "prompts/get",
    "resources/read",
    DISCOVER,
    LISTEN,  # nothing is missed by listening again but what was missed already
    "tasks/get",
    "tasks/list",
    "tasks/result",
}

#: What clients may ask for.
METHODS = _SAFE | {CALL_TOOL, "tasks/cancel", "tasks/update"}

#: Members that carry a client's answers into a retried request: such a request is used up by its first delivery.
_SINGLE_USE = ("inputResponses", "requestState")


def names_version(version: str) -> bool:
    """Whether requests after the handshake must name the revision in a header."""
    return version >= "2025-06-18"


def is_polling(version: str) -> bool:
    """Whether clients take an event without data; earlier ones fail on it."""
    return version >= "2025-11-25"


def is_safe(message: Message) -> bool:
    """Whether a request may be sent again when nobody knows whether it was carried out."""
    if message.method not in _SAFE:
        return False
    return not any(name.encode() in message.body for name in _SINGLE_USE)
