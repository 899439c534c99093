"""The client's side of a Streamable HTTP session: a reply for each POST, and one stream for what belongs to none.

The head of a reply is held back until it is known what it will be: one response, a refusal of the backend's, or a
stream of messages that ends with the response. A stream that broke can be resumed with the id of its last event, also
after the backend was restarted, because events and their ids are ours.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, IClientStream, IReplyStream
from mcp_proxy.session.outlet import MAX_BYTES, Channel
from mcp_proxy.wire import revisions, sse
from mcp_proxy.wire.errors import ProxyError
from mcp_proxy.wire.headers import Headers

#: How many finished replies can still be asked for.
MAX_FINISHED = 32
#: What a client is told to wait, in milliseconds, before it comes back for the rest of a stream.
CLIENT_RETRY = 1000

_JSON: Headers = ((b"content-type", b"application/json"),)


class Reply:
    """The reply to one POST.

    :param number: tells it from the others of its session.
    :param name: of the session's messages.
    :param stream: the client's, whose head is still to come.
    :param awaited: how many answers belong to it.
    :param is_primed: whether a stream begins with an event without data, so that it can be resumed from its start.
    :param is_batch: whether the POST was an array; then its answer is one as well.
    :param headers: of the answer, if it is no refusal.
    """

    __slots__ = (
        "_answers",
        "_awaited",
        "_held",
        "_is_batch",
        "_is_primed",
        "_made",
        "_name",
        "headers",
        "is_done",
        "is_started",
        "is_waiting",
        "number",
    )

    def __init__(
        self,
        number: int,
        name: bytes,
        stream: IReplyStream,
        *,
        awaited: int,
        is_primed: bool,
        is_batch: bool,
        headers: Headers,
    ) -> None:
        self.number = number
        self.is_started = self.is_done = False
        self.is_waiting = False  # for longer than one interval of keep-alives
        self.headers = headers
        self._name = name
        self._made: Channel | None = None
        self._held: IReplyStream | None = stream
        self._is_primed = is_primed
        self._is_batch = is_batch
        self._awaited = awaited
        self._answers: list[bytes] = []

    @property
    def _channel(self) -> Channel:
        """Where its messages go; one that never becomes a stream needs none."""
        if self._made is None:
            self._made = Channel(b"%b.%d" % (self._name, self.number))
        return self._made

    @property
    def is_attached(self) -> bool:
        """Whether the client is there."""
        return self._held is not None or (self._made is not None and self._made.stream is not None)

    @property
    def is_paused(self) -> bool:
        """Whether the client does not read."""
        return self._made is not None and self._made.stream is not None and self._made.stream.paused

    @property
    def size(self) -> int:
        """How many bytes are kept for a client that comes back."""
        return 0 if self._made is None else self._made.size

    def start(self) -> None:
        """It is a stream from now on."""
        if self.is_started or self.is_done:
            return
        self.is_started = True
        stream, self._held = self._held, None
        if stream is not None:
            stream.start(self.headers)
            if self._is_primed:
                stream.write(sse.retry(CLIENT_RETRY).rstrip() + b"\n" + sse.prime(self._channel.event_id(0)))
            self._channel.attach(stream, 0)
        answers, self._answers = self._answers, []
        for raw in answers:
            self._channel.emit(raw)

    def tell(self, raw: bytes) -> None:
        """Send a message that belongs to it."""
        self.start()
        self._channel.emit(raw)

    def answer(self, raw: bytes, error: ProxyError | None) -> None:
        """One of the answers; the reply ends with the last."""
        self._awaited -= 1
        if self.is_started:
            self._channel.emit(raw)
        else:
            self._answers.append(raw)
        if self._awaited > 0:
            return
        self.is_done = True
        if self.is_started:
            self._channel.close()
            return
        stream, self._held = self._held, None
        body = b"[" + b",".join(self._answers) + b"]" if self._is_batch else raw
        if stream is not None and error is not None:
            own = tuple((name.encode(), value.encode()) for name, value in error.answer.headers.items())
            stream.respond(error.answer.status, body, (*_JSON, *own))
        elif stream is not None:
            stream.respond(200, body, _JSON + self.headers)

    def refuse(self, answer: HTTPAnswer) -> bool:
        """End it with what the backend said; False if it is too late for that."""
        if self.is_started or self._is_batch or self._held is None or answer.status < 400:
            return False
        self._awaited = 0
        self.is_done = True
        stream, self._held = self._held, None
        stream.respond(answer.status, answer.body, answer.headers)
        return True

    def abandon(self) -> None:
        """One of the requests needs no answer any more; without any, the reply ends as an empty stream."""
        self._awaited -= 1
        if self._awaited > 0 or self.is_done:
            return
        self._is_primed = self._is_primed and self.is_started
        self.start()
        self.is_done = True
        self._channel.close()

    def pause(self, delay: float) -> None:
        """End the stream, not the reply, if the client has what it needs to come back for the rest.

        :param delay: after how many seconds it may.
        """
        stream = self._channel.stream
        if stream is not None and self._is_primed and not self.is_done:
            stream.write(sse.retry(int(delay * 1000)))
            self._channel.close()

    def has_after(self, since: int) -> bool:
        """Whether there is, or will be, anything after this event."""
        return not self.is_done or since < self._channel.last_event

    def resume(self, stream: IClientStream, since: int) -> int:
        """The client has come back for the rest, on another stream; tells how many events it had missed."""
        missed = self._channel.attach(stream, since)
        if self.is_done:
            self._channel.close()
        return missed

    def gone(self, stream: IClientStream) -> None:
        """The client has left; that cancels nothing."""
        if stream is self._held:
            self._held = None
        if self._made is not None:
            self._made.detach(stream)


class Verdict:
    """The reply to a request of our own, in the client's name: does the backend take its credentials?

    :param told: is called with the backend's refusal, or with None for any answer.
    """

    def __init__(self, told: Callable[[HTTPAnswer | None], None]) -> None:
        self.told = told


class StreamableOutlet:
    """See the module.

    :param token: the session's id; event ids begin with a digest of it.
    """

    __slots__ = ("_count", "_finished", "_general", "_is_polling", "_kept", "_name", "_open")

    needs_handshake = True
    outlives_streams = True
    patient = False

    def __init__(self, token: str) -> None:
        self._name = hashlib.sha256(token.encode()).hexdigest()[:8].encode()
        self._general = Channel(self._name + b".0")
        self._count = 0
        self._is_polling = False
        self._kept = 0  # bytes, by finished replies
        self._open: dict[int, Reply] = {}
        self._finished: OrderedDict[int, Reply] = OrderedDict()

    @property
    def listens(self) -> bool:
        """Whether the client has its stream for what belongs to no request."""
        return self._general.stream is not None

    @property
    def attached(self) -> bool:
        """Whether the client listens."""
        return self._general.stream is not None or any(reply.is_attached for reply in self._open.values())

    @property
    def paused(self) -> list[object]:
        """What the client does not read."""
        paused: list[object] = [reply for reply in self._open.values() if reply.is_paused]
        general = self._general.stream
        return [None, *paused] if general is not None and general.paused else paused

    @property
    def last_event(self) -> int:
        """The number of the newest event that belongs to no reply."""
        return self._general.last_event

    def open_reply(
        self,
        stream: IReplyStream,
        awaited: int = 1,
        *,
        version: str = "",
        is_batch: bool = False,
        headers: Headers = (),
    ) -> Reply:
        """A reply for a POST with so many requests in it.

        :param version: the revision of the session.
        """
        self._count += 1
        is_primed = self._is_polling = revisions.is_polling(version)
        reply = Reply(
            self._count, self._name, stream, awaited=awaited, is_primed=is_primed, is_batch=is_batch, headers=headers
        )
        self._open[self._count] = reply
        return reply

    def find(self, event_id: bytes) -> tuple[Reply | None, int] | None:
        """The reply that an event belonged to (None: it belonged to none), and its number; None if it is unknown."""
        name, _, number = event_id.rpartition(b".")
        name, _, place = name.rpartition(b".")
        if name != self._name or not (place.isdigit() and number.isdigit()) or len(place + number) > 30:
            return None
        if int(place) == 0:
            return None, min(int(number), self.last_event)
        reply = self._open.get(int(place)) or self._finished.get(int(place))
        return None if reply is None else (reply, int(number))

    def attach(self, stream: IClientStream, since: int | None) -> int:
        """The client listens on this stream for what belongs to no reply."""
        return self._general.attach(stream, since)

    def detach(self, stream: IClientStream) -> bool:
        """It has left it."""
        return self._general.detach(stream)

    def emit(self, raw: bytes, about: Exchange | None = None) -> None:
        """Send a message on the stream of the request that it is about, else on the stream for all others."""
        reply = None if about is None else about.reply
        if isinstance(reply, Reply) and not reply.is_done:
            reply.tell(raw)
        else:
            self._general.emit(raw)

    def answer(self, exchange: Exchange, raw: bytes, error: ProxyError | None = None) -> None:
        """Send an answer.

        Errors of our own are told in JSON-RPC with HTTP status 200, for clients tear down more than the request
        otherwise; but where there is no session yet, the status says it.
        """
        reply = exchange.reply
        if isinstance(reply, Verdict):
            reply.told(None)
        elif isinstance(reply, Reply) and not reply.is_done and not exchange.cancelled:
            reply.answer(raw, error if exchange.message.method == revisions.INITIALIZE else None)
            self._finish(reply)

    def refuse(self, exchange: Exchange, answer: HTTPAnswer) -> bool:
        """Show the client what the backend said."""
        reply = exchange.reply
        if isinstance(reply, Verdict):
            reply.told(answer)
            return True
        if not isinstance(reply, Reply) or not reply.refuse(answer):
            return False
        self._finish(reply)
        return True

    def abandon(self, exchange: Exchange) -> None:
        """End the reply if nothing else belongs to it."""
        if isinstance(exchange.reply, Reply):
            exchange.reply.abandon()
            self._finish(exchange.reply)

    def begin_stream(self, exchange: Exchange) -> None:
        """The answer becomes a stream; that to initialize does not, for its head tells the session."""
        if isinstance(exchange.reply, Reply) and exchange.message.method != revisions.INITIALIZE:
            exchange.reply.start()

    def restored(self, initialized: dict[str, Any]) -> None:
        """The client has seen what the first backend said."""

    def pause_stream(self, exchange: Exchange, delay: float) -> None:
        """A client that knows how polls for the rest, as it would without us (specification 2025-11-25)."""
        if isinstance(exchange.reply, Reply):
            exchange.reply.pause(delay)

    def begin_waiting(self) -> None:
        """What has taken so long becomes a stream, which can be kept alive."""
        for reply in self._open.values():
            if reply.is_waiting and not reply.headers:
                reply.start()
            reply.is_waiting = True

    def dismiss(self, reply: Reply) -> None:
        """A reply that nothing will come of."""
        reply.is_done = True
        self._finish(reply)

    def _finish(self, reply: Reply) -> None:
        if not reply.is_done:
            return
        was_open = self._open.pop(reply.number, None) is not None
        self._open = self._open or {}  # an emptied one is large
        if was_open and reply.is_started:
            self._finished[reply.number] = reply
            self._kept += reply.size
            while len(self._finished) > 1 and (len(self._finished) > MAX_FINISHED or self._kept > MAX_BYTES):
                self._kept -= self._finished.popitem(last=False)[1].size

    def say_retry(self) -> None:
        """On the stream for what belongs to no reply, if its client knows what that means."""
        stream = self._general.stream
        if stream is not None and self._is_polling:
            stream.write(sse.retry(CLIENT_RETRY))

    def close(self) -> None:
        """Nobody comes back: end all streams, and keep nothing, for it is garbage that is not soon looked for."""
        self._general.forget()
        self._finished.clear()
        self._kept = 0
