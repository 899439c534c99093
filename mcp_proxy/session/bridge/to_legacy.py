"""A client of revision 2026-07-28 and a backend of an older one: what each message becomes on the other side."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from attrs import frozen

from mcp_proxy import __version__
from mcp_proxy.wire import jsonrpc, modern, revisions
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import Message

#: What each request tells of its client, and the older revisions tell in other ways.
_ENVELOPE = (modern.VERSION, modern.CAPABILITIES, modern.CLIENT_INFO, modern.LOG_LEVEL)

LOG = "notifications/message"
ELICIT, SAMPLE, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"

#: What the revision has no more; its tasks are an extension of another kind.
_REMOVED = frozenset(
    (revisions.INITIALIZE, revisions.PING, revisions.SET_LEVEL, revisions.SUBSCRIBE, revisions.UNSUBSCRIBE)
)
#: The only requests that may be answered with questions.
_MAY_ASK = frozenset((revisions.CALL_TOOL, "prompts/get", "resources/read"))
#: The results that say for how long they are true: not at all, and for nobody else.
_CACHEABLE = frozenset((*revisions.LISTS, "resources/read", revisions.DISCOVER))
#: The levels of logs, the least severe first.
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")

#: Of the older revisions: a resource that is not there, and a URL that the user has to visit first.
_NOT_FOUND, URL_REQUIRED = -32002, -32042
METHOD_NOT_FOUND, INVALID_PARAMS, CAPABILITY_MISSING = -32601, -32602, -32021
#: Errors that have an HTTP status of their own, while no stream has begun.
_STATUSES = {
    **dict.fromkeys((-32700, -32600, INVALID_PARAMS, -32020, CAPABILITY_MISSING, -32022), 400),
    METHOD_NOT_FOUND: 404,
}

#: How many questions of one call may be unanswered.
MAX_QUESTIONS = 16
#: Asks for a header that repeats an argument.
_HEADER_NAME = "x-mcp-header"
#: Members of a schema that hold values, not schemas.
_VALUES = ("const", "default", "enum", "examples")

#: Stands where an id is still to be set.
_NO_ID = b"0"

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


@frozen
class Client:
    """What a client says of itself in each request, as canonical JSON text: one session serves those who say the same.

    ``capabilities`` are those that a backend of an older revision can use.
    """

    capabilities: bytes
    info: bytes

    @classmethod
    def of(cls, message: Message) -> Client:
        """The one that has sent a request."""
        meta = _meta(message)
        declared = meta.get(modern.CAPABILITIES)
        declared = declared if isinstance(declared, dict) else {}
        capabilities = {name: value for name, value in declared.items() if name not in modern.UNTRANSLATED}
        info = meta.get(modern.CLIENT_INFO)
        if not (isinstance(info, dict) and isinstance(info.get("name"), str) and isinstance(info.get("version"), str)):
            info = {"name": "mcp-proxy", "version": __version__}
        return cls(_encode_sorted(capabilities), _encode_sorted(info))

    @property
    def may_be_asked(self) -> bool:
        """Whether it answers any questions."""
        declared = msgspec.json.decode(self.capabilities)
        return any(name in declared for name in ("elicitation", "sampling", "roots"))

    def can(self, method: str, mode: str = "form") -> bool:
        """Whether it answers questions of this kind."""
        declared = msgspec.json.decode(self.capabilities).get(method.partition("/")[0])
        if method != ELICIT or not isinstance(declared, dict):
            return isinstance(declared, dict)
        return mode in declared or (mode == "form" and "url" not in declared)


def is_removed(method: str) -> bool:
    """Whether the revision has no such method, though a backend of an older one may."""
    return method in _REMOVED or method.startswith("tasks/")


def may_ask(method: str) -> bool:
    """Whether the backend may ask the client something before it answers this."""
    return method in _MAY_ASK


# -- towards the backend ---------------------------------------------------------------------------------------


def initialize(identity: bytes, client: Client) -> bytes:
    """The handshake that the client itself does not make."""
    params = {
        "protocolVersion": revisions.LEGACY[-1],
        "capabilities": msgspec.Raw(client.capabilities),
        "clientInfo": msgspec.Raw(client.info),
    }
    return jsonrpc.request(identity, revisions.INITIALIZE, _encode(params))


def request(message: Message, identity: bytes) -> bytes:
    """A request under an id of ours, which is its progress token as well, without what the revision adds."""
    params = _members(message.body) if message.body else {}
    for name in ("inputResponses", "requestState", "task"):
        params.pop(name, None)
    meta = _members(params.pop("_meta", b"{}"))
    for name in _ENVELOPE:
        meta.pop(name, None)
    if "progressToken" in meta:
        meta["progressToken"] = msgspec.Raw(identity)
    if meta:
        params["_meta"] = msgspec.Raw(_encode(meta))
    return jsonrpc.request(identity, message.method, _encode(params) if params else b"")


def headers(own: Headers) -> Headers:
    """The headers of a request without those that repeat what the older revisions say nowhere else."""
    return tuple((name, value) for name, value in own if not name.lower().startswith(b"mcp-"))


def digest(message: Message) -> bytes:
    """What a request asks, whatever the attempt: a retry with answers asks the same."""
    params = message.params()
    asked = {name: value for name, value in params.items() if name not in ("_meta", "inputResponses", "requestState")}
    return hashlib.sha256(_encode_sorted([message.method, asked])).digest()


def level_of(message: Message) -> str:
    """The least severe level of logs that a request wants; empty if it wants none."""
    level = _meta(message).get(modern.LOG_LEVEL)
    return level if isinstance(level, str) and level in LEVELS else ""


def token_of(message: Message) -> Any:
    """What a client wants to hear of progress under."""
    return _meta(message).get("progressToken")


# -- towards the client ----------------------------------------------------------------------------------------


def discovered(initialized: dict[str, Any]) -> bytes:
    """The answer to ``server/discover``, from what the backend said to initialize; its id is still to be set."""
    declared = initialized.get("capabilities")
    declared = declared if isinstance(declared, dict) else {}
    capabilities = {name: value for name, value in declared.items() if name not in modern.UNTRANSLATED}
    result = {"supportedVersions": [*revisions.MODERN, *reversed(revisions.LEGACY)], "capabilities": capabilities}
    if isinstance(initialized.get("instructions"), str):
        result["instructions"] = initialized["instructions"]
    return answer(revisions.DISCOVER, _encode(result), initialized)


def answer(method: str, body: bytes, initialized: dict[str, Any]) -> bytes:
    """The answer with a result of the backend's; its id is still to be set."""
    try:
        result = _members(body)
        meta = _members(result["_meta"]) if "_meta" in result else {}
    except msgspec.DecodeError:
        return jsonrpc.error(None, -32603, "The backend's result is no object.", {"source": "proxy"})
    if method == revisions.LIST_TOOLS:
        result = _without_header_names(body, result)
    result["resultType"] = msgspec.Raw(b'"complete"')
    if method in _CACHEABLE:
        result["ttlMs"], result["cacheScope"] = msgspec.Raw(b"0"), msgspec.Raw(b'"private"')
    if isinstance(initialized.get("serverInfo"), dict):
        meta[modern.SERVER_INFO] = msgspec.Raw(_encode(initialized["serverInfo"]))
    if meta:
        result["_meta"] = msgspec.Raw(_encode(meta))
    return jsonrpc.result(_NO_ID, result)


