"""One connection to a backend without TLS: HTTP/1.1 at little cost.

A request on an idle connection can meet its end: the backend may close it at that very moment. Then TCP tells whether
the request has arrived, for the end of a connection acknowledges all that came before it (RFC 9293, 3.6).
"""

from __future__ import annotations

import socket
import struct
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from httptools import HttpParserError, HttpResponseParser
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcp_proxy.backend.bodies import IBodyReceiver, Nobody
from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.response import Response
from mcp_proxy.direct import sender
from mcp_proxy.turn import Turn
from mcp_proxy.wire.headers import Fields, Header, Headers
from mcp_proxy.wire.http1 import Mould

log = Logger()

#: How many bytes the head of an answer may have.
MAX_HEAD = 64 * 1024
#: Where Linux tells how many bytes the other side has acknowledged (``struct tcp_info``, since 4.1).
_BYTES_ACKED = struct.Struct("=120xQ")

#: The socket is not blocking.
_LOOK = int(socket.MSG_PEEK)

#: What tells where a body ends, if not the end of the connection.
_LENGTHS = frozenset((b"content-length", b"transfer-encoding"))

_ENDED = "the stream ended"
_CUT_OFF = "the answer was cut off"
_CLOSED = "the connection was closed"


class Asked:
    """One request.

    :param data: all of its bytes.
    :param sending: called when they are about to be handed to the network.
    :param has_body: whether it can do anything; what cannot is never said to have arrived.
    """

    __slots__ = ("data", "has_body", "sending")

    def __init__(self, data: bytes, sending: Callable[[], None], *, has_body: bool) -> None:
        self.data = data
        self.sending = sending
        self.has_body = has_body

    @abstractmethod
    def answered(self, answer: Response) -> None:
        """The answer has come, but for its body."""

    @abstractmethod
    def failed(self, error: RequestFailed) -> None:
        """There is none; not told after :meth:`Connection.abort`."""


class Incoming(Response):
    """An answer whose body comes while it is read."""

    __slots__ = ("_connection", "_early", "_end", "_receiver")

    def __init__(self, connection: Connection, status: int, headers: Headers) -> None:
        super().__init__(status, headers)
        self._connection: Connection | None = connection
        self._receiver: IBodyReceiver | None = None
        self._early: list[bytes] | None = None
        self._end: str | None = None

    def deliver(self, receiver: IBodyReceiver) -> None:
        """Hand the body over as it comes."""
        self._receiver = receiver
        self.headers = ()  # whoever wanted to see them has; an answer may last
        early, self._early = self._early, None
        for data in early or ():
            self.received(data)
        if self._end is not None:
            self.ended(self._end)

    def pause(self) -> None:
        """Take nothing from the network for now."""
        if self._connection is not None:
            self._connection.pause(True)

    def resume(self) -> None:
        """Go on."""
        if self._connection is not None:
            self._connection.pause(False)

    def abort(self) -> None:
        """Close the connection; the receiver hears nothing more."""
        self._receiver = Nobody()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def received(self, data: bytes) -> None:
        """More of the body."""
        if self._receiver is None:
            self._early = [*(self._early or ()), data]
            return
        try:
            self._receiver.body_received(data)
        except Exception:
            log.failure("a message of the backend's could not be handled")
            receiver = self._receiver
            self.abort()
            receiver.body_ended("a message of the backend's could not be handled")

    def ended(self, reason: str) -> None:
        """No more of it."""
        self._connection = None
        if self._receiver is None:
            self._end = reason
            return
        receiver, self._receiver = self._receiver, Nobody()
        receiver.body_ended(reason)


class IPool(Protocol):
    """What a connection belongs to."""

    @property
    def turn(self) -> Turn:
        """When to send."""

    def freed(self, connection: Connection) -> None:
        """It could serve another request."""

    def gone(self, connection: Connection) -> None:
        """It is over."""


