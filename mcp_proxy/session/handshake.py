"""What a backend must be told to know a session again, and what the client must be told afterwards.

``Memory`` watches the traffic and keeps what a restarted backend has forgotten. ``Replay`` is one attempt to teach
a new link: initialize, initialized, log level, subscriptions, and a look at the lists that the client has read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from attrs import define, evolve, field, frozen

from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.jsonrpc import Message

#: How many subscriptions and list pages of one session are remembered.
MAX_SUBSCRIPTIONS = 1000
MAX_PAGES = 100

_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


def _items(page: dict[str, Any], member: str) -> list[dict[str, Any]]:
    """The items of a list page; what is no item is left out, for a backend may send anything."""
    items = page.get(member)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _promise(capabilities: Any) -> bool:
    """Add what the proxy can promise and the backend alone cannot; tells whether that is anything.

    We compare the lists after each restart.
    """
    changed = False
    for name in ("tools", "prompts", "resources"):
        capability = capabilities.get(name) if isinstance(capabilities, dict) else None
        if isinstance(capability, dict) and capability.get("listChanged") is not True:
            capability["listChanged"] = changed = True
    return changed


class HandshakeFailed(Exception):
    """The backend would not have the session; the text says why. ``final``: it never will."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@define
class SeenList:
    """A list as the client has read it: digests of its items, how many pages, and whether that was all."""

    items: set[bytes] = field(factory=set)
    pages: int = 0
    complete: bool = False

    def add(self, page: dict[str, Any], member: str) -> None:
        """Another page of it."""
        self.items.update(
            hashlib.blake2b(_encode_sorted(item), digest_size=12).digest() for item in _items(page, member)
        )
        self.pages += 1
        self.complete = not page.get("nextCursor")


@define
class Memory:
    """All that is remembered of a session for the next link.

    ``initialize`` is the text of the client's params; ``version`` what was negotiated; ``tools`` maps a tool's name
    to whether its own annotations say that calling it again does no harm. ``subscriptions`` are the client's, each with
    whether this backend took it: one that does not know the resource yet may be followed by one that does.
    """

    initialize: bytes = b""
    version: str = ""
    initialized: bool = False
    capabilities: tuple[str, ...] = ()
    level: bytes = b""
    subscriptions: dict[str, bool] = field(factory=dict)
    lists: dict[str, SeenList] = field(factory=dict)
    tools: dict[str, bool] = field(factory=dict)

    def borrowed(self) -> Memory:
        """What another stream of the same client may start from: the handshake and nothing else."""
        return Memory(self.initialize, self.version, initialized=True, capabilities=self.capabilities)

    def answered(self, request: Message, response: Message) -> bytes:
        """A request was answered: remember what matters; return the answer as the client is to see it."""
        if response.is_error:
            if request.method == revisions.UNSUBSCRIBE:
                self._unsubscribe(request, unless_honoured=True)
            return response.raw
        if request.method == revisions.INITIALIZE:
            return self._initialized(request, response)
        if request.method in revisions.LISTS:
            self._read_list(request, response.params())
        elif request.method == revisions.SET_LEVEL:
            self.level = request.body
        elif request.method == revisions.SUBSCRIBE:
            uri = request.params().get("uri")
            if isinstance(uri, str) and len(self.subscriptions) < MAX_SUBSCRIPTIONS:
                self.subscriptions[uri] = True
        elif request.method == revisions.UNSUBSCRIBE:
            self._unsubscribe(request)
        return response.raw

    def _unsubscribe(self, request: Message, *, unless_honoured: bool = False) -> None:
        uri = str(request.params().get("uri"))
        if not (unless_honoured and self.subscriptions.get(uri)):
            self.subscriptions.pop(uri, None)

    def _initialized(self, request: Message, response: Message) -> bytes:
        shown = response.params()
        capabilities = shown.get("capabilities")
        capabilities = capabilities if isinstance(capabilities, dict) else {}
        self.initialize = request.body if request.body.startswith(b"{") else b"{}"
        self.version = str(shown.get("protocolVersion", ""))
        self.capabilities = tuple(capabilities)
        return jsonrpc.result(response.id or b"null", shown) if _promise(capabilities) else response.raw

    def _read_list(self, request: Message, page: dict[str, Any]) -> None:
        member = revisions.LISTS[request.method][0]
        seen = self.lists.get(request.method)
        if seen is None or not request.params().get("cursor"):
            seen = self.lists[request.method] = SeenList()
            if request.method == revisions.LIST_TOOLS:
                self.tools = {}
        if seen.pages < MAX_PAGES:
            seen.add(page, member)
            if request.method == revisions.LIST_TOOLS:
                self.learn_tools(page)

    def learn_tools(self, page: dict[str, Any]) -> None:
        """Remember which tools of a page say that they may be called again."""
        for tool in _items(page, "tools"):
            hints = tool.get("annotations")
            hints = hints if isinstance(hints, dict) else {}
            self.tools[str(tool.get("name"))] = hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True


