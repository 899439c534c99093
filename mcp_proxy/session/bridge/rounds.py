"""The questions of a backend of revision 2026-07-28 within one request, for a client that expects them as requests.

Such a backend answers ``input_required`` instead of asking. The client gets its questions as requests of the server's;
when it has answered all of them, its own request is made once more, with the answers in it (specification 2026-07-28,
"Multi round-trip requests"). Pure: nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from attrs import define, field, frozen

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.jsonrpc import Message

#: How often one request may come back with questions, and how many at a time.
MAX_ROUNDS = 32
MAX_QUESTIONS = 100

_ELICIT = "elicitation/create"
_METHODS = (_ELICIT, "sampling/createMessage", "roots/list")
#: What stands for an answer where a client answers with an error, which has no place in a retried request.
_CANCELLED = b'{"action":"cancel"}'

Members = dict[str, msgspec.Raw]
_encode = msgspec.json.encode


class Unanswerable(Exception):
    """The backend asks for what cannot be given; the text says why."""


@frozen
class Again:
    """The request is to be made again, with these members beside its params."""

    members: Members


@frozen
class Ended:
    """The request is over: this error of the client's is its answer."""

    error: bytes


class _InputRequired(msgspec.Struct):
    inputRequests: dict[str, msgspec.Raw] | None = None
    requestState: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Input(msgspec.Struct):
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


@define
class Rounds:
    """The rounds of one request.

    ``asked`` are the questions that the client has not answered, by their ids; ``last`` is what went with the request
    the last time.

    :param next_id: makes ids for questions.
    """

    _next_id: Callable[[], bytes]
    asked: dict[bytes, tuple[str, str]] = field(factory=dict)
    count: int = 0
    last: Again | None = None
    _answers: Members = field(factory=dict)
    _state: msgspec.Raw | None = None

    def begin(self, result: bytes) -> list[bytes] | Again:
        """The backend needs more: the requests for the client, or what to do if it asks nothing.

        :raises Unanswerable: the request cannot go on.
        """
        self.count += 1
        if self.count > MAX_ROUNDS:
            raise Unanswerable(f"the server has asked for more input {MAX_ROUNDS} times")
        try:
            required = msgspec.json.decode(result, type=_InputRequired)
            inputs = {
                key: msgspec.json.decode(each, type=_Input) for key, each in (required.inputRequests or {}).items()
            }
        except (msgspec.DecodeError, RecursionError):
            raise Unanswerable("the server has asked for input in a way that nobody understands") from None
        if len(inputs) > MAX_QUESTIONS or any(each.method not in _METHODS for each in inputs.values()):
            raise Unanswerable("the server has asked for input that no client can give")
        state = required.requestState
        self._answers, self._state = {}, None if isinstance(state, msgspec.UnsetType) else state
        if not inputs and self._state is None:
            raise Unanswerable("the server has asked for input without saying which")
        if not inputs:
            return self._again()
        questions = []
        for key, each in inputs.items():
            identity = self._next_id()
            self.asked[identity] = key, each.method
            questions.append(jsonrpc.request(identity, each.method, _shown(each, identity)))
        return questions

    def answer(self, message: Message) -> Again | Ended | None:
        """The client has answered a question: what is to be done, or None while others are open."""
        key, method = self.asked.pop(message.id or b"", ("", ""))
        if not method:
            return None
        if message.is_error and method != _ELICIT:
            return Ended(message.body)
        self._answers[key] = msgspec.Raw(_CANCELLED if message.is_error else message.body)
        return None if self.asked else self._again()

    def end(self) -> list[bytes]:
        """Nobody needs answers any more: the ids of the questions that are still open."""
        asked, self.asked = list(self.asked), {}
        return asked

    def _again(self) -> Again:
        members: Members = {}
        if self._answers:
            members["inputResponses"] = msgspec.Raw(_encode(self._answers))
        if self._state is not None:
            members["requestState"] = self._state
        self.last = Again(members)
        return self.last


def _shown(asked: _Input, identity: bytes) -> bytes:
    """The params of a question; one that sends the user to a page has an id in the older revisions."""
    params = bytes(asked.params)
    if asked.method != _ELICIT or b'"url"' not in params:
        return params
    try:
        members = msgspec.json.decode(params, type=Members)
    except (msgspec.DecodeError, RecursionError):
        return params
    if msgspec.json.decode(members.get("mode", b"null")) != "url" or "elicitationId" in members:
        return params
    return _encode({**members, "elicitationId": msgspec.Raw(identity)})