@implementer(IProtocol, IHalfCloseableProtocol)
class Connection:
    """A connection; it serves one request at a time.

    :param pool: what it belongs to.
    """

    __slots__ = (
        "_answer",
        "_asked",
        "_finished",
        "_head_size",
        "_headers",
        "_is_answered",
        "_is_delimited",
        "_is_over",
        "_is_paused",
        "_is_reused",
        "_is_spoiled",
        "_is_unseen",
        "_may_stay",
        "_model",
        "_mould",
        "_parser",
        "_pieces",
        "_pool",
        "_send",
        "_sent",
        "_shown",
        "_unsent",
        "idle_since",
        "is_broken",
        "is_ours",
        "transport",
    )

    transport: Any

    def __init__(self, pool: IPool) -> None:
        self._pool = pool
        self._unsent: Asked | None = None
        self._asked: Asked | None = None
        self._answer: Incoming | None = None
        self._finished: Incoming | None = None
        self._parser: Any = None
        self._headers: list[Header] | None = None
        self._pieces: list[bytes] | None = None
        self._head_size = 0
        self._sent = 0
        self._is_reused = self._is_delimited = self._is_paused = self._is_spoiled = self._is_over = self._may_stay = (
            False
        )
        self._is_answered = False
        self._mould: Mould | None = None  # of the head of an answer that came whole
        self._model: tuple[int, Headers] = (0, ())  # its status and headers
        self._shown: Headers = ()  # those of the head that was just read
        self.is_ours = False  # its end, if that has come, was our wish
        self.is_broken = False  # it has ended in the middle of something
        self._is_unseen = True  # the request has provably not arrived
        self.idle_since = 0.0

    def makeConnection(self, transport: Any) -> None:
        """It is made. Small messages must not wait for each other."""
        self.transport = transport
        if getattr(transport, "protocol", None) is not None:
            transport.protocol = self  # the endpoint's go-between has nothing more to do
        transport.setTcpNoDelay(True)
        self._send = sender(transport)
        self._parser = HttpResponseParser(self)

    def connectionMade(self) -> None:
        """See :meth:`makeConnection`."""

    @property
    def is_alive(self) -> bool:
        """Whether nothing has come on it while it was idle: neither its end nor anything else."""
        try:
            self.transport.getHandle().recv(1, _LOOK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def ask(self, asked: Asked) -> None:
        """Send a request."""
        self._asked = asked
        self._answer = None
        self._headers = None
        self._head_size = 0
        self._is_answered = False
        self._is_unseen = True
        self._unsent = asked
        self._pool.turn.soon(self._send_now)

    def _send_now(self) -> None:
        asked = self._unsent
        if asked is None or asked is not self._asked or self._is_over:
            return  # it was given up meanwhile, or the connection is over
        self._unsent = None
        if asked.has_body:
            self._is_unseen = False
            asked.sending()
        self._sent += len(asked.data)
        self._send(self.transport, asked.data)

    def pause(self, paused: bool) -> None:
        """Read nothing for now, or go on."""
        if paused is self._is_paused:
            return
        self._is_paused = paused
        if paused:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def abort(self) -> None:
        """Close it, whatever it is doing."""
        self.is_ours = True
        self._asked = self._answer = self._finished = None
        self.transport.abortConnection()

    def close(self) -> None:
        """Close it: it is idle, and not needed."""
        self.is_ours = True
        self.transport.loseConnection()

    # -- what comes --------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """More bytes."""
        asked = self._asked
        if asked is None or self._unsent is not None:
            self._break("the backend has answered what nobody had asked")
            self.abort()
            return
        is_first = self._answer is None and not self._head_size
        if is_first and self._is_like_last(asked, data):
            return
        if self._answer is None:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._hand_over()
            if self._finished is not None:
                self._is_spoiled = True  # what follows the answer is nobody's
                self._finish(self._finished)
            elif self._asked is not None:
                self._break("the backend's answer is no HTTP")
                self.abort()
            return
        if self._pieces:
            self._hand_over()
        shown, self._shown = self._shown, ()
        if self._finished is not None:
            if is_first and not self._is_spoiled and self._finished.status in (200, 202):
                self._remember(data, self._finished.status, shown)
            self._finish(self._finished)
        elif self._answer is None and self._asked is not None and self._head_size > MAX_HEAD:
            self._break("the head of the backend's answer is too large")
            self.abort()

    def _is_like_last(self, asked: Asked, data: bytes) -> bool:
        """Take an answer that has come whole, with the same head as the last one but for its length."""
        mould = self._mould
        if mould is None or (body := mould.fits(data)) < 0 or mould.length != len(data) - body:
            return False
        answer = self._answer = Incoming(self, *self._model)
        self._is_answered = self._is_delimited = True
        self._is_spoiled = False
        asked.answered(answer)
        if self._answer is answer:
            self._answer = None
            answer.received(data[body:])
            if self._asked is asked:
                self._finish(answer)
        return True

    def _remember(self, data: bytes, status: int, headers: Headers) -> None:
        end = data.find(b"\r\n\r\n")
        mould = Mould.of(data[:end]) if data.startswith(b"HTTP/1.1 %d" % status) else None
        if mould is not None and self._may_stay and mould.fits(data) >= 0 and mould.length == len(data) - end - 4:
            self._mould, self._model = mould, (status, headers)

    def on_message_begin(self) -> None:
        """The parser has seen the first byte of an answer."""
        self._is_spoiled = self._finished is not None  # nobody has asked for this one
        self._is_delimited = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has read a header."""
        name = name.lower()
        if self._headers is None:
            self._headers = []
        self._headers.append((name, value))
        if name in _LENGTHS:
            self._is_delimited = True

    def on_headers_complete(self) -> None:
        """The parser has read the head of the answer."""
        status = self._parser.get_status_code()
        headers, self._headers = Fields(self._headers or ()), None
        asked = self._asked
        if asked is None or status < 200 or self._is_spoiled:
            return  # of an interim answer; the real one follows
        self._answer = Incoming(self, status, headers)
        self._is_answered = True
        self._shown = headers
        asked.answered(self._answer)

    def on_body(self, data: bytes) -> None:
        """The parser has read some of the body."""
        if self._answer is None:
            return
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(data)

    def _hand_over(self) -> None:
        """Give what one read has brought of the body to its receiver, however many chunks it was."""
        pieces, self._pieces = self._pieces, None
        answer = self._finished or self._answer
        if pieces and answer is not None:
            answer.received(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def on_message_complete(self) -> None:
        """The parser has read all of the answer."""
        if self._answer is not None:
            self._finished, self._answer = self._answer, None
            self._may_stay = self._parser.should_keep_alive()

    def _finish(self, answer: Incoming) -> None:
        """The answer is complete; the connection can serve another request if both sides want that."""
        self._finished = self._asked = None
        self._is_reused = True
        if self._is_paused:
            self.pause(False)
        if self._is_spoiled or not self._may_stay:
            self.close()
        else:
            self._pool.freed(self)
        answer.ended(_ENDED)

    # -- the end -----------------------------------------------------------------------------------------------

    def readConnectionLost(self) -> None:
        """The backend has closed its side: this is when TCP knows how much of the request it has got."""
        self._is_over = True
        if self._is_reused and self._asked is not None and self._answer is None:
            self._is_unseen = self._is_unseen or self._acknowledged() < self._sent
        self.transport.abortConnection()

    def writeConnectionLost(self) -> None:
        """We never close ours alone."""

    def _acknowledged(self) -> int:
        """How many of our bytes have arrived; if that cannot be told, all."""
        try:
            told = self.transport.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            return int(_BYTES_ACKED.unpack_from(told)[0]) - 1  # that of the handshake counts
        except (AttributeError, OSError, struct.error):
            return self._sent

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        has_end = self._is_over and self._answer is not None and not self._is_delimited
        self.is_broken = self._asked is not None and not (self.is_ours or has_end)
        self._pool.gone(self)
        self._parser = None  # it knows us
        answer, self._answer = self._answer, None
        if answer is not None:
            self._asked = None
            answer.ended(_ENDED if self._is_over and not self._is_delimited else _CUT_OFF)
        else:
            self._break(_CLOSED)

    def _break(self, reason: str) -> None:
        asked, self._asked = self._asked, None
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.ended(reason)
        elif asked is not None and not self._is_answered:
            asked.failed(RequestFailed(reason, sent=not self._is_unseen))
