"""The client's side of one request of revision 2026-07-28, which has no session: the one reply to the one POST.

The session that serves it lasts as long as the request. A client that leaves cancels it, which is the opposite of what
the revisions with a handshake say.
"""

from __future__ import annotations

from collections import OrderedDict

from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, IClientStream, IReplyStream
from mcp_proxy.session.listening import Listening
from mcp_proxy.wire import jsonrpc, revisions, sse
from mcp_proxy.wire.errors import BackendUnavailable, OutcomeUnknown, ProxyError

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


class ModernOutlet:
    """See the module.

    :param stream: the client's, whose head is still to come.
    :param owner: digest of the principal.
    """

    outlives_streams = False
    patient = False
    needs_handshake = False
    last_event = 0

    def __init__(self, stream: IReplyStream, identity: bytes, owner: bytes, discovered: Discovered) -> None:
        self.is_done = False
        self._stream = stream
        self._is_started = False
        self._owner = owner
        self._discovered = discovered
        self._listening = Listening(identity)

    @property
    def attached(self) -> bool:
        """Whether the client still waits."""
        return not self.is_done

    @property
    def paused(self) -> list[object]:
        """Whether the client does not read."""
        return [None] if self._stream.paused and not self.is_done else []

    def attach(self, stream: IClientStream, since: int | None) -> None:
        """There is only the one stream."""

    def detach(self, stream: IClientStream) -> bool:
        """Leaving is cancelling, which the front sees to."""
        return False

    def emit(self, raw: bytes, about: Exchange | None = None) -> None:
        """Send a message that belongs to the request."""
        if self.is_done:
            return
        message = jsonrpc.parse(raw)
        if message.method != revisions.ACKNOWLEDGED:
            self._write(raw)
            return
        messages, end = self._listening.acknowledged(message)
        if about is not None:
            about.is_lasting = True
            about.resends = 0
        for each in messages:
            self._write(each)
        if end is not None:
            self._finish(end, 200)

    def answer(self, exchange: Exchange, raw: bytes, error: ProxyError | None = None) -> None:
        """Send the answer."""
        if self.is_done:
            return
        status = 200
        if exchange.message.method == revisions.DISCOVER:
            if error is None:
                if not jsonrpc.parse(raw).is_error:
                    self._discovered.keep(self._owner, raw)
            elif isinstance(error, (BackendUnavailable, OutcomeUnknown)):
                kept = self._discovered.answer(self._owner, exchange.message.id or b"null")
                raw, status = (raw, 503) if kept is None else (kept, 200)
        self._finish(raw, status)

    def refuse(self, exchange: Exchange, answer: HTTPAnswer) -> bool:
        """Show the client what the backend said; in this revision the status belongs to it."""
        if self._is_started or self.is_done or answer.status < 400:
            return False
        self.is_done = True
        self._stream.respond(answer.status, answer.body, answer.headers)
        return True

    def abandon(self, exchange: Exchange) -> None:
        """Nobody cancels by message here."""

    def begin_stream(self, exchange: Exchange) -> None:
        """The answer becomes a stream, but for one that a client judges the revision by: it needs the status."""
        if exchange.message.method != revisions.DISCOVER:
            self._start()

    def pause_stream(self, exchange: Exchange, delay: float) -> None:
        """In this revision nobody comes back for the rest."""

    def close(self) -> None:
        """End the stream."""
        if not self.is_done:
            self.is_done = True
            self._start()
            self._stream.close()

    def _start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._stream.start()

    def _write(self, raw: bytes) -> None:
        self._start()
        self._stream.write(sse.encode(raw))

    def _finish(self, raw: bytes, status: int) -> None:
        self.is_done = True
        if self._is_started:
            self._stream.write(sse.encode(raw))
            self._stream.close()
        else:
            headers = ((b"content-type", b"application/json"),)
            self._stream.respond(status, raw, headers if status < 500 else (*headers, (b"retry-after", b"2")))
