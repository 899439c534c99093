"""HTTP/1.1 as a server speaks it: bytes in, requests out; and the heads of answers.

The reader is strict, because two readers that understand the same bytes differently can be played off against each
other (request smuggling; RFC 9112 §11.2). What it does not take for certain it refuses, and then nothing that comes
after it on that connection is read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus

from mcp_proxy.wire.errors import EndlessBody, HeadTooLarge, HTTPVersionRefused, MalformedRequest
from mcp_proxy.wire.headers import Fields, Header, Headers

#: The longest head, and the most headers in it.
MAX_HEAD = 16 * 1024
MAX_HEADERS = 500
#: The longest line before a chunk.
MAX_CHUNK_LINE = 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/1\.[01]")
_OTHER_VERSION = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/[0-9]\.[0-9]")
_NAME = re.compile(_TOKEN)
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_LENGTH_LINE = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*(?=\r\n|\Z)", re.IGNORECASE)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:;[\t\x20-\x7e\x80-\xff]*)?")
#: A line's end that is only half of one; the CR of the last byte may still get its other half.
_HALF_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_UNSAFE = re.compile(rb"[\x00\r\n]")

_FRAMING = frozenset((b"transfer-encoding", b"connection", b"expect"))
_OF_THE_FRAME = frozenset((b"content-length", b"transfer-encoding", b"connection", b"keep-alive"))
#: Headers that say the same for many requests, and nothing secret.
_COMMON = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-type",
        b"host",
        b"mcp-method",
        b"mcp-protocol-version",
        b"origin",
        b"sec-fetch-mode",
        b"user-agent",
    )
)
_MAX_KNOWN = 512
_known: dict[bytes, Header] = {}
_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}


class Request:
    """A request that has come whole.

    ``headers`` are without Content-Length; ``has_length`` tells whether it was said how long the body is. ``body`` is
    None if it was larger than allowed.
    """

    __slots__ = ("body", "has_length", "headers", "is_1_1", "is_persistent", "method", "path", "target")

    def __init__(
        self, method: str, target: str, headers: Headers, *, is_1_1: bool, is_persistent: bool, has_length: bool
    ) -> None:
        self.method = method
        self.target = target
        self.path = target.partition("?")[0]
        self.headers = headers
        self.is_1_1 = is_1_1
        self.is_persistent = is_persistent
        self.has_length = has_length
        self.body: bytes | None = b""

    def again(self) -> Request:
        """Another one with the same head."""
        made = Request.__new__(Request)
        made.method, made.target, made.path, made.headers = self.method, self.target, self.path, self.headers
        made.is_1_1, made.is_persistent, made.has_length = self.is_1_1, self.is_persistent, self.has_length
        made.body = b""
        return made


class Mould:
    """A head that was read, but for the length in it: tells whether another one says the same.

    :param before: all up to the length.
    :param after: what follows it, with the empty line.
    :ivar length: that in the head that :meth:`fits` was last asked about.
    """

    __slots__ = ("_after", "_before", "length")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self.length = 0

    @classmethod
    def of(cls, head: bytes) -> Mould | None:
        """Of a head that was found to be sound, without its last two line ends; None if no length is in it."""
        found = _LENGTH_LINE.search(head)
        return None if found is None else cls(head[: found.start(1)], head[found.end(1) :] + b"\r\n\r\n")

    def fits(self, data: bytes, start: int = 0) -> int:
        """Where the body begins, if a head that says the same begins there; -1 for any other, or part of a head."""
        if data.startswith(self._before, start):
            start += len(self._before)
            end = data.find(self._after, start, start + len(self._after) + 15)
            digits = data[start:end]
            if end >= 0 and digits.isdigit():
                self.length = int(digits)
                return end + len(self._after)
        return -1


class RequestReader:
    """Takes one connection's bytes (:meth:`feed`), gives its requests one after the other (:meth:`next`).

    :param max_body: of a larger body nothing is kept.
    :param max_swallowed: how many bytes of such a body, beyond the limit, are read and forgotten.
    """

    __slots__ = (
        "_at",
        "_body",
        "_buffer",
        "_expects",
        "_has_skipped",
        "_is_after_chunk",
        "_is_chunked",
        "_is_in_trailer",
        "_is_large",
        "_left",
        "_max_body",
        "_max_swallowed",
        "_model",
        "_mould",
        "_request",
        "_searched",
        "_seen",
        "_trailer",
    )

    def __init__(self, max_body: int, max_swallowed: int) -> None:
        self._max_body = max_body
        self._max_swallowed = max_swallowed
        self._buffer = b""
        self._at = 0
        self._searched = 0
        self._request: Request | None = None
        self._mould: Mould | None = None  # of the head of the last request that had a plain length
        self._model: Request | None = None  # that request
        self._body: bytearray | None = None
        self._is_large = False
        self._is_chunked = False
        self._is_after_chunk = False
        self._is_in_trailer = False
        self._expects = False
        self._has_skipped = False
        self._left = 0
        self._seen = 0
        self._trailer = 0

    @property
    def buffered(self) -> int:
        """How many bytes wait to be read."""
        return len(self._buffer) - self._at

    @property
    def is_in_body(self) -> bool:
        """Whether a request's head has come, but not all of its body."""
        return self._request is not None

    @property
    def is_between(self) -> bool:
        """Whether nothing has come of the next request."""
        return self._request is None and not self._buffer

    @property
    def kept(self) -> int:
        """How many bytes of a body that is not complete are kept."""
        return len(self._body or b"")

    def feed(self, data: bytes) -> None:
        """More bytes have come."""
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0

    def take_continue(self) -> bool:
        """Whether the client waits to be told to send its body; it needs to be told once."""
        expects, self._expects = self._expects, False
        return expects

    def whole(self, data: bytes) -> Request | None:
        """The request that these bytes are, all of it and nothing else, if its head is like that of the last one.

        None if it is not as simple as that; then they are to be fed.
        """
        mould, model = self._mould, self._model
        if mould is None or model is None or self._buffer or self._request is not None:
            return None
        body = mould.fits(data)
        if body < 0 or mould.length != len(data) - body or mould.length > self._max_body:
            return None
        self._has_skipped = False
        request = model.again()
        request.body = data[body:]
        return request

    def next(self) -> Request | None:
        """The next request, or None as long as it is not complete.

        :raises ProxyError: there is none, and nothing after it can be trusted.
        """
        if not self._buffer or (self._request is None and not self._read_head()):
            return None
        request = self._request
        if not (self._read_chunks() if self._is_chunked else self._read_plain()):
            return None
        self._request, self._body, self._expects = None, None, False
        if self._at == len(self._buffer):
            self._buffer, self._at = b"", 0
        return request

    # -- the head ----------------------------------------------------------------------------------------------

    def _read_head(self) -> bool:
        if not self._has_skipped and self._buffer.startswith(b"\r\n", self._at):
            self._at += 2  # some clients end a body with an empty line (RFC 9112 §2.2)
            self._has_skipped = True
        start = self._at
        mould, model = self._mould, self._model
        if mould is not None and model is not None and (body := mould.fits(self._buffer, start)) >= 0:
            self._at, self._searched = body, 0
            self._start(model.again(), mould.length)
            return True
        end = self._buffer.find(b"\r\n\r\n", start + self._searched)
        if end < 0:
            self._check_part(start)
            return False
        self._searched = 0
        if end - start > MAX_HEAD:
            raise HeadTooLarge()
        head = self._buffer[start:end]
        self._at = end + 4
        lines = head.split(b"\r\n")
        if len(lines) > MAX_HEADERS:
            raise HeadTooLarge()
        self._begin(head, lines)
        return True

    def _check_part(self, start: int) -> None:
        """Refuse the beginning of a head as soon as it cannot become one."""
        part = self._buffer[start:]
        if len(part) > MAX_HEAD:
            raise HeadTooLarge()
        if _HALF_LINE_END.search(part) or (part and part != b"\r" and not _NAME.match(part)):
            raise MalformedRequest()
        self._searched = max(0, len(part) - 3)

    def _begin(self, head: bytes, lines: list[bytes]) -> None:
        line = lines[0]
        if _REQUEST_LINE.fullmatch(line) is None:
            raise HTTPVersionRefused() if _OTHER_VERSION.fullmatch(line) else MalformedRequest()
        method, target, version = line.decode("ascii").split(" ")
        is_1_1 = is_persistent = version == "HTTP/1.1"
        headers: list[Header] = []
        length: bytes | None = None
        is_chunked = expects = False
        for line in lines[1:]:
            header = _known.get(line) or _header(line)
            name, value = header
            if name == b"content-length":
                if length is not None or is_chunked or _LENGTH.fullmatch(value) is None:
                    raise MalformedRequest()
                length = value
                continue
            headers.append(header)
            if name not in _FRAMING:
                continue
            if name == b"transfer-encoding":
                if length is not None or is_chunked or not is_1_1 or value.lower() != b"chunked":
                    raise MalformedRequest()
                is_chunked = True
            elif name == b"connection":
                is_persistent = is_persistent and b"close" not in map(bytes.strip, value.lower().split(b","))
            elif is_1_1 and value.lower() == b"100-continue":
                expects = True
        has_length = length is not None or is_chunked
        request = Request(
            method, target, Fields(headers), is_1_1=is_1_1, is_persistent=is_persistent, has_length=has_length
        )
        self._start(request, int(length or 0))
        self._is_chunked = is_chunked
        self._expects = expects and (is_chunked or self._left > 0)
        if length is not None and not expects:
            self._mould, self._model = Mould.of(head), request.again()  # whoever gets the request may change it

    def _start(self, request: Request, length: int) -> None:
        self._request = request
        self._is_chunked = self._expects = False
        self._left = length
        self._is_large = length > self._max_body
        self._seen = self._trailer = 0
        self._is_after_chunk = self._is_in_trailer = self._has_skipped = False

    # -- the body ----------------------------------------------------------------------------------------------

    def _read_plain(self) -> bool:
        left = self._left
        if not left:
            return True
        start, available = self._at, len(self._buffer) - self._at
        if available >= left and self._body is None and not self._is_large:
            assert self._request is not None
            self._request.body = self._buffer[start : start + left]
            self._at = start + left
            return True
        taken = min(left, available)
        self._at = start + taken
        self._left = left - taken
        self._keep(start, self._at)
        self._see(taken)
        return not self._left and self._complete()

    def _read_chunks(self) -> bool:
        while True:
            if self._left:
                start, end = self._at, min(self._at + self._left, len(self._buffer))
                if start == end:
                    return False
                self._at = end
                self._left -= end - start
                self._is_after_chunk = True
                self._keep(start, end)
                self._see(end - start)
                continue
            if self._is_after_chunk:
                ending = self._buffer[self._at : self._at + 2]
                if not b"\r\n".startswith(ending):
                    raise MalformedRequest()
                if len(ending) < 2:
                    return False
                self._at += 2
                self._is_after_chunk = False
            line = self._line()
            if line is None:
                return False
            if self._is_in_trailer:
                if not line:
                    return self._complete()
                _header(line)
                continue
            size = _CHUNK_LINE.fullmatch(line)
            if size is None:
                raise MalformedRequest()
            self._left = int(size[1], 16)
            self._is_in_trailer = not self._left

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0 or end - self._at > MAX_CHUNK_LINE:
            if end >= 0 or self.buffered > MAX_CHUNK_LINE or _HALF_LINE_END.search(self._buffer, self._at):
                raise MalformedRequest()
            return None
        line = self._buffer[self._at : end]
        self._at = end + 2
        if self._is_in_trailer:
            self._trailer += len(line)
            if self._trailer > MAX_HEAD:
                raise HeadTooLarge()
        self._see(len(line))
        return line

    def _keep(self, start: int, end: int) -> None:
        if self._body is None:
            self._body = bytearray()
        if self._is_large or len(self._body) + end - start > self._max_body:
            self._is_large = True
            self._body = bytearray()
        else:
            self._body += memoryview(self._buffer)[start:end]

    def _see(self, count: int) -> None:
        self._seen += count
        if self._seen > self._max_body + self._max_swallowed:
            raise EndlessBody()

    def _complete(self) -> bool:
        assert self._request is not None
        self._request.body = None if self._is_large else bytes(self._body or b"")
        return True


