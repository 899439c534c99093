"""HTTP/1.1 and event streams, as much of them as a stub backend and a load generator need to be quick and right."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

#: Lengths of bodies that are not known from the head.
CHUNKED = -1
UNTIL_CLOSE = -2


class Head(NamedTuple):
    """The head of a request or of an answer; the names of its fields are in lower case."""

    line: bytes
    fields: dict[bytes, bytes]
    length: int


@lru_cache(maxsize=16384)
def parse_head(raw: bytes) -> Head:
    """Read a head, without the empty line after it. The same heads come again and again, hence the cache."""
    line, *rest = raw.split(b"\r\n")
    pairs = (each.partition(b":") for each in rest)
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        length = CHUNKED
    elif b"content-length" in fields:
        length = int(fields[b"content-length"])
    else:
        is_answer = line.startswith(b"HTTP/") and line[9:12] not in (b"204", b"304")
        length = UNTIL_CLOSE if is_answer else 0
    return Head(line, fields, length)


class Reader:
    """Cuts what arrives on one connection into messages."""

    def __init__(self) -> None:
        self._rest = b""
        self._head: Head | None = None
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[Head, bytes, bool]]:
        """Return what has arrived of bodies: the head, the next piece, and whether it is the last of this body."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        found = []
        while data:
            head = self._head
            if head is None:
                end = data.find(b"\r\n\r\n")
                if end < 0:
                    self._rest = data
                    break
                self._head = head = parse_head(data[:end])
                self._left = max(head.length, 0)
                data = data[end + 4 :]
            if head.length == CHUNKED:
                piece, data, done = self._unchunk(data)
            elif head.length == UNTIL_CLOSE:
                piece, data, done = data, b"", False
            else:
                piece = data[: self._left]
                data = data[self._left :]
                self._left -= len(piece)
                done = not self._left
            found.append((head, piece, done))
            if not done:
                self._rest = data
                break
            self._head = None
        return found

    def _unchunk(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the content of the chunks that begin here, what follows them, and whether the last one was there."""
        pieces = []
        at = 0
        while True:
            if self._left:
                pieces.append(data[at : at + self._left])
                at += len(pieces[-1])
                self._left -= len(pieces[-1])
            end = data.find(b"\r\n", at)
            if end < 0 or self._left:
                return b"".join(pieces), data[at:], False
            if end == at:
                # The end of the chunk before.
                at += 2
                continue
            size = int(data[at:end].partition(b";")[0], 16)
            if size:
                self._left = size
                at = end + 2
            elif data.startswith(b"\r\n", end + 2):
                return b"".join(pieces), data[end + 4 :], True
            else:
                return b"".join(pieces), data[at:], False


class Events:
    """Cuts an event stream into the data of its events; comments and events without data are passed over."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that are complete now."""
        text = self._rest + piece
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        *blocks, self._rest = text.split(b"\n\n")
        return [data for block in blocks if (data := data_of(block))]


def data_of(block: bytes) -> bytes:
    """Return the data of one event."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = (line[5:] for line in block.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line.removeprefix(b" ") for line in lines)


def chunk(data: bytes) -> bytes:
    """Return data as a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
