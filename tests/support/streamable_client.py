"""An MCP client over Streamable HTTP on real sockets."""

from __future__ import annotations

from typing import Any

from tests.support import messages
from tests.support.http1 import Answer, HeaderList, SSEEvent, ask, read_events
from tests.support.messages import Json, encoded
from tests.support.waiting import until
from tests.support.wire import Client, Wire


class Sent:
    """One POST or GET, and what has come of it so far."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.identity: Any = None  # of the request that it brings the answer to
        self.is_followed = False  # the client has come back for the rest
        self.since = ""  # the event after which it begins
        self._parsed: tuple[int, list[Json]] = (-1, [])

    @property
    def answer(self) -> Answer | None:
        """The answer as far as it has come."""
        return self.wire.answer

    @property
    def is_stream(self) -> bool:
        """Whether it is answered with a stream."""
        answer = self.answer
        return answer is not None and answer.header(b"content-type").startswith(b"text/event-stream")

    @property
    def last_event(self) -> str:
        """The id of the last event that the client has seen; empty if there is none."""
        seen = [each.id for each in self.events if each.id]
        return seen[-1] if seen else self.since

    @property
    def is_paused(self) -> bool:
        """Whether it is a reply whose stream has ended, but not with an answer."""
        answer = self.answer
        is_over = answer is not None and answer.complete and self.is_stream
        return is_over and self.last_event != "" and not any("method" not in each for each in self.messages)

    @property
    def events(self) -> list[SSEEvent]:
        """The events of the stream."""
        answer = self.answer
        return read_events(answer.body) if answer is not None and self.is_stream else []

    @property
    def messages(self) -> list[Json]:
        """The messages that have come."""
        size = len(self.wire.data)
        if self._parsed[0] != size:
            self._parsed = (size, self._read())
        return self._parsed[1]

    def _read(self) -> list[Json]:
        if self.is_stream:
            return [each.json() for each in self.events if each.data]
        answer = self.answer
        if answer is None or not answer.complete or not answer.header(b"content-type").startswith(b"application/json"):
            return []
        value = answer.json()
        return value if isinstance(value, list) else [value]


class StreamableClient(Client):
    """An MCP client.

    :param port: the proxy's.
    :param headers: sent with every request.
    :param version: the revision that it offers.
    """

    def __init__(self, reactor: Any, port: int, *headers: tuple[bytes, bytes], version: str = "2025-11-25") -> None:
        super().__init__(reactor, port, *headers)
        self.version = version
        self.session = b""
        self.sent: list[Sent] = []
        self.listening: Sent | None = None

    async def send(self, method: str, body: bytes | None = None, headers: HeaderList = ()) -> Sent:
        """Send a request and wait for nothing."""
        wire = await self.connect()
        sent = Sent(wire)
        self.sent.append(sent)
        own: HeaderList = (
            ((b"mcp-session-id", self.session), (b"mcp-protocol-version", self.version.encode()))
            if self.session
            else ()
        )
        kinds: HeaderList = ((b"accept", b"application/json, text/event-stream"),)
        if body is not None:
            kinds = (*kinds, (b"content-type", b"application/json"))
        wire.send(ask(method, "/mcp", (*kinds, *own, *headers, *self.headers, (b"connection", b"close")), body))
        return sent

    async def complete(self, sent: Sent) -> Answer:
        """Wait for a whole answer."""
        await until(
            self._reactor,
            lambda: sent.answer is not None and sent.answer.complete,
            lambda: bytes(sent.wire.data),
        )
        answer = sent.answer
        assert answer is not None
        return answer

    async def request(self, message: Any) -> Sent:
        """Post a message and wait for nothing."""
        sent = await self.send("POST", message if isinstance(message, bytes) else encoded(message))
        sent.identity = message.get("id") if isinstance(message, dict) else None
        return sent

    async def post(self, message: Any) -> Answer:
        """Post a message and wait for the whole answer."""
        return await self.complete(await self.request(message))

    async def begin(self, message: Json) -> None:
        """Post a message; what is no request must be accepted."""
        if "id" in message and "method" in message:
            await self.request(message)
            return
        answer = await self.post(message)
        if answer.status != 202:
            raise AssertionError(f"{answer.status} {answer.body!r} to {message}")

    async def open(self, last_event_id: str = "") -> None:
        """Nothing needs to be open."""

    async def listen(self, last_event_id: str = "") -> Sent:
        """Open a GET stream, and wait for its head."""
        more: HeaderList = ((b"last-event-id", last_event_id.encode()),) if last_event_id else ()
        sent = await self.send("GET", None, more)
        await until(self._reactor, lambda: sent.answer is not None, "the head of the stream")
        sent.since = last_event_id
        if not last_event_id:
            self.listening = sent
        return sent

    async def answer_to(self, identity: Any, timeout: float = 5.0) -> Json:
        """Wait for the answer to a request; come back for the rest of a reply that was ended before its answer."""
        while True:
            await until(
                self._reactor,
                lambda: self.answers(identity) or self._paused(identity),
                lambda: (identity, self.messages),
                timeout,
            )
            if self.answers(identity):
                return self.answers(identity)[0]
            for sent in self._paused(identity):
                sent.is_followed = True
                again = await self.listen(sent.last_event)
                again.identity = identity

    def _paused(self, identity: Any) -> list[Sent]:
        return [sent for sent in self.sent if sent.identity == identity and sent.is_paused and not sent.is_followed]

    async def delete(self) -> Answer:
        """End the session."""
        return await self.complete(await self.send("DELETE"))

    @property
    def events(self) -> list[SSEEvent]:
        """All events of all streams."""
        return [event for sent in self.sent for event in sent.events]

    @property
    def messages(self) -> list[Json]:
        """All messages that have come."""
        return [message for sent in self.sent for message in sent.messages]

    async def initialize(self) -> Json:
        """The handshake."""
        message = messages.initialize("hello")
        message["params"]["protocolVersion"] = self.version
        sent = await self.request(message)
        answer = await self.complete(sent)
        self.session = answer.header(b"mcp-session-id")
        result: Json = sent.messages[0] if sent.messages else {"status": answer.status, "body": answer.body}
        if "result" in result:
            await self.begin(messages.notification("notifications/initialized"))
        return result
