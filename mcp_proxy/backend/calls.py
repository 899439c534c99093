"""The requests of a modern link's owner, each over all its POSTs.

One request is several POSTs where the backend needs answers of the client's first, or wants to have arguments repeated
in headers that nobody knew of.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Protocol

from attrs import define, evolve, field
from msgspec.structs import replace

from mcp_proxy.backend.response import GATEWAY
from mcp_proxy.session.bridge import to_modern
from mcp_proxy.session.bridge.rounds import Again, Ended, Rounds, Unanswerable
from mcp_proxy.session.exchanges import LARGE, Exchange
from mcp_proxy.session.interfaces import Outgoing, Refusal
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message

#: How many bytes of large requests are kept for the case that they have to be made again.
MAX_KEPT_BYTES = 16 * 1024 * 1024
#: How many pages of tools are read to learn what a tool wants to have repeated in headers.
MAX_PAGES = 20
#: What is answered for a message that is not understood, which may mean that the backend is another one by now.
NOT_UNDERSTOOD = (400, 404, 405, 410)


@define(eq=False)
class Post:
    """One POST, and whom what comes of it is told; ``outer`` is the owner's message that it is for."""

    outgoing: Outgoing
    received: Callable[[Message], None]
    refused: Callable[[Refusal], None]
    outer: Outgoing | None = None
    sent: Callable[[], None] = field(default=lambda: None)

    @property
    def exchange(self) -> Exchange | None:
        """The client's request, if it is for one."""
        return None if self.outer is None else self.outer.exchange


@define(eq=False)
class Call:
    """A request of the owner's; ``post`` is the one under way, ``params`` is None if there is no room for them."""

    outer: Outgoing
    identity: bytes
    method: str
    params: bytes | None
    headers: Headers
    rounds: Rounds
    post: Post | None = None
    has_refreshed: bool = False

    @property
    def exchange(self) -> Exchange | None:
        """The client's request, if it is one."""
        return self.outer.exchange


class ICaller(Protocol):
    """Whose requests these are; a link does this."""

    tools: to_modern.Tools

    def post(
        self,
        method: str,
        params: bytes,
        received: Callable[[Message], None],
        refused: Callable[[Refusal], None],
        outer: Outgoing | None = None,
        *,
        again: Again | None = None,
    ) -> Post:
        """Post a message."""

    def withdraw(self, outgoing: Outgoing) -> None:
        """Close the stream of a POST."""

    def tell(self, message: Message, about: Exchange | None = None) -> None:
        """Something for the owner."""

    def refuse(self, outgoing: Outgoing, refusal: Refusal) -> None:
        """The backend has not taken a message of the owner's."""

    def doubt(self, otherwise: Callable[[], None], outer: Outgoing | None = None, *, is_gateway: bool = False) -> None:
        """A message was refused in a way that may mean that the backend is another one, or has gone."""