def _without_header_names(body: bytes, result: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """A list of tools that asks for no headers: nobody behind us would compare them with the body."""
    if _HEADER_NAME.encode() not in body:
        return result
    tools = msgspec.json.decode(result.get("tools", b"[]"))
    for tool in tools if isinstance(tools, list) else []:
        if isinstance(tool, dict):
            _forget_header_names(tool.get("inputSchema"))
    return {**result, "tools": msgspec.Raw(_encode(tools))}


def _forget_header_names(schema: Any) -> None:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, dict):
            if not isinstance(each.get(_HEADER_NAME), dict):  # else it is an argument of that very name
                each.pop(_HEADER_NAME, None)
            waiting += (value for name, value in each.items() if name not in _VALUES)


def error(message: Message, uri: object) -> bytes:
    """An error of the backend's as the revision has it; its id is still to be set.

    :param uri: of the resource that was asked for.
    """
    said = message.params()
    if said.get("code") == _NOT_FOUND:
        data = said.get("data")
        data = {**data} if isinstance(data, dict) else {}
        if isinstance(uri, str):
            data.setdefault("uri", uri)
        return jsonrpc.error(None, INVALID_PARAMS, str(said.get("message", "Resource not found")), data)
    if said.get("code") == URL_REQUIRED:
        needed: dict[str, Any] = {"requiredCapabilities": {"elicitation": {"url": {}}}}
        return jsonrpc.error(None, CAPABILITY_MISSING, str(said.get("message", "A URL must be visited")), needed)
    return message.raw


