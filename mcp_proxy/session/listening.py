"""One ``subscriptions/listen`` of a client's, over the lives of several backends (revision 2026-07-28).

The client's stream outlives the backend's. When the request was made again of the next backend, the client needs no
second acknowledgement; instead it is told that all it listens for may have changed while nobody listened.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView
from typing import Any

from mcp_proxy.wire import jsonrpc, modern, revisions
from mcp_proxy.wire.jsonrpc import Message

#: What a filter may ask for, and what is told when it may have changed.
_LISTS = {
    "toolsListChanged": "notifications/tools/list_changed",
    "promptsListChanged": "notifications/prompts/list_changed",
    "resourcesListChanged": "notifications/resources/list_changed",
}
_RESOURCES = "resourceSubscriptions"
_TASKS = "taskIds"
#: What a task does not leave any more.
_FINAL = ("completed", "failed", "cancelled")


class Listening:
    """What the client was told that it listens for.

    :param identity: the JSON text of the id of its request, which is also that of the subscription.
    """

    def __init__(self, identity: bytes) -> None:
        self._subscription = jsonrpc.value_of(identity)
        self._identity = identity
        self._honoured: dict[str, Any] | None = None
        self._finished: set[str] = set()

    @property
    def is_to_last(self) -> bool:
        """Whether there is more to come: not if all it is for is tasks, and the client knows what became of them."""
        honoured = self._honoured or {}
        tasks = _texts(honoured, _TASKS)
        is_for_more = any(honoured.get(name) for name in _LISTS) or bool(_texts(honoured, _RESOURCES))
        return is_for_more or not tasks or not tasks <= self._finished

    def told(self, message: Message) -> None:
        """The client is told of a change."""
        params = message.params() if message.method == revisions.TASK_CHANGED else {}
        task = params.get("taskId")
        if isinstance(task, str) and task in _texts(self._honoured or {}, _TASKS) and params.get("status") in _FINAL:
            self._finished.add(task)

    @property
    def is_acknowledged(self) -> bool:
        """Whether the client has been told."""
        return self._honoured is not None

    def acknowledged(self, message: Message) -> tuple[list[bytes], bytes | None]:
        """A backend acknowledges: the messages for the client, and the result that ends its request, if it must end.

        A backend that honours less than the one before cannot keep what the client was promised.
        """
        filter_ = message.params().get("notifications")
        honours: dict[str, Any] = filter_ if isinstance(filter_, dict) else {}
        if self._honoured is None:
            self._honoured = honours
            return [message.raw], None
        if not _covers(honours, self._honoured):
            return [], modern.end_of_listen(self._identity)
        return list(self._changes(self._honoured)), None

    def _changes(self, honoured: dict[str, Any]) -> Iterator[bytes]:
        meta = {modern.SUBSCRIPTION: self._subscription}
        for name, method in _LISTS.items():
            if honoured.get(name):
                yield jsonrpc.notification(method, {"_meta": meta})
        for uri in _texts(honoured, _RESOURCES):
            yield jsonrpc.notification(revisions.RESOURCE_UPDATED, {"uri": uri, "_meta": meta})


def _covers(honours: dict[str, Any], promised: dict[str, Any]) -> bool:
    """Whether everything that was promised is honoured still."""
    lists = all(honours.get(name) for name in _LISTS if promised.get(name))
    return lists and all(_texts(promised, name) <= _texts(honours, name) for name in (_RESOURCES, _TASKS))


def _texts(filter_: dict[str, Any], name: str) -> KeysView[str]:
    texts = filter_.get(name)
    return (
        dict.fromkeys(text for text in texts if isinstance(text, str)).keys() if isinstance(texts, list) else {}.keys()
    )
