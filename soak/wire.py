"""HTTP/1.1 for clients that come and go: one connection at a time, event streams with their ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from bench.wire import Head, Reader

SIZE = 262144


class Closed(Exception):
    """The connection has ended before the answer was complete."""


class Event(NamedTuple):
    """One event of a stream."""

    id: str
    kind: str
    data: str


class Http:
    """One connection; it can be used again when an answer has been read to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = Reader()
        self._waiting: list[tuple[Head, bytes, bool]] = []
        self.is_reusable = False

    @classmethod
    async def open(cls, port: int) -> Http:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=SIZE))

    def send(self, method: str, path: str, fields: str, body: bytes | None = None) -> None:
        """Send a request."""
        self.is_reusable = False
        length = "" if body is None else f"content-length: {len(body)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}{length}\r\n"
        self._writer.write(head.encode() + (body or b""))

    async def ask(self, method: str, path: str, fields: str, body: bytes | None = None) -> Head:
        """Send a request and wait for the head of its answer.

        :raises Closed: there is none.
        """
        self.send(method, path, fields, body)
        while not self._waiting:
            await self._more()
        return self._waiting[0][0]

    async def _more(self) -> None:
        try:
            data = await self._reader.read(SIZE)
        except ConnectionError:
            data = b""
        if not data:
            raise Closed("the connection was closed")
        self._waiting += self._parser.feed(data)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Read the body of the answer as it comes.

        :raises Closed: it is cut off.
        """
        while True:
            while self._waiting:
                _, piece, is_last = self._waiting.pop(0)
                self.is_reusable = is_last
                yield piece
                if is_last:
                    return
            await self._more()

    async def body(self) -> bytes:
        """Read the whole body."""
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[Event]:
        """Read the body as an event stream; comments are passed over."""
        rest = b""
        async for piece in self.pieces():
            *blocks, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for block in blocks:
                event = read_event(block.decode())
                if event is not None:
                    yield event

    def close(self) -> None:
        """Hang up at once."""
        self.is_reusable = False
        if not self._writer.is_closing():
            self._writer.transport.abort()

    def close_soon(self) -> None:
        """Hang up when all is sent."""
        self._writer.close()


def read_event(block: str) -> Event | None:
    """Return an event; None for comments."""
    fields: dict[str, list[str]] = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        fields.setdefault(name, []).append(value.removeprefix(" "))
    if "data" not in fields and "id" not in fields:
        return None
    return Event(fields.get("id", [""])[-1], fields.get("event", ["message"])[-1], "\n".join(fields.get("data", [])))


def status(head: Head) -> int:
    """Return the status of an answer."""
    return int(head.line[9:12])


def encoded(message: Any) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode()