class Calls:
    """See the module."""

    def __init__(self, link: ICaller) -> None:
        self._link = link
        self._calls: dict[bytes, Call] = {}
        self._questions: dict[bytes, Call] = {}
        self._learning: list[tuple[Call, Message]] = []  # calls whose headers the backend did not like
        self._count = 0
        self._name = token_hex(4)

    @property
    def is_busy(self) -> bool:
        """Whether the backend owes answers."""
        return any(call.post is not None for call in self._calls.values())

    def clear(self) -> None:
        """The link is over."""
        self._calls.clear()
        self._questions.clear()

    def begin(self, outgoing: Outgoing, message: Message) -> None:
        """A request of the owner's."""
        headers = to_modern.standing(outgoing.headers)
        identity = message.id or b"null"
        call = Call(outgoing, identity, message.method, message.body, headers, Rounds(self._question_id))
        self._calls[identity] = call
        self._try(call)
        if not self._is_kept(call):
            call.params = None

    def find(self, post: Post) -> Call | None:
        """The request that a POST is for."""
        return next((call for call in self._calls.values() if call.post is post), None)

    def cancel(self, identity: bytes) -> None:
        """Nobody wants an answer any more; in this revision, closing the stream says so."""
        call = self._calls.get(identity)
        if call is not None:
            self._finish(call, jsonrpc.error(call.identity, -32603, "The request was cancelled."))

    def _is_kept(self, call: Call) -> bool:
        """Whether there is a reason, and room, to keep the text of a request."""
        size = len(call.params or b"")
        if call.method not in to_modern.ASKING:
            return False
        others = (len(each.params or b"") for each in self._calls.values() if each is not call)
        return size <= LARGE or size + sum(others) <= MAX_KEPT_BYTES

    def _try(self, call: Call, again: Again | None = None) -> None:
        """Make the request; ``again`` has what goes with it."""
        call.post = self._link.post(
            call.method,
            call.params or b"",
            lambda message: self._answered(call, message),
            lambda refusal: self._refused(call, refusal),
            replace(call.outer, headers=call.headers),
            again=again,
        )

    def _finish(self, call: Call, raw: bytes) -> None:
        """The request is answered."""
        self.forget(call)
        self._link.tell(jsonrpc.parse(raw), call.exchange)

    def forget(self, call: Call) -> None:
        """The request is over; questions about it that nobody has answered are cancelled."""
        self._calls.pop(call.identity, None)
        post, call.post = call.post, None
        if post is not None:
            self._link.withdraw(post.outgoing)
        for identity in call.rounds.end():
            self._questions.pop(identity, None)
            cancelled = jsonrpc.notification(revisions.CANCELLED, {"requestId": jsonrpc.value_of(identity)})
            self._link.tell(jsonrpc.parse(cancelled))

    # -- answers -----------------------------------------------------------------------------------------------

    def _answered(self, call: Call, message: Message) -> None:
        """The backend has answered a POST of this request."""
        if self._calls.get(call.identity) is not call:
            return  # it was cancelled while the answer was in doubt
        call.post = None
        if message.is_error:
            self._failed(call, message)
            return
        kind = to_modern.kind_of(message.body)
        if kind == to_modern.COMPLETE:
            is_tools = call.method == revisions.LIST_TOOLS
            result = self._link.tools.learn(message.body) if is_tools else message.body
            self._finish(call, to_modern.plain(result, call.identity))
        elif kind == to_modern.INPUT_REQUIRED and call.method in to_modern.ASKING:
            self._ask(call, message.body)
        else:
            self._finish(call, _impossible(call, f"its result is of the type {kind[:40]!r}, which is not for it"))

    def _failed(self, call: Call, message: Message) -> None:
        """The backend has answered with an error."""
        is_mismatch = to_modern.error_code(message) == to_modern.HEADER_MISMATCH
        if not is_mismatch or call.method != revisions.CALL_TOOL or call.has_refreshed or call.params is None:
            self._finish(call, to_modern.shown_error(message, call.identity))
            return
        call.has_refreshed = True
        self._learning.append((call, message))
        if len(self._learning) == 1:
            self._read_tools(call.headers, b"", 1)

    def _refused(self, call: Call, refusal: Refusal) -> None:
        """The backend has not taken a POST of this request, or nobody knows."""
        if refusal.status in NOT_UNDERSTOOD:
            self._link.doubt(lambda: self._pass_on(call, refusal), call.outer)
        elif refusal.status >= GATEWAY:  # which may have handed it on
            self._link.doubt(lambda: self._pass_on(call, refusal), is_gateway=True)
        else:
            self._pass_on(call, refusal)

    def _pass_on(self, call: Call, refusal: Refusal) -> None:
        """Tell the owner that its request was refused."""
        if self._calls.get(call.identity) is not call:
            return  # it was cancelled meanwhile
        call.post = None
        self.forget(call)
        answer, exchange = refusal.answer, call.exchange
        if answer is not None and exchange is not None:
            own = jsonrpc.error_under(exchange.message.id or b"null", answer.body)
            answer = answer if own is None else evolve(answer, body=own)
        self._link.refuse(call.outer, evolve(refusal, answer=answer, is_genuine=True))

    # -- questions ---------------------------------------------------------------------------------------------

    def _ask(self, call: Call, result: bytes) -> None:
        """The backend needs answers of the client's."""
        try:
            if call.params is None:
                raise Unanswerable("the request was too large to be kept for the answers to the server's questions")
            step = call.rounds.begin(result)
        except Unanswerable as error:
            self._finish(call, _impossible(call, str(error)))
            return
        if isinstance(step, Again):
            self._try(call, step)
            return
        for identity in call.rounds.asked:
            self._questions[identity] = call
        for question in step:
            self._link.tell(jsonrpc.parse(question), call.exchange)

    def _question_id(self) -> bytes:
        self._count += 1
        return f'"{self._name}.{self._count}"'.encode()

    def take_answer(self, outgoing: Outgoing) -> None:
        """The client has answered a question."""
        message = jsonrpc.parse(outgoing.raw)
        call = self._questions.pop(message.id or b"", None)
        if call is None:
            return
        call.headers = to_modern.standing(outgoing.headers)  # the newest credential
        step = call.rounds.answer(message)
        if isinstance(step, Again):
            self._try(call, step)
        elif isinstance(step, Ended):
            self._finish(call, to_modern.failed(step.error, call.identity))

    # -- what tools want to have repeated in headers -----------------------------------------------------------

    def _read_tools(self, headers: Headers, params: bytes, page: int) -> None:
        """Read a page of the tools, on behalf of a call that was refused before it was looked at."""

        def received(message: Message) -> None:
            if message.is_error:
                self._learned(known=False)
                return
            self._link.tools.learn(message.body)
            cursor = message.params().get("nextCursor")
            if isinstance(cursor, str) and cursor and page < MAX_PAGES:
                self._read_tools(headers, to_modern.next_page(cursor), page + 1)
            else:
                self._learned(known=True)

        own = Outgoing(b"", headers, revisions.LIST_TOOLS, repeatable=True)
        self._link.post(revisions.LIST_TOOLS, params, received, lambda _: self._learned(known=False), own)

    def _learned(self, *, known: bool) -> None:
        learning, self._learning = self._learning, []
        for call, message in learning:
            if self._calls.get(call.identity) is not call:
                continue  # it was cancelled meanwhile
            if known:
                self._try(call, call.rounds.last)
            else:
                self._finish(call, to_modern.shown_error(message, call.identity))


def _impossible(call: Call, reason: str) -> bytes:
    """The answer to a request that cannot go on; the backend has looked at it."""
    text = f"The server's answer cannot be given to this client: {reason}."
    return jsonrpc.error(call.identity, -32603, text, {"source": "proxy", "delivered": "yes", "method": call.method})
