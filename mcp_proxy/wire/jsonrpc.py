"""The envelope of a JSON-RPC message: the few fields we route by, beside the bytes as they came.

Messages are forwarded as they came. Where a field must change (an id that crosses from one side to the other),
only that field is replaced: every other value keeps its bytes, so big numbers, key order and unknown members
survive. An id is held as canonical JSON text (``b'1'``, ``b'"1"'``): the number 1 and the string "1" differ.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import msgspec

from mcp_proxy.wire.errors import BatchRefused, BatchTooLong, EmptyBody, NotJSON, NotJSONRPC

#: The largest integer that every JSON parser keeps exactly (IEEE 754 doubles, as in JavaScript).
MAX_SAFE_INTEGER = 2**53 - 1

#: The longest id; it is kept, compared and repeated in places that have no bound of their own.
MAX_ID_BYTES = 1024

_UNSET = msgspec.UNSET
_BLANK = b" \t\r\n"


class Kind(Enum):
    """What a message is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class _Envelope(msgspec.Struct):
    jsonrpc: str | msgspec.UnsetType = _UNSET
    id: msgspec.Raw | msgspec.UnsetType = _UNSET
    method: str | msgspec.UnsetType = _UNSET
    params: msgspec.Raw | msgspec.UnsetType = _UNSET
    result: msgspec.Raw | msgspec.UnsetType = _UNSET
    error: msgspec.Raw | msgspec.UnsetType = _UNSET


_HALF = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_OTHER_HALF = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_MARK = re.compile(rb"\\u[dD][89a-fA-F]")
#: An escape in a string; the group is half a character that stands alone.
_ESCAPE = re.compile(rb"\\(?:%b\\%b|(%b|%b)|.)" % (_HALF, _OTHER_HALF, _HALF, _OTHER_HALF), re.DOTALL)
_REPLACEMENT = "\ufffd".encode()

_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.encode


class Message(msgspec.Struct, frozen=True):
    """One JSON-RPC message. (A struct, for there are several for each request, and these are made fastest.)

    ``raw`` is its text as it came; ``id`` the canonical JSON text of its id (None for a notification and for an
    error answer without id); ``text`` is that of ``params``, ``result`` or ``error``, whichever it has. It may be part
    of ``raw``, and is copied when somebody asks for the ``body``.
    """

    kind: Kind
    raw: bytes
    id: bytes | None
    method: str
    text: bytes | msgspec.Raw
    is_error: bool = False

    @property
    def body(self) -> bytes:
        """The text of ``params``, ``result`` or ``error``."""
        text = self.text
        return text if isinstance(text, bytes) else bytes(text)

    def without_text(self) -> Message:
        """What is left of it when its text is not needed any more."""
        return Message(self.kind, b"", self.id, self.method, b"", self.is_error)

    def value(self) -> Any:
        """``params``, ``result`` or ``error`` decoded to plain Python values.

        ``{}`` where there is none, and where it holds what Python cannot: a number out of range, a bottomless nest.
        """
        try:
            return msgspec.json.decode(self.text) if self.text else {}
        except (msgspec.DecodeError, RecursionError):
            return {}

    def params(self) -> dict[str, Any]:
        """The decoded value where it is an object, else ``{}``."""
        value = self.value()
        return value if isinstance(value, dict) else {}


def parse(raw: bytes) -> Message:
    """Read one message.

    :raises EmptyBody: there are no bytes but white space.
    :raises NotJSON: it is not JSON in UTF-8.
    :raises BatchRefused: it is an array.
    :raises NotJSONRPC: it is JSON but not a JSON-RPC 2.0 message; the text says why.
    """
    return _parse(raw, raw.lstrip(_BLANK)[:1])