@frozen
class Step:
    """One message of a replay; ``barrier``: nothing may overtake it."""

    raw: bytes
    method: str
    barrier: bool = False


@define
class Replay:
    """One attempt to restore a session on a new link.

    Feed it the backend's answers to our own requests; send what it returns. It is over when ``done`` is true.

    :param next_id: makes ids of our own for requests.
    """

    memory: Memory
    next_id: Callable[[], bytes]
    done: bool = False
    refused: list[str] = field(factory=list)
    changed: list[str] = field(factory=list)
    initialized: dict[str, Any] = field(factory=dict)  # what the backend says of itself, with our promises
    _awaited: dict[bytes, tuple[str, str]] = field(factory=dict)
    _fresh: dict[str, SeenList] = field(factory=dict)

    def begin(self) -> list[Step]:
        """The first message: initialize, offering what was negotiated, as the client itself would."""
        params = msgspec.json.decode(self.memory.initialize, type=dict[str, msgspec.Raw])
        if self.memory.version:
            params["protocolVersion"] = msgspec.Raw(msgspec.json.encode(self.memory.version))
        return [self._ask(revisions.INITIALIZE, msgspec.json.encode(params))]

    def answer(self, message: Message) -> list[Step]:
        """The backend answered a request of ours; return what is to be sent next.

        :raises HandshakeFailed: it refused to initialize.
        """
        method, subject = self._awaited.pop(message.id or b"", ("", ""))
        steps: list[Step] = []
        if method == revisions.INITIALIZE:
            if message.is_error:
                raise HandshakeFailed(f"the backend refused initialize: {message.params().get('message', '')!s:.200}")
            version = str(message.params().get("protocolVersion") or self.memory.version)
            if version not in (self.memory.version, *revisions.LEGACY):
                raise HandshakeFailed(
                    f"the backend speaks revision {version:.40} now, which the proxy does not", final=True
                )
            self.initialized = message.params()
            _promise(self.initialized.get("capabilities"))
            if self.memory.initialized:
                steps = list(self._after_initialize())
        elif method in revisions.LISTS:
            steps = self._compare(method, message)
        else:
            if subject in self.memory.subscriptions:
                self.memory.subscriptions[subject] = not message.is_error
            if method and message.is_error:
                self.refused.append(f"{method} {subject}".strip())
        self.done = not self._awaited
        return steps

    def is_own(self, identity: bytes | None) -> bool:
        """Whether this is the id of a request of this replay."""
        return identity in self._awaited

    def _after_initialize(self) -> Iterator[Step]:
        yield Step(jsonrpc.notification(revisions.INITIALIZED), revisions.INITIALIZED, barrier=True)
        if self.memory.level:
            yield evolve(self._ask(revisions.SET_LEVEL, self.memory.level), barrier=True)
        for uri in self.memory.subscriptions:
            yield self._ask(revisions.SUBSCRIBE, msgspec.json.encode({"uri": uri}), uri)
        for method in self.memory.lists:
            if method == revisions.LIST_TOOLS:
                self.memory.tools = {}  # what the old backend said of its tools no longer counts
            self._fresh[method] = SeenList()
            yield self._ask(method)

    def _ask(self, method: str, params: bytes = b"", subject: str = "") -> Step:
        identity = self.next_id()
        self._awaited[identity] = (method, subject)
        return Step(jsonrpc.request(identity, method, params), method)

    def _compare(self, method: str, message: Message) -> list[Step]:
        """A page of a list that the client has read came: does it still see the truth?"""
        seen, fresh = self.memory.lists[method], self._fresh[method]
        member, _, notification = revisions.LISTS[method]
        if not message.is_error:
            page = message.params()
            fresh.add(page, member)
            if method == revisions.LIST_TOOLS:
                self.memory.learn_tools(page)
            if not fresh.complete and fresh.pages < seen.pages:
                return [self._ask(method, msgspec.json.encode({"cursor": page["nextCursor"]}))]
        if (fresh.items, fresh.complete) != (seen.items, seen.complete) and notification not in self.changed:
            self.changed.append(notification)
        return []
