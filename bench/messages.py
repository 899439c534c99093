"""What is asked in the bench and what has to be answered; the stub and the load generator both build it from here.

There is one tool, ``work``. Its arguments say how many events come before the answer (with none, the answer is JSON
rather than an event stream) and how many bytes the result has. The token makes each answer different from any other.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

VERSION = b"2025-06-18"


class Arguments(msgspec.Struct, frozen=True):
    """The arguments of ``work``."""

    token: str = ""
    events: int = 0
    size: int = 0


class ClientInfo(msgspec.Struct, frozen=True):
    """Who initializes."""

    name: str = ""


class Params(msgspec.Struct, frozen=True):
    """What the stub looks at in ``params``."""

    arguments: Arguments = Arguments()
    clientInfo: ClientInfo = ClientInfo()
    protocolVersion: str = VERSION.decode()


class Message(msgspec.Struct, frozen=True):
    """What the stub looks at in a message of the client's; an id stays the bytes that it was."""

    method: str = ""
    id: msgspec.Raw = msgspec.Raw()
    params: Params = Params()


read_message = msgspec.json.Decoder(Message).decode

#: Answers to what is asked beside ``work``.
TOOLS = (
    b'{"tools":[{"name":"work","description":"Answers.","inputSchema":{"type":"object","properties":{"token":'
    b'{"type":"string"},"events":{"type":"integer"},"size":{"type":"integer"}}}}]}'
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


def initialize(name: bytes) -> bytes:
    """Return the first request of a client of that name."""
    return (
        b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"%b","capabilities":{},'
        b'"clientInfo":{"name":"%b","version":"1"}}}' % (VERSION, name)
    )


def handshake(version: bytes) -> bytes:
    """Return what the stub says of itself."""
    return (
        b'{"protocolVersion":"%b","capabilities":{"tools":{},"logging":{}},'
        b'"serverInfo":{"name":"stub","version":"1"}}' % version
    )


def reply(id: bytes, result: bytes) -> bytes:
    """Return the answer to a request."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, result)


def call(number: int, events: int, size: int) -> bytes:
    """Return a call of the tool."""
    return (
        b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"work","arguments":'
        b'{"token":"t%d","events":%d,"size":%d}}}' % (number, number, events, size)
    )


def notice(text: bytes) -> bytes:
    """Return a notification of the stub's."""
    return b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%b"}}' % text


def answers(id: bytes, token: bytes, events: int, size: int) -> list[bytes]:
    """Return all messages that answer a call, the result as the last of them."""
    notices = [notice(b"%b %d of the events before the answer, with some text" % (token, n)) for n in range(events)]
    result = b'{"content":[{"type":"text","text":"%b%b"}],"isError":false}' % (token, filler(size))
    return [*notices, reply(id, result)]


@lru_cache
def filler(size: int) -> bytes:
    """Return that many bytes of text, with the spaces and letters of prose and nothing to escape."""
    return (b" all work and no play makes jack a dull boy" * (size // 40 + 1))[:size]


def is_same(found: bytes, wanted: bytes) -> bool:
    """Whether two messages say the same, also if somebody has written one of them anew."""
    if found == wanted:
        return True
    try:
        return core(msgspec.json.decode(found)) == core(msgspec.json.decode(wanted))
    except msgspec.DecodeError:
        return False


def core(message: object) -> object:
    """Return a message without what a proxy that writes results anew may add: fields that say nothing."""
    if isinstance(message, dict):
        return {
            name: core(value)
            for name, value in message.items()
            if name not in ("_meta", "structuredContent") and value not in (None, False)
        }
    return [core(each) for each in message] if isinstance(message, list) else message