def _parse(raw: bytes, head: bytes) -> Message:
    """Read one message that begins with this byte."""
    if not head:
        raise EmptyBody()
    try:
        if not raw.isascii():
            raw.decode("utf-8")  # msgspec does not look inside the values that it leaves raw
        if head != b"{":
            msgspec.json.decode(raw)
            raise BatchRefused() if head == b"[" else NotJSONRPC("A JSON-RPC message is a JSON object.")
        envelope = _decode_envelope(raw)
    except msgspec.ValidationError as error:
        raise NotJSONRPC(f"Not a JSON-RPC 2.0 message: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        mended = _mended(raw)
        if mended is None:
            raise NotJSON() from None
        message = parse(mended)
        if _REPLACEMENT in (message.id or b""):
            raise NotJSON("An id with half a character in it cannot be repeated.") from None
        return message
    return _message(raw, envelope)


def parse_all(raw: bytes, max_batch: int = 0) -> tuple[list[Message], bool]:
    """Read one message, or an array of them; the second value tells whether it is an array.

    :raises EmptyBody, NotJSON, NotJSONRPC: as :func:`parse`; an empty array is no message.
    :raises BatchTooLong: it has more than ``max_batch`` messages, if that is not 0.
    """
    head = raw.lstrip(_BLANK)[:1]
    if head != b"[":
        return [_parse(raw, head)], False
    try:
        raw.decode("utf-8")
        items = _decode_array(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        mended = _mended(raw)
        if mended is None:
            raise NotJSON() from None
        messages, is_array = parse_all(mended, max_batch)
        if any(_REPLACEMENT in (message.id or b"") for message in messages):
            raise NotJSON("An id with half a character in it cannot be repeated.") from None
        return messages, is_array
    if not items:
        raise NotJSONRPC("An array of messages has at least one.")
    if 0 < max_batch < len(items):
        raise BatchTooLong(
            f"The array has {len(items)} messages, more than {max_batch} (MAX_BATCH). Send fewer at once."
        )
    return [parse(bytes(item)) for item in items], True


def _mended(raw: bytes) -> bytes | None:
    """The text without halves of characters, such as a text that JavaScript has cut within an emoji ends with.

    JavaScript and Python write and read them, but many parsers refuse the whole text, and so would be lost an answer;
    U+FFFD takes their place. None if there are none.
    """
    if not _HALF_MARK.search(raw):
        return None
    mended = _ESCAPE.sub(lambda found: rb"\ufffd" if found.group(1) else found.group(), raw)
    return None if mended == raw else mended


def _message(raw: bytes, envelope: _Envelope) -> Message:
    if envelope.jsonrpc != "2.0":
        raise NotJSONRPC('A JSON-RPC message has "jsonrpc": "2.0".')
    method = envelope.method
    if isinstance(method, str):
        if not method:
            raise NotJSONRPC("The method is empty.")
        params = b"" if envelope.params is _UNSET else bytes(envelope.params)
        if params and params[:1] not in b"{[":
            raise NotJSONRPC("params must be an object.")
        if envelope.id is _UNSET:
            return Message(Kind.NOTIFICATION, raw, None, method, params)
        identity = canonical_id(bytes(envelope.id))
        if identity is None:
            raise NotJSONRPC("The id of a request must not be null: MCP requires a string or an integer.")
        return Message(Kind.REQUEST, raw, identity, method, params)
    has_result, has_error = envelope.result is not _UNSET, envelope.error is not _UNSET
    if has_result == has_error:
        raise NotJSONRPC("A JSON-RPC message has a method, a result or an error, and just one of them.")
    identity = None if envelope.id is _UNSET else canonical_id(bytes(envelope.id))
    if has_result and identity is None:
        raise NotJSONRPC("A result needs the id of its request.")
    text = envelope.error if has_error else envelope.result
    return Message(Kind.RESPONSE, raw, identity, "", text, is_error=has_error)  # type: ignore[arg-type]


def canonical_id(text: bytes) -> bytes | None:
    """The one spelling of an id, or None for ``null``; ``1.0`` is ``1`` and ``"\\u0031"`` is ``"1"``.

    :raises NotJSONRPC: it is neither a string, nor an integer, nor null.
    """
    if len(text) > MAX_ID_BYTES:
        raise NotJSONRPC(f"The id is longer than {MAX_ID_BYTES} bytes.")
    if text.isdigit():
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NotJSONRPC("The id is out of range, or not text.") from None
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise NotJSONRPC("An id is a string or an integer.")
    return _encode(value) if isinstance(value, str) else b"%d" % value


def value_of(identity: bytes) -> Any:
    """An id as a plain Python value."""
    return msgspec.json.decode(identity)


def is_fragile(identity: bytes) -> bool:
    """Whether an id is a number that some JSON parser would round, so that its answer could not be matched."""
    return not identity.startswith(b'"') and abs(int(identity)) > MAX_SAFE_INTEGER


def with_id(raw: bytes, identity: bytes) -> bytes:
    """The same message under another id."""
    members = _decode_members(raw)
    members["id"] = msgspec.Raw(identity)
    return _encode(members)


def with_cancelled_id(raw: bytes, identity: bytes) -> bytes:
    """The same ``notifications/cancelled`` about another request."""
    members = _decode_members(raw)
    params = _decode_members(members["params"])
    params["requestId"] = msgspec.Raw(identity)
    members["params"] = msgspec.Raw(_encode(params))
    return _encode(members)


def cancelled_id(message: Message) -> bytes | None:
    """Which request a ``notifications/cancelled`` is about; None where it does not say."""
    try:
        return canonical_id(bytes(_decode_members(message.body)["requestId"]))
    except (KeyError, msgspec.DecodeError, NotJSONRPC, RecursionError):
        return None


_ID = rb'"id"\s*:\s*(-?\d+|"(?:[^"\\]|\\.)*")\s*'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"\s*,\s*'
_ID_FIRST = re.compile(rb"\s*\{\s*(?:" + _VERSION + rb")?" + _ID + rb",\s*(?:" + _VERSION + rb')?"(?:result|error)"')
_ID_LAST = re.compile(_VERSION + _ID + rb"\}\s*$")
_ANSWER_FIRST = re.compile(rb'\s*\{\s*"(?:result|error)"\s*:')


def answered_id(head: bytes, tail: bytes) -> bytes | None:
    """Which request an answer is for of which only the edges are known; None where they do not tell for sure.

    Told are the key orders of the official SDKs: Python's begins with the id, TypeScript's ends with it.
    """
    found = _ID_FIRST.match(head) or (_ANSWER_FIRST.match(head) and _ID_LAST.search(tail))
    try:
        return canonical_id(found.group(1)) if found else None
    except NotJSONRPC:
        return None


def error_under(identity: bytes, body: bytes) -> bytes | None:
    """The error answer in a body, under another id; None if the body is none."""
    try:
        message = parse(body)
    except (NotJSON, NotJSONRPC):
        return None
    return with_id(body, identity) if message.is_error else None


def request(identity: bytes, method: str, params: bytes = b"") -> bytes:
    """A request of our own; ``params`` is JSON text."""
    members: dict[str, Any] = {"jsonrpc": "2.0", "id": msgspec.Raw(identity), "method": method}
    if params:
        members["params"] = msgspec.Raw(params)
    return _encode(members)


def notification(method: str, params: dict[str, Any] | None = None) -> bytes:
    """A notification of our own."""
    members: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        members["params"] = params
    return _encode(members)


def result(identity: bytes, value: Any) -> bytes:
    """A result of our own; ``value`` is a plain Python value or ``msgspec.Raw`` JSON text."""
    return _encode({"jsonrpc": "2.0", "id": msgspec.Raw(identity), "result": value})


def error(identity: bytes | None, code: int, message: str, data: dict[str, Any] | None = None) -> bytes:
    """An error answer of our own; without an id its id is null, as JSON-RPC asks."""
    body: dict[str, Any] = {"code": code, "message": message}
    if data:
        body["data"] = data
    return _encode({"jsonrpc": "2.0", "id": msgspec.Raw(identity or b"null"), "error": body})
