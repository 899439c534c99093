"""The front of revision 2026-07-28: each ``POST /mcp`` stands for itself.

There is no handshake and no session; a request is held, sent, and answered with the truth by the same rules as those
of a session, and its client cancels it by leaving. A backend that knows only older revisions is asked through the pool.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from mcp_proxy.frontend.limits import Streams
from mcp_proxy.frontend.stream import ClientRequest, ClientStream
from mcp_proxy.frontend.watchers import Present
from mcp_proxy.session.era import Era
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.modern import Discovered, ModernOutlet, ModernReply
from mcp_proxy.session.pool import Pool
from mcp_proxy.session.registry import Registry
from mcp_proxy.wire import jsonrpc, modern, revisions
from mcp_proxy.wire.errors import NotJSONRPC, ProxyError
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Kind, Message

log = Logger()


class _Serving(Present):
    """A client that waits for its reply."""

    __slots__ = ("_reply",)

    def __init__(self, streams: dict[ClientStream, ModernReply], stream: ClientStream, reply: ModernReply) -> None:
        super().__init__(streams, stream, reply)
        self._reply = reply

    def gone(self) -> None:
        """It has it, or has left."""
        super().gone()
        self._reply.over()

    def paused(self) -> None:
        """It does not read."""
        self._reply.on_pause()

    def resumed(self) -> None:
        """It reads again."""
        self._reply.on_resume()


class ModernFront:
    """See the module.

    :param is_away: whether the backend is known to be away.
    :param era: whether the backend speaks the revision, as far as that is known.
    :param room: whether there is any for another stream that stays open.
    :param make_pool: makes the pool for a backend that does not, from whoever is told its answers to discover.
    """

    def __init__(
        self,
        registry: Registry,
        is_away: Callable[[], bool],
        era: Era,
        room: Streams,
        make_pool: Callable[[Callable[[bytes, bytes], None]], Pool],
    ) -> None:
        self.era = era
        self._registry = registry
        self._is_away = is_away
        self._room = room
        self._discovered = Discovered()
        self.pool = make_pool(self._discovered.keep)
        self._open: dict[ClientStream, ModernReply] = {}

    def post(self, request: ClientRequest, message: Message) -> None:
        """A message of this revision.

        :raises NotJSONRPC: it is an answer, and there are no questions to answer.
        """
        if message.kind is Kind.RESPONSE:
            raise NotJSONRPC("In revision 2026-07-28 the server asks no questions, so there is nothing to answer.")
        try:
            modern.check(message, request.headers)
        except ProxyError as error:
            request.stream.refused(error)
            answer = jsonrpc.error(message.id, error.answer.code, error.message, {"source": "proxy", **error.data})
            request.stream.respond_json(error.answer.status, answer)
            return
        if message.kind is Kind.NOTIFICATION:
            log.debug("notification dropped: the revision defines none over HTTP", method=message.method)
            request.stream.respond(202, b"")
            return
        self._serve(request, message)

    def _serve(self, request: ClientRequest, message: Message) -> None:
        stream = request.stream
        owner = self._registry.owner_of(request.headers)
        if message.method == revisions.DISCOVER and self._is_away():
            known = self._discovered.answer(owner, message.id or b"null")
            if known is not None:
                stream.respond_json(200, known)
                return
        if message.method == revisions.LISTEN:
            self._room.admit()
        reply = ModernReply(stream, message)
        stream.watcher = _Serving(self._open, stream, reply)
        if self.era.is_legacy or self.pool.is_retry(message):
            self.pool.serve(reply, message, request.headers, owner)
        else:
            self._pass_on(reply, message, request.headers, owner)

    def _pass_on(self, reply: ModernReply, message: Message, headers: Headers, owner: bytes) -> None:
        """Ask the backend as the client does; if it knows only older revisions, ask it as they do."""

        def bridge(exchange: Exchange) -> None:
            log.info("backend does not speak revision 2026-07-28")
            reply.detach()
            session.cancel()
            self.pool.serve(reply, exchange.message, exchange.headers, owner)

        outlet = ModernOutlet(reply, owner, self._discovered, self.era, bridge)
        session = self._registry.once(headers, outlet)
        reply.on_over = session.cancel
        reply.on_pause = session.stream_paused
        reply.on_resume = session.stream_resumed
        session.receive(message, headers)

    @property
    def open_streams(self) -> int:
        """How many event streams clients have open."""
        return sum(reply.is_started for reply in self._open.values())

    def keep_alive(self) -> None:
        """Show every idle client that its stream lives."""
        for reply in list(self._open.values()):
            reply.keep_alive()
