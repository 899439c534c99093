"""One request of a client's of revision 2026-07-28 at a backend of an older one, over all the POSTs that it takes.

Where the backend asks the client something, the client's POST is answered with the questions, and the request is
*parked*: it goes on at the backend until the client brings the answers with another POST.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import define, field

from mcp_proxy.session.bridge import to_legacy
from mcp_proxy.session.bridge.to_legacy import Client
from mcp_proxy.session.modern import ModernReply
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message


@define(eq=False)
class Call:
    """See the module.

    ``identity`` is its id at the backend, and its progress token there. ``reply`` is that of the POST that waits for
    it; none while it is parked. ``bound`` is what it asks, and of whom. ``outcome`` is the answer, its id still to be
    set, and its HTTP status, if it came while the call was parked. ``is_refused``: the backend wants URLs visited
    first, and has done nothing.
    ``message`` is there until it was sent. ``initialized`` is what the backend has said of itself.
    """

    identity: bytes
    owner: bytes
    client: Client
    method: str
    bound: bytes
    uri: object
    headers: Headers
    message: Message | None
    reply: ModernReply | None = None
    token: Any = None
    level: str = ""
    outcome: tuple[bytes, int] | None = None
    is_refused: bool = False
    is_over: bool = False
    initialized: dict[str, Any] = field(factory=dict)
    questions: dict[str, tuple[bytes, dict[str, Any]]] = field(factory=dict)
    _count: int = 0

    @classmethod
    def of(cls, message: Message, headers: Headers, owner: bytes, identity: bytes) -> Call:
        """The one that a request asks for."""
        bridged = jsonrpc.parse(to_legacy.request(message, identity))
        bound = owner + to_legacy.digest(message)
        client = Client.of(message)
        method, uri = message.method, message.params().get("uri")
        call = cls(identity, owner, client, method, bound, uri, headers, bridged)
        call.wanted_by(message)
        return call

    def wanted_by(self, message: Message) -> None:
        """The POST that waits for it now says under what it wants to hear of it."""
        self.token = to_legacy.token_of(message)
        self.level = to_legacy.level_of(message)

    @property
    def may_ask(self) -> bool:
        """Whether its answer may be a question."""
        return to_legacy.may_ask(self.method)

    @property
    def needs_certainty(self) -> bool:
        """Whether it matters which request a message of the backend's belongs to."""
        return bool(self.level) or (self.may_ask and self.client.may_be_asked)

    def asked(self, message: Message) -> None:
        """The backend asks something.

        :raises Unaskable: not of this client, not now.
        """
        if not self.may_ask:
            raise to_legacy.Unaskable(to_legacy.METHOD_NOT_FOUND, f"Nothing can be asked before {self.method} ends.")
        if len(self.questions) >= to_legacy.MAX_QUESTIONS:
            raise to_legacy.Unaskable(-32603, "Too many questions are unanswered.")
        shown = to_legacy.question(message.method, message.params(), self.client)
        self._count += 1
        self.questions[f"question{self._count}"] = message.id or b"null", shown

    def refused(self, message: Message) -> None:
        """The backend wants URLs visited first; the client is asked to, if it is one that does such."""
        if self.may_ask:
            visits = to_legacy.visits(message, self.client)
            self.questions = {name: (b"null", each) for name, each in visits.items()}
            self.is_refused = bool(visits)

    def withdrawn(self, identity: bytes | None) -> None:
        """The backend does not want this answer any more."""
        self.questions = {name: each for name, each in self.questions.items() if each[0] != identity}

    def answers(self, given: dict[str, bytes]) -> list[bytes]:
        """Take the answers that the client has brought: as the backend is to see them."""
        found = [(name, given[name]) for name in list(self.questions) if name in given]
        return [jsonrpc.result(self.questions.pop(name)[0], msgspec.Raw(value)) for name, value in found]

    def unanswered(self) -> list[bytes]:
        """The client will not answer any more: what the backend is told."""
        questions, self.questions = self.questions, {}
        text = "The client did not answer in time."
        return [jsonrpc.error(identity, -32603, text, {"source": "proxy"}) for identity, _ in questions.values()]

    def shown(self) -> dict[str, dict[str, Any]]:
        """What the client is asked."""
        return {name: each for name, (_, each) in self.questions.items()}

    def told(self, message: Message) -> bytes | None:
        """What the client hears of a notification of the backend's: progress, and logs that it wants."""
        if message.method == revisions.PROGRESS:
            return None if self.token is None else to_legacy.progress(message, self.token)
        if message.method == to_legacy.LOG and self.level:
            level = message.params().get("level")
            is_severe = level in to_legacy.LEVELS and _severity(str(level)) >= _severity(self.level)
            return message.raw if is_severe else None
        return None


def _severity(level: str) -> int:
    return to_legacy.LEVELS.index(level)


def lowest(levels: list[str]) -> str:
    """The least severe of these; empty if nobody wants logs."""
    return min((level for level in levels if level), key=_severity, default="")
