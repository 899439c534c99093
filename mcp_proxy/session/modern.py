"""The client's side of one request of revision 2026-07-28, which has no session: the one reply to the one POST.

A backend of that revision is asked by a session that lasts as long as the request. A client that leaves cancels it,
which is the opposite of what the revisions with a handshake say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mcp_proxy.session.era import Era
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, IClientStream, IReplyStream
from mcp_proxy.session.listening import Listening
from mcp_proxy.wire import jsonrpc, revisions, sse
from mcp_proxy.wire.errors import BackendUnavailable, OutcomeUnknown, ProxyError
from mcp_proxy.wire.jsonrpc import Message

#: For how many principals the last answer to server/discover is kept.
MAX_DISCOVERED = 1000


class Discovered:
    """The last result of ``server/discover`` for each principal, which is shown while the backend is away.

    Without it a client would take the silence of a restarting server for an older revision, and remember that.
    """

    def __init__(self) -> None:
        self._results: OrderedDict[bytes, bytes] = OrderedDict()

    def keep(self, owner: bytes, result: bytes) -> None:
        """The backend has answered this principal."""
        self._results[owner] = result
        self._results.move_to_end(owner)
        if len(self._results) > MAX_DISCOVERED:
            self._results.popitem(last=False)

    def answer(self, owner: bytes, identity: bytes) -> bytes | None:
        """The answer to a request with this id, or None if this principal was never answered."""
        result = self._results.get(owner)
        return None if result is None else jsonrpc.with_id(result, identity)


class ModernReply:
    """The one reply to the one POST, whoever serves the request.

    :param stream: the client's, whose head is still to come.
    :ivar is_lazy: it becomes a stream not before there is something to tell.
    :ivar on_over: called when the reply is complete or the client has left.
    """

    def __init__(self, stream: IReplyStream, message: Message) -> None:
        self.identity = message.id or b"null"
        self.method = message.method
        self.listening = Listening(self.identity)
        self.is_started = self.is_done = False
        self.on_over: Callable[[], None] = _nothing
        self.on_pause: Callable[[], None] = _nothing
        self.on_resume: Callable[[], None] = _nothing
        self._stream = stream
        self._is_old = False
        self.is_lazy = False

    @property
    def paused(self) -> bool:
        """Whether the client does not read."""
        return self._stream.paused and not self.is_done

    def start(self) -> None:
        """The answer becomes a stream, but for one that a client judges the revision by: it needs the status."""
        if self.method != revisions.DISCOVER:
            self._begin()

    def _begin(self) -> None:
        if not (self.is_started or self.is_done):
            self.is_started = True
            self._stream.start()

    def tell(self, raw: bytes) -> None:
        """Send a message that belongs to the request."""
        if not self.is_done:
            self._begin()
            self._stream.write(sse.encode(raw))

    def finish(self, raw: bytes, status: int = 200) -> None:
        """Send the answer.

        :param status: of HTTP, if no stream has begun.
        """
        if self.is_done:
            return
        self.is_done = True
        if self.is_started:
            self._stream.write(sse.encode(raw))
            self._stream.close()
        else:
            headers = ((b"content-type", b"application/json"),)
            self._stream.respond(status, raw, headers if status < 500 else (*headers, (b"retry-after", b"2")))

    def refuse(self, answer: HTTPAnswer) -> bool:
        """Show the client what the backend said; False if it is too late for that."""
        if self.is_started or self.is_done or answer.status < 400:
            return False
        self.is_done = True
        self._stream.respond(answer.status, answer.body, answer.headers)
        return True

    def refused(self, error: ProxyError) -> None:
        """Count that it is refused by us."""
        self._stream.refused(error)

    def acknowledge(self, message: Message) -> bool:
        """Tell the client what is listened for: a backend has taken its request; False if that was the end of it."""
        messages, end = self.listening.acknowledged(message)
        for each in messages:
            self.tell(each)
        if end is not None:
            self.finish(end)
        return end is None

    def close(self) -> None:
        """End the stream."""
        if not self.is_done:
            self._begin()
            self.is_done = True
            self._stream.close()

    def keep_alive(self) -> None:
        """Show an idle client that its stream lives; what takes longer than that may become one."""
        if self._is_old and self.is_lazy:
            self.start()
        self._is_old = True
        if self.is_started and not self.paused and not self.is_done:
            self._stream.write(sse.comment(b"keepalive"))

    def detach(self) -> None:
        """Nobody is to hear of it any more."""
        self.on_over = self.on_pause = self.on_resume = _nothing

    def over(self) -> None:
        """The stream is over, whoever ended it."""
        self.is_done = True
        on_over = self.on_over
        self.detach()
        on_over()


class ModernOutlet:
    """The client's side of a session that serves one request and nothing else.

    :param owner: digest of the principal.
    :param bridge: serves a request in another way, if the backend turns out not to know the revision.
    """

    outlives_streams = False
    patient = False
    needs_handshake = False
    last_event = 0

    def __init__(
        self, reply: ModernReply, owner: bytes, discovered: Discovered, era: Era, bridge: Callable[[Exchange], None]
    ) -> None:
        self._reply = reply
        self._owner = owner
        self._discovered = discovered
        self._era = era
        self._bridge = bridge
        self._is_over = False

    @property
    def _is_done(self) -> bool:
        return self._is_over or self._reply.is_done

    @property
    def attached(self) -> bool:
        """Whether the client still waits."""
        return not self._is_done

    @property
    def paused(self) -> list[object]:
        """Whether the client does not read."""
        return [None] if self._reply.paused and not self._is_over else []

    def attach(self, stream: IClientStream, since: int | None) -> int:
        """There is only the one stream."""
        return 0

    def detach(self, stream: IClientStream) -> bool:
        """Leaving is cancelling, which the front sees to."""
        return False

    def emit(self, raw: bytes, about: Exchange | None = None) -> None:
        """Send a message that belongs to the request."""
        if self._is_done:
            return
        message = jsonrpc.parse(raw)
        listening = self._reply.listening
        if message.method != revisions.ACKNOWLEDGED:
            self._reply.tell(raw)
            listening.told(message)
            if about is not None and about.is_lasting:
                about.is_lasting = listening.is_to_last
            return
        if about is not None:
            about.is_lasting = True
            about.resends = 0
        self._reply.acknowledge(message)

    def answer(self, exchange: Exchange, raw: bytes, error: ProxyError | None = None) -> None:
        """Send the answer."""
        if self._is_done:
            return
        status = 200
        if error is None and self._era.answered(exchange.message, jsonrpc.parse(raw)):
            self._hand_over(exchange)
            return
        if exchange.message.method == revisions.DISCOVER:
            if error is None:
                if not jsonrpc.parse(raw).is_error:
                    self._discovered.keep(self._owner, raw)
            elif isinstance(error, (BackendUnavailable, OutcomeUnknown)):
                kept = self._discovered.answer(self._owner, exchange.message.id or b"null")
                raw, status = (raw, 503) if kept is None else (kept, 200)
        self._reply.finish(raw, status)

    def refuse(self, exchange: Exchange, answer: HTTPAnswer) -> bool:
        """Show the client what the backend said, whose status belongs to it, unless it is not meant for the client."""
        if self._is_done or answer.status < 400:
            return False
        if self._era.refused(exchange.message, answer):
            self._hand_over(exchange)
            return True
        return self._reply.refuse(answer)

    def _hand_over(self, exchange: Exchange) -> None:
        self._is_over = True
        self._bridge(exchange)

    def abandon(self, exchange: Exchange) -> None:
        """Nobody cancels by message here."""

    def begin_stream(self, exchange: Exchange) -> None:
        """The answer takes a while, or consists of several messages."""
        if not self._is_done:
            self._reply.start()

    def restored(self, initialized: dict[str, Any]) -> None:
        """There is no handshake to be told of."""

    def say_retry(self) -> None:
        """A client of this revision makes its request anew."""

    def pause_stream(self, exchange: Exchange, delay: float) -> None:
        """In this revision nobody comes back for the rest."""

    def close(self) -> None:
        """End the stream."""
        if not self._is_over:
            self._reply.close()


def _nothing() -> None:
    pass