def _header(line: bytes) -> Header:
    name, colon, value = line.partition(b":")
    if not colon or _NAME.fullmatch(name) is None or _NO_VALUE.search(value) is not None:
        raise MalformedRequest()
    header = (name.lower(), value.strip(b" \t"))
    if header[0] in _COMMON and len(line) < 200:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[line] = header
    return header


# -- answers -------------------------------------------------------------------------------------------------------


def phrase(status: int) -> bytes:
    """What a status is called; nothing for one that has no name."""
    return _PHRASES.get(status, b"")


@lru_cache(64)
def head(status: int, headers: Headers, *, is_1_1: bool, is_persistent: bool) -> bytes:
    """The head of an answer, but for its last lines: Date and what tells the length, with the empty line."""
    lines = [b"HTTP/1.%d %d %b" % (is_1_1, status, phrase(status)), b"Server: mcp-proxy"]
    if is_1_1 and not is_persistent:
        lines.append(b"Connection: close")
    for name, value in headers:
        if name.lower() not in _OF_THE_FRAME and _NAME.fullmatch(name):
            shown = b"-".join(part.capitalize() for part in name.split(b"-"))
            lines.append(b"%b: %b" % (shown, _UNSAFE.sub(b" ", value)))
    lines.append(b"")
    return b"\r\n".join(lines)


def has_body(status: int) -> bool:
    """Whether an answer with this status can have a body."""
    return status >= 200 and status not in (204, 304)
