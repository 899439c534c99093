"""The front of revision 2026-07-28: each ``POST /mcp`` stands for itself.

There is no handshake and no session; a request is held, sent, and answered with the truth by the same rules as those
of a session, and its client cancels it by leaving.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from mcp_proxy.frontend.stream import ClientRequest, ClientStream
from mcp_proxy.session.modern import Discovered, ModernOutlet
from mcp_proxy.session.registry import Registry
from mcp_proxy.wire import jsonrpc, modern, revisions, sse
from mcp_proxy.wire.errors import NotJSONRPC, ProxyError
from mcp_proxy.wire.jsonrpc import Kind, Message

log = Logger()


class ModernFront:
    """See the module.

    :param is_away: whether the backend is known to be away.
    """

    def __init__(self, registry: Registry, is_away: Callable[[], bool]) -> None:
        self._registry = registry
        self._is_away = is_away
        self._discovered = Discovered()
        self._open: dict[ClientStream, ModernOutlet] = {}

    def post(self, request: ClientRequest, message: Message) -> None:
        """A message of this revision.

        :raises NotJSONRPC: it is an answer, and there are no questions to answer.
        """
        if message.kind is Kind.RESPONSE:
            raise NotJSONRPC("In revision 2026-07-28 the server asks no questions, so there is nothing to answer.")
        try:
            modern.check(message, request.headers)
        except ProxyError as error:
            answer = jsonrpc.error(message.id, error.answer.code, error.message, {"source": "proxy", **error.data})
            request.stream.respond_json(error.answer.status, answer)
            return
        if message.kind is Kind.NOTIFICATION:
            log.debug("notification dropped: the revision defines none over HTTP", method=message.method)
            request.stream.respond(202, b"")
            return
        self._serve(request, message)

    def _serve(self, request: ClientRequest, message: Message) -> None:
        stream, identity = request.stream, message.id or b"null"
        owner = self._registry.owner_of(request.headers)
        if message.method == revisions.DISCOVER and self._is_away():
            known = self._discovered.answer(owner, identity)
            if known is not None:
                stream.respond_json(200, known)
                return
        outlet = ModernOutlet(stream, identity, owner, self._discovered)
        session = self._registry.once(request.headers, outlet)

        def gone() -> None:
            self._open.pop(stream, None)
            outlet.is_done = True
            session.cancel()

        stream.on_gone = gone
        stream.on_pause = session.stream_paused
        stream.on_resume = session.stream_resumed
        self._open[stream] = outlet
        session.receive(message, request.headers)

    def keep_alive(self) -> None:
        """Show every idle client that its stream lives."""
        for stream in list(self._open):
            if stream.started and not stream.paused:
                stream.write(sse.comment(b"keepalive"))