def status_of(raw: bytes) -> int:
    """The HTTP status of an answer that is no stream."""
    message = jsonrpc.parse(raw)
    code = message.params().get("code")
    return _STATUSES.get(code, 200) if message.is_error and isinstance(code, int) else 200


def progress(message: Message, token: Any) -> bytes:
    """A report of progress under the client's own token."""
    members, params = _members(message.raw), _members(message.body)
    params["progressToken"] = msgspec.Raw(_encode(token))
    members["params"] = msgspec.Raw(_encode(params))
    return _encode(members)


# -- questions -------------------------------------------------------------------------------------------------


class Unaskable(Exception):
    """A question that cannot be put to this client; the text says why, ``code`` is what the backend is told."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def question(method: str, params: dict[str, Any], client: Client) -> dict[str, Any]:
    """What the backend asks, as the client is to see it.

    :raises Unaskable: the client has not said that it answers such.
    """
    mode = str(params.get("mode", "form")) if method == ELICIT else ""
    if method not in (ELICIT, SAMPLE, ROOTS) or not client.can(method, mode):
        raise Unaskable(METHOD_NOT_FOUND, f"The client does not answer {method[:40]} {mode[:10]}".rstrip() + ".")
    shown = {name: value for name, value in params.items() if name not in ("_meta", "task", "elicitationId")}
    return {"method": method, "params": shown} if shown or method != ROOTS else {"method": method}


def visits(message: Message, client: Client) -> dict[str, dict[str, Any]]:
    """The questions in an error that says which URLs the user has to visit first; empty if there are none to ask."""
    data = message.params().get("data")
    asked = data.get("elicitations") if isinstance(data, dict) else None
    if not isinstance(asked, list) or not client.can(ELICIT, "url"):
        return {}
    found = [each for each in asked if isinstance(each, dict) and isinstance(each.get("url"), str)]
    return {
        f"url{number}": question(ELICIT, {**each, "mode": "url"}, client)
        for number, each in enumerate(found[:MAX_QUESTIONS], 1)
    }


def input_required(requests: dict[str, dict[str, Any]], state: str, initialized: dict[str, Any]) -> bytes:
    """The answer that asks; its id is still to be set."""
    result: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests, "requestState": state}
    if isinstance(initialized.get("serverInfo"), dict):
        result["_meta"] = {modern.SERVER_INFO: initialized["serverInfo"]}
    return jsonrpc.result(_NO_ID, result)


def responses(message: Message) -> dict[str, bytes]:
    """What a client answers, by the names of the questions; what cannot be a result is no answer."""
    try:
        given = _members(message.body).get("inputResponses", msgspec.Raw(b"{}"))
        return {name: bytes(value) for name, value in _members(given).items() if value and bytes(value)[:1] == b"{"}
    except msgspec.DecodeError:
        return {}


def is_accepted(response: bytes) -> bool:
    """Whether the user has done what was asked."""
    return bool(msgspec.json.decode(response).get("action") == "accept")


def _meta(message: Message) -> dict[str, Any]:
    meta = message.params().get("_meta")
    return meta if isinstance(meta, dict) else {}
