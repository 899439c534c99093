"""What the backend asks the client (sampling, elicitation, roots), and who may answer it.

A restarted backend counts its request ids from the start again, so the client sees ids of ours that no other link
has used, and an answer to a link that has gone finds nobody.
"""

from __future__ import annotations

from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.jsonrpc import Message

#: How many questions may be unanswered at the same time.
MAX_QUESTIONS = 1000


class Questions:
    """The requests of one session's backend that the client has not answered yet. Pure: nothing is sent here."""

    def __init__(self) -> None:
        self._backend_ids: dict[bytes, bytes] = {}  # by the id that the client knows
        self._count = 0

    def __len__(self) -> int:
        return len(self._backend_ids)

    def asked(self, message: Message, generation: int) -> bytes | None:
        """The backend asks: the request as the client is to see it, or None if too many are unanswered."""
        if len(self._backend_ids) >= MAX_QUESTIONS:
            return None
        self._count += 1
        identity = b'"%d.%d"' % (generation, self._count)
        self._backend_ids[identity] = message.id or b""
        return jsonrpc.with_id(message.raw, identity)

    def answered(self, message: Message) -> bytes | None:
        """The client answers: the answer as the backend is to see it, or None if it does not wait for one."""
        backend_id = self._backend_ids.pop(message.id or b"", None)
        return None if backend_id is None else jsonrpc.with_id(message.raw, backend_id)

    def withdrawn(self, message: Message) -> bytes | None:
        """The backend cancels a question: the cancellation as the client is to see it, or None if it knows none."""
        cancelled = jsonrpc.cancelled_id(message)
        for identity, backend_id in self._backend_ids.items():
            if backend_id == cancelled:
                del self._backend_ids[identity]
                return jsonrpc.with_cancelled_id(message.raw, identity)
        return None

    def lost(self) -> list[bytes]:
        """Whoever asked has gone: the cancellations for the client."""
        identities, self._backend_ids = self._backend_ids, {}
        return [
            jsonrpc.notification(
                revisions.CANCELLED,
                {"requestId": identity.decode().strip('"'), "reason": "the backend that asked has gone"},
            )
            for identity in identities
        ]
