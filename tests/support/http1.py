"""HTTP/1.1 answers and event streams, read by code of the tests' own, so that no mistake can cancel itself out."""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

HeaderList = tuple[tuple[bytes, bytes], ...]


@frozen
class Answer:
    """An answer as far as it has come; ``complete`` tells whether that is all of it."""

    status: int
    headers: HeaderList
    body: bytes
    complete: bool

    def header(self, name: bytes) -> bytes:
        """The value of a header, or nothing."""
        return b", ".join(value for own, value in self.headers if own == name)

    def json(self) -> Any:
        """The body decoded."""
        return json.loads(self.body)


@frozen
class SSEEvent:
    """One event of a stream."""

    id: str
    type: str
    data: str

    def json(self) -> Any:
        """The data decoded; a number of thousands of digits, which Python would not take, stays text."""
        return json.loads(self.data, parse_int=lambda text: int(text) if len(text) < 4000 else text)


def ask(
    method: str, path: str, headers: HeaderList = (), body: bytes | None = None, host: bytes = b"localhost"
) -> bytes:
    """The bytes of a request on a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1")]
    if not any(name.lower() == b"host" for name, _ in headers):
        lines.append(b"Host: " + host)
    lines += [name + b": " + value for name, value in headers]
    if body is not None and not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body or b""))


def chunked(*pieces: bytes) -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def read_answer(data: bytes, *, closed: bool = False, is_head: bool = False) -> Answer | None:
    """The first answer in these bytes; None while its head is not there.

    :param closed: whether the connection has been closed.
    :param is_head: whether HEAD was asked.
    """
    while data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    status_line, *lines = head.split(b"\r\n")
    headers = tuple(
        (name.strip().lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)
    )
    status = int(status_line.split()[1])
    known = dict(headers)
    if is_head:
        return Answer(status, headers, rest, True)
    if known.get(b"transfer-encoding") == b"chunked":
        return Answer(status, headers, *_dechunk(rest))
    if b"content-length" in known:
        length = int(known[b"content-length"])
        return Answer(status, headers, rest[:length], len(rest) >= length)
    return Answer(status, headers, rest, closed)


def _dechunk(data: bytes) -> tuple[bytes, bool]:
    body: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return b"".join(body), False
        size = int(data[at:end], 16)
        piece = data[end + 2 : end + 2 + size]
        body.append(piece)
        if size == 0:
            return b"".join(body), True
        if len(piece) < size:
            return b"".join(body), False
        at = end + 2 + size + 2


def read_events(body: bytes) -> list[SSEEvent]:
    """The complete events of a stream; comments are no events."""
    events = []
    for block in body.split(b"\n\n")[:-1]:
        fields: dict[str, list[str]] = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        if "data" in fields:
            events.append(
                SSEEvent(fields.get("id", [""])[-1], fields.get("event", ["message"])[-1], "\n".join(fields["data"]))
            )
    return events


def count_comments(body: bytes) -> int:
    """How many comments a stream has."""
    return sum(line.startswith(b":") for line in body.split(b"\n"))
