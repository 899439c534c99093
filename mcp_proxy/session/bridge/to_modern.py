"""A legacy client's messages as a backend of revision 2026-07-28 takes them, and its answers as the client takes them.

Only what must change is changed; every other value keeps its bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec
from attrs import define, field

from mcp_proxy.wire import jsonrpc, modern, parameters, revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message
from mcp_proxy.wire.parameters import Annotations, WronglyAnnotated

#: What a client may set as the least severe that is logged.
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
#: What this revision says in an error of the envelope, which is the proxy's work and not the client's.
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
ENVELOPE_ERRORS = (HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION)
#: How many tools are remembered.
MAX_TOOLS = 10_000
#: Requests that may be answered with questions.
ASKING = ("tools/call", "prompts/get", "resources/read")
COMPLETE, INPUT_REQUIRED = "complete", "input_required"

#: Members of a result that older revisions do not have.
_ADDED = ("resultType", "ttlMs", "cacheScope")

Members = dict[str, msgspec.Raw]
_decode_members = msgspec.json.Decoder(Members).decode
_encode = msgspec.json.encode


@define
class Client:
    """What each request tells of its client: what it said in its handshake, and the log level that it has set."""

    version: str = revisions.LEGACY[-1]
    level: str = ""
    _info: bytes = b""
    _capabilities: bytes = b"{}"

    @classmethod
    def of(cls, initialize: Message) -> Client:
        """The client that says this."""
        params = initialize.params()
        offered = params.get("protocolVersion")
        declared = params.get("capabilities")
        declared = declared if isinstance(declared, dict) else {}
        capabilities = {name: value for name, value in declared.items() if name not in modern.UNTRANSLATED}
        info = params.get("clientInfo")
        return cls(
            offered if offered in revisions.LEGACY else revisions.LEGACY[-1],
            "",
            _encode(info) if isinstance(info, dict) else b"",
            _encode(capabilities),
        )

    def request(self, identity: bytes, method: str, params: bytes = b"", more: Members | None = None) -> bytes:
        """A request as the backend takes it.

        :param params: as the client gave them.
        :param more: what is put beside them.
        """
        members = _object(params)
        meta = _object(bytes(members.get("_meta", b"")))
        meta[modern.VERSION] = msgspec.Raw(_encode(revisions.MODERN[-1]))
        meta[modern.CAPABILITIES] = msgspec.Raw(self._capabilities)
        meta.pop(modern.CLIENT_INFO, None)
        meta.pop(modern.LOG_LEVEL, None)
        if self._info:
            meta[modern.CLIENT_INFO] = msgspec.Raw(self._info)
        if self.level and method not in (revisions.LISTEN, revisions.DISCOVER):
            meta[modern.LOG_LEVEL] = msgspec.Raw(_encode(self.level))
        members["_meta"] = msgspec.Raw(_encode(meta))
        return jsonrpc.request(identity, method, _encode({**members, **(more or {})}))


@define
class Tools:
    """What the backend's tools want to have repeated in headers, by their names."""

    _wanted: dict[str, Annotations] = field(factory=dict)

    def learn(self, result: bytes) -> bytes:
        """A page of tools: remember them; return it without those that no client can call."""
        members = _object(result)
        try:
            tools = msgspec.json.decode(members.get("tools", b"[]"), type=list[msgspec.Raw])
        except msgspec.DecodeError:
            return result
        shown = [tool for tool in tools if self._learn(bytes(tool))]
        if len(shown) == len(tools):
            return result
        return _encode({**members, "tools": shown})

    def _learn(self, text: bytes) -> bool:
        tool = _value(text)
        name = tool.get("name")
        if not isinstance(name, str):
            return True
        try:
            wanted = parameters.repeated(tool.get("inputSchema")) if b"x-mcp-header" in text else ()
        except WronglyAnnotated:
            self._wanted.pop(name, None)
            return False
        if wanted and (name in self._wanted or len(self._wanted) < MAX_TOOLS):
            self._wanted[name] = wanted
        elif not wanted:
            self._wanted.pop(name, None)
        return True

    def headers(self, method: str, params: bytes) -> Headers:
        """The headers that repeat what a request says."""
        value = _value(params)
        own = modern.envelope_headers(method, value)
        wanted = self._wanted.get(str(value.get("name"))) if method == revisions.CALL_TOOL else None
        return own if wanted is None else (*own, *parameters.headers_for(wanted, value.get("arguments")))


