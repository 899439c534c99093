"""Server-sent events: an incremental decoder and an encoder (WHATWG HTML, "Server-sent events").

The decoder is fed bytes split anywhere. What one event may hold is bounded: of an event over the bound only its
edges are kept (``Oversized``), which is enough to tell a peer which answer it was, and the stream goes on.
"""

from __future__ import annotations

from attrs import frozen

_EDGE = 4096
#: Longer than any field name with its colon, blank and byte order mark.
_FIELD = 16
_BOM = b"\xef\xbb\xbf"
#: How nearly all events begin that have no id.
_PLAIN = b"event: message\ndata: "


@frozen
class Event:
    """One event: its type (``message`` unless named), its data, the last id seen and the retry delay in ms."""

    type: str
    data: bytes
    id: str = ""
    retry: int | None = None


@frozen
class Oversized:
    """An event over the bound: the first and the last bytes of its data, and its size in bytes."""

    head: bytes
    tail: bytes
    size: int


class Decoder:
    """Bytes to events.

    :param max_event_bytes: how many bytes of data one event may have.
    """

    __slots__ = (
        "_at_start",
        "_data",
        "_head",
        "_id",
        "_line",
        "_line_size",
        "_max",
        "_over",
        "_retry",
        "_size",
        "_skip_lf",
        "_tail",
        "_type",
    )

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._line = bytearray()  # the start of a line that has not ended yet
        self._line_size = 0
        self._skip_lf = False
        self._at_start = True
        self._id = ""
        self._reset()

    def _reset(self) -> None:
        self._type = ""
        self._data: list[bytes] = []
        self._size = 0
        self._retry: int | None = None
        self._head = self._tail = b""
        self._over = False

    @property
    def buffered(self) -> int:
        """How many bytes are kept for what has not ended yet."""
        kept = len(self._head) + len(self._tail) if self._over else self._size
        return kept + len(self._line)

    def feed(self, data: bytes) -> list[Event | Oversized]:
        """Take the next bytes; return the events that they complete, in order."""
        events: list[Event | Oversized] = []
        if not data:
            return events
        if self._skip_lf:
            self._skip_lf = False
            if data[:1] == b"\n":
                data = data[1:]
        if not self._line and b"\r" not in data:
            data = self._take_whole_events(data, events)
        for piece in data.splitlines(keepends=True):
            line = piece.rstrip(b"\r\n")
            if len(line) == len(piece):
                self._keep(piece)
                break
            self._skip_lf = piece.endswith(b"\r")
            event = self._end_of_line(line)
            if event is not None:
                events.append(event)
        self._skip_lf = self._skip_lf and data.endswith(b"\r")
        return events

    def _take_whole_events(self, data: bytes, events: list[Event | Oversized]) -> bytes:
        """Take the events that end in these bytes, which begin a line and have no CR; return what is left.

        This is :meth:`_end_of_line` for many lines at once: nearly all events come whole.
        """
        whole, blank, rest = data.rpartition(b"\n\n")
        if not blank:
            return data
        for block in whole.split(b"\n\n"):
            if block.startswith(_PLAIN) and self._is_fresh and block.find(b"\n", len(_PLAIN)) < 0 <= self._room(block):
                events.append(Event("message", block[len(_PLAIN) :], self._id))
                continue
            for line in block.split(b"\n"):
                event = self._end_of_line(line)
                if event is not None:
                    events.append(event)
            event = self._end_of_line(b"")
            if event is not None:
                events.append(event)
        return rest

    @property
    def _is_fresh(self) -> bool:
        """Whether the next line begins an event, and is not the very first of the stream."""
        return not (self._size or self._type or self._over or self._at_start) and self._retry is None

    def _room(self, block: bytes) -> int:
        return self._max - (len(block) - len(_PLAIN))

    def _keep(self, piece: bytes) -> None:
        """Hold the start of a line; once it is over the bound, only its edges."""
        self._line += piece
        self._line_size += len(piece)
        if self._line_size > max(0, self._max - self._size) + _FIELD + _EDGE:
            del self._line[_FIELD + _EDGE : -_EDGE]

    def _end_of_line(self, line: bytes) -> Event | Oversized | None:
        size = len(line)
        if self._line:
            size += self._line_size
            line = bytes(self._line + line)
            self._line, self._line_size = bytearray(), 0
        if self._at_start:
            self._at_start = False
            if line.startswith(_BOM):
                line, size = line[len(_BOM) :], size - len(_BOM)
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add_data(value, size - (len(line) - len(value)))
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) < 10:
            self._retry = int(value)
        return None

    def _add_data(self, value: bytes, size: int) -> None:
        self._size += size + 1
        if self._over or self._size - 1 > self._max:
            text = b"\n".join((self._tail, value)) if self._over else b"\n".join((*self._data, value))
            if not self._over:
                self._over = True
                self._head = text[:_EDGE]
                self._data = []
            self._tail = text[-_EDGE:]
        else:
            self._data.append(value)

    def _dispatch(self) -> Event | Oversized | None:
        event: Event | Oversized | None = None
        if self._over:
            event = Oversized(self._head, self._tail, self._size - 1)
        elif self._data or self._type or self._retry is not None:
            event = Event(self._type or "message", b"\n".join(self._data), self._id, self._retry)
        self._reset()
        return event


def encode(data: bytes, event: bytes = b"message", identity: bytes = b"") -> bytes:
    """One event as bytes. ``data`` may have several lines; ``identity`` must have none."""
    head = b"event: " + event + b"\n"
    if identity:
        head = b"id: " + identity + b"\n" + head
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.splitlines())
    return head + b"data: " + data + b"\n\n"


def prime(identity: bytes) -> bytes:
    """An event without data: it tells an id from which a stream can be resumed, and nothing else."""
    return b"id: " + identity + b"\ndata: \n\n"


def comment(text: bytes) -> bytes:
    """A comment, which clients drop: it keeps a connection alive."""
    return b": " + text + b"\n\n"


def retry(milliseconds: int) -> bytes:
    """Tells a client how long to wait before it connects again."""
    return b"retry: %d\n\n" % milliseconds
