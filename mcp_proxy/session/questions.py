"""What the backend asks the client (sampling, elicitation, roots), and who may answer it.

A restarted backend counts its request ids from the start again, so the client sees ids of ours that no other link
has used, and an answer to a link that has gone finds nobody.
"""

from __future__ import annotations

from attrs import frozen

from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.jsonrpc import Message

#: How many questions may be unanswered at the same time.
MAX_QUESTIONS = 1000


@frozen
class Question:
    """One of them: its id at the backend, and the client's request that it is about, if that is known.

    ``is_ping``: it asks for a sign of life, and nothing depends on the answer.
    """

    backend_id: bytes
    about: Exchange | None
    is_ping: bool


class Questions:
    """The requests of one session's backend that the client has not answered yet. Pure: nothing is sent here."""

    __slots__ = ("_count", "_open")

    def __init__(self) -> None:
        self._open: dict[bytes, Question] = {}  # by the id that the client knows
        self._count = 0

    def __len__(self) -> int:
        return len(self._open)

    def asked(self, message: Message, generation: int, about: Exchange | None) -> bytes | None:
        """The backend asks: the request as the client is to see it, or None if too many are unanswered."""
        if len(self._open) >= MAX_QUESTIONS:
            return None
        self._count += 1
        identity = b'"%d.%d"' % (generation, self._count)
        self._open[identity] = Question(message.id or b"", about, message.method == revisions.PING)
        return jsonrpc.with_id(message.raw, identity)

    def answered(self, message: Message) -> tuple[bytes | None, bool]:
        """The client answers: the answer as the backend is to see it, or None if it does not wait for one.

        And whether something depends on it.
        """
        question = self._open.pop(message.id or b"", None)
        return (
            (None, False)
            if question is None
            else (
                jsonrpc.with_id(message.raw, question.backend_id),
                not question.is_ping,
            )
        )

    def withdrawn(self, message: Message) -> tuple[bytes, Exchange | None] | None:
        """The backend cancels a question: the cancellation as the client is to see it, or None if it knows none.

        With the request that the question was about, for the one goes where the other went.
        """
        cancelled = jsonrpc.cancelled_id(message)
        for identity, question in self._open.items():
            if question.backend_id == cancelled:
                del self._open[identity]
                return jsonrpc.with_cancelled_id(message.raw, identity), question.about
        return None

    def lost(self) -> list[tuple[bytes, Exchange | None]]:
        """Whoever asked has gone: the cancellations for the client, each with the request that it is about."""
        questions, self._open = self._open, {}
        return [(_cancellation(identity), question.about) for identity, question in questions.items()]


def _cancellation(identity: bytes) -> bytes:
    about = {"requestId": identity.decode().strip('"'), "reason": "the backend that asked has gone"}
    return jsonrpc.notification(revisions.CANCELLED, about)