def standing(headers: Headers) -> Headers:
    """A client's headers without those that a request of this revision has of its own."""
    return tuple(
        (name, value)
        for name, value in headers
        if name.lower() not in (modern.VERSION_HEADER, modern.METHOD_HEADER, modern.NAME_HEADER)
        and not name.lower().startswith(parameters.PREFIX)
    )


def speaks(discovered: Message) -> bool:
    """Whether this answer to ``server/discover`` is that of a backend of this revision."""
    versions = None if discovered.is_error else discovered.params().get("supportedVersions")
    return isinstance(versions, list) and revisions.MODERN[-1] in versions


def initialized(discovered: Message, client: Client) -> dict[str, Any]:
    """The result of ``initialize`` for one of ``server/discover``."""
    result = discovered.params()
    meta = result.get("_meta")
    info = meta.get(modern.SERVER_INFO) if isinstance(meta, dict) else None
    if not (isinstance(info, dict) and isinstance(info.get("name"), str) and isinstance(info.get("version"), str)):
        info = {"name": "mcp-server", "version": "unknown"}
    declared = result.get("capabilities")
    declared = declared if isinstance(declared, dict) else {}
    shown: dict[str, Any] = {
        "protocolVersion": client.version,
        "capabilities": {name: value for name, value in declared.items() if name not in modern.UNTRANSLATED},
        "serverInfo": info,
    }
    if isinstance(result.get("instructions"), str):
        shown["instructions"] = result["instructions"]
    return shown


def listening(filter_: dict[str, Any]) -> bytes:
    """The params of a request to be told of changes."""
    return _encode({"notifications": filter_})


def next_page(cursor: str) -> bytes:
    """The params of a request for the next page of a list."""
    return _encode({"cursor": cursor})


def kind_of(result: bytes) -> str:
    """The ``resultType`` of a result; older servers do not say it of a complete one."""
    try:
        return str(msgspec.json.decode(_object(result).get("resultType", b'"complete"')))
    except msgspec.DecodeError:
        return ""


def plain(result: bytes, identity: bytes) -> bytes:
    """The answer with a complete result, without what older revisions do not know."""
    members = _object(result)
    if any(name in members for name in _ADDED):
        result = _encode({name: value for name, value in members.items() if name not in _ADDED})
    return jsonrpc.result(identity, msgspec.Raw(result))


def failed(error: bytes, identity: bytes) -> bytes:
    """An answer with this error."""
    return _encode({"jsonrpc": "2.0", "id": msgspec.Raw(identity), "error": msgspec.Raw(error)})


def shown_error(message: Message, identity: bytes) -> bytes:
    """An error as the client is to see it: what is wrong with the envelope is no fault of the client's."""
    error = message.params()
    code = error.get("code")
    if code not in ENVELOPE_ERRORS:
        return jsonrpc.with_id(message.raw, identity)
    text = f"The backend refused the request of the proxy: {error.get('message', '')!s:.500}"
    data = {"source": "proxy", "code": code, "delivered": "no", "retrySafe": True}
    if "data" in error:
        data["data"] = error["data"]
    return jsonrpc.error(identity, -32603, text, data)


def error_code(message: Message) -> int:
    """The code of an error; 0 if it has none."""
    code = message.params().get("code")
    return code if isinstance(code, int) else 0


def untagged(message: Message) -> Message:
    """A notification of a subscription without the subscription's id, which the client has never heard of."""
    members = _decode_members(message.raw)
    params = _object(bytes(members.get("params", b"")))
    meta = _object(bytes(params.get("_meta", b"")))
    if modern.SUBSCRIPTION not in meta:
        return message
    del meta[modern.SUBSCRIPTION]
    if meta:
        params["_meta"] = msgspec.Raw(_encode(meta))
    else:
        del params["_meta"]
    if params:
        members["params"] = msgspec.Raw(_encode(params))
    else:
        del members["params"]
    return jsonrpc.parse(_encode(members))


def _object(text: bytes) -> Members:
    """The members of an object; none if it is no object."""
    try:
        return _decode_members(text) if text.lstrip()[:1] == b"{" else {}
    except (msgspec.DecodeError, RecursionError):
        return {}


def _value(text: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
