"""Does the backend speak revision 2026-07-28? Nothing is asked in advance: how it answers a client's request tells.

A server of older revisions refuses such a request before it looks at it: it knows neither the version that the header
names nor the session that there is none of, or has no such path. Servers that know the revision answer with an error
of theirs, under the id of the request.
"""

from __future__ import annotations

from mcp_proxy.session.interfaces import HTTPAnswer
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import NotJSON, NotJSONRPC
from mcp_proxy.wire.jsonrpc import Kind, Message
from mcp_proxy.wire.modern import OF_SESSIONS

#: How a server refuses what it does not know. 401, 403, 5xx and others say nothing about the revision.
_NOT_KNOWN = (400, 404, 405)
#: Errors that only the revision has.
_MODERN = (-32020, -32021, -32022)
#: Errors of a server that has no ``server/discover``, which the revision demands; the second is an older SDK's.
_NO_SUCH_METHOD = (-32601, -32602)


class Era:
    """What is known of the backend. It is forgotten in every outage: the next backend may be another.

    :param is_fixed: the operator said that it speaks an older transport.
    """

    def __init__(self, *, is_fixed: bool = False) -> None:
        self.is_legacy = self._is_fixed = is_fixed

    def forget(self) -> None:
        """Find out again."""
        self.is_legacy = self._is_fixed

    def refused(self, request: Message, answer: HTTPAnswer) -> bool:
        """A request was refused: whether that means that the backend does not know the revision."""
        if answer.status not in _NOT_KNOWN:
            return False
        try:
            error = jsonrpc.parse(answer.body)
        except (NotJSON, NotJSONRPC):
            return self._learn()
        code = error.params().get("code")
        if error.kind is not Kind.RESPONSE or not error.is_error:
            return self._learn()
        if code in _MODERN:
            return False
        if request.method == revisions.DISCOVER and code == _NO_SUCH_METHOD[0]:
            return self._learn()
        return False if error.id == request.id and code not in OF_SESSIONS else self._learn()

    def answered(self, request: Message, answer: Message) -> bool:
        """A request was answered: whether that means the same."""
        if request.method != revisions.DISCOVER or not answer.is_error:
            return False
        code = answer.params().get("code")
        return self._learn() if code in (*_NO_SUCH_METHOD, *OF_SESSIONS) else False

    def _learn(self) -> bool:
        self.is_legacy = True
        return True
