"""The listens of one client at a backend of an older revision, which tells of changes without being asked for each.

Resources are subscribed to once, however many listen for them. Where the client's stream is full, what is to be told is
remembered, not kept: one change is as good as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field

from mcp_proxy.session.modern import ModernReply
from mcp_proxy.wire import jsonrpc, modern, revisions
from mcp_proxy.wire.jsonrpc import Message

#: Which capability a list belongs to, and what tells of its changes.
_LISTS = {
    "toolsListChanged": ("tools", "notifications/tools/list_changed", "tools/list"),
    "promptsListChanged": ("prompts", "notifications/prompts/list_changed", "prompts/list"),
    "resourcesListChanged": ("resources", "notifications/resources/list_changed", "resources/list"),
}
_RESOURCES = "resourceSubscriptions"
#: How many resources one client may listen for in all.
MAX_RESOURCES = 1000
#: How many pages of a list are read to notice its changes.
MAX_PAGES = 100

#: Asks the backend: method, params, and what is done with the answer (None: it was refused).
Ask = Callable[[str, "dict[str, Any]", Callable[["Message | None"], None]], None]


@define(eq=False)
class Listen:
    """One of them: what is honoured, which answers are awaited before that is told, what is to be told."""

    reply: ModernReply
    lists: dict[str, bool]
    uris: set[str] = field(factory=set)
    awaited: set[str] = field(factory=set)
    is_acknowledged: bool = False
    missed: dict[bytes, None] = field(factory=dict)

    @property
    def filter(self) -> dict[str, Any]:
        """What is honoured, as the client is told."""
        return {**self.lists, **({_RESOURCES: sorted(self.uris)} if self.uris else {})}

    @property
    def meta(self) -> dict[str, Any]:
        """What each of its messages carries."""
        return {modern.SUBSCRIPTION: jsonrpc.value_of(self.reply.identity)}


class Listens:
    """See the module.

    :param ask: asks the backend.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._open: list[Listen] = []
        self._watched: set[str] = set()  # lists that have been read

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, reply: ModernReply, message: Message, capabilities: dict[str, Any]) -> None:
        """A client listens; it is told what for when the backend has agreed."""
        wanted = message.params().get("notifications")
        wanted = wanted if isinstance(wanted, dict) else {}
        lists = {name: True for name, (own, _, _) in _LISTS.items() if wanted.get(name) is True and own in capabilities}
        listen = Listen(reply, lists)
        self._open.append(listen)
        reply.on_over = lambda: self._left(listen)
        reply.on_resume = lambda: self._catch_up(listen)
        for name in lists:
            self._watch(_LISTS[name][2])
        resources = capabilities.get("resources")
        if isinstance(resources, dict) and resources.get("subscribe") is True:
            self._subscribe(listen, wanted.get(_RESOURCES))
        self._acknowledge(listen)

    def _subscribe(self, listen: Listen, uris: object) -> None:
        known = {uri for each in self._open for uri in each.uris}
        wanted = [uri for uri in uris if isinstance(uri, str)] if isinstance(uris, list) else []
        for uri in dict.fromkeys(wanted):
            if uri in known:
                listen.uris.add(uri)
            elif len(known) + len(listen.awaited) < MAX_RESOURCES:
                listen.awaited.add(uri)
        for uri in list(listen.awaited):
            self._ask(revisions.SUBSCRIBE, {"uri": uri}, lambda answer, uri=uri: self._subscribed(listen, uri, answer))  # type: ignore[misc]

    def _subscribed(self, listen: Listen, uri: str, answer: Message | None) -> None:
        listen.awaited.discard(uri)
        if answer is not None:
            if listen in self._open:
                listen.uris.add(uri)
            else:
                self._unsubscribe({uri})
        self._acknowledge(listen)

    def _acknowledge(self, listen: Listen) -> None:
        if listen.awaited or listen.is_acknowledged or listen not in self._open:
            return
        listen.is_acknowledged = True
        params = {"notifications": listen.filter, "_meta": listen.meta}
        listen.reply.acknowledge(jsonrpc.parse(jsonrpc.notification(revisions.ACKNOWLEDGED, params)))

    def changed(self, message: Message) -> None:
        """The backend tells of a change, or may have changed while it was away."""
        uri = message.params().get("uri") if message.method == revisions.RESOURCE_UPDATED else None
        for listen in list(self._open):
            if listen.is_acknowledged and _concerns(listen, message.method, uri):
                params = {"_meta": listen.meta} if uri is None else {"uri": uri, "_meta": listen.meta}
                raw = jsonrpc.notification(message.method, params)
                if listen.reply.paused:
                    listen.missed[raw] = None
                else:
                    listen.reply.tell(raw)

    def _catch_up(self, listen: Listen) -> None:
        missed, listen.missed = listen.missed, {}
        for raw in missed:
            listen.reply.tell(raw)

    def _left(self, listen: Listen) -> None:
        if listen in self._open:
            self._open.remove(listen)
            self._unsubscribe(listen.uris)

    def _unsubscribe(self, uris: set[str]) -> None:
        for uri in sorted(uris - {uri for each in self._open for uri in (*each.uris, *each.awaited)}):
            self._ask(revisions.UNSUBSCRIBE, {"uri": uri}, lambda _: None)

    def restored(self, capabilities: dict[str, Any], uris: set[str]) -> None:
        """Another backend: what it does not honour any more ends with a result."""
        for listen in list(self._open):
            is_honoured = listen.uris <= uris and all(_LISTS[name][0] in capabilities for name in listen.lists)
            if listen.is_acknowledged and not is_honoured:
                self._finish(listen)

    def _finish(self, listen: Listen) -> None:
        listen.reply.finish(modern.end_of_listen(listen.reply.identity))

    def end(self) -> None:
        """Nobody tells of anything any more: whoever listens gets the result that says so."""
        listens, self._open = self._open, []
        self._watched.clear()
        for listen in listens:
            self._finish(listen)

    def _watch(self, method: str, cursor: str = "", page: int = 1) -> None:
        """Read a list, so that the session notices when the next backend has another."""
        if not cursor:
            if method in self._watched:
                return
            self._watched.add(method)

        def done(answer: Message | None) -> None:
            next_cursor = None if answer is None else answer.params().get("nextCursor")
            if isinstance(next_cursor, str) and next_cursor and page < MAX_PAGES:
                self._watch(method, next_cursor, page + 1)

        self._ask(method, {"cursor": cursor} if cursor else {}, done)


def _concerns(listen: Listen, method: str, uri: object) -> bool:
    if uri is not None:
        return uri in listen.uris
    return any(listen.lists.get(name) and told == method for name, (_, told, _) in _LISTS.items())
