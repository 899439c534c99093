"""Everything that can go wrong, as one tree, and one table that says how a client is told.

The docstring of a class is the sentence that a user reads when the place that raises it has nothing more
precise to say. ``ANSWERS`` maps each class to its HTTP status and JSON-RPC code; a class that is not in the
table answers as its nearest ancestor does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

from attrs import field, frozen


class ProxyError(Exception):
    """The proxy could not serve this request."""

    def __init__(self, message: str = "", **data: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.data: dict[str, Any] = data

    @property
    def message(self) -> str:
        """The sentence for whoever reads the error."""
        return str(self.args[0])

    @property
    def answer(self) -> Answer:
        """How a client is told: the row of the nearest class in the table."""
        return next(ANSWERS[kind] for kind in type(self).__mro__ if kind in ANSWERS)

    @property
    def reason(self) -> str:
        """What it is called where it is counted: ``origin_refused`` for ``OriginRefused``."""
        return _reason(type(self).__name__)


@frozen
class Answer:
    """How an error is told: the HTTP status, the JSON-RPC code, and HTTP headers that belong to it."""

    status: HTTPStatus
    code: int
    headers: Mapping[str, str] = field(factory=dict)


# -- the client asked for something that cannot be served ------------------------------------------------------


class NotJSON(ProxyError):
    """The body is not valid JSON in UTF-8. Send one JSON-RPC 2.0 message."""


class NotJSONRPC(ProxyError):
    """The body is JSON but not a JSON-RPC 2.0 message."""


class BatchRefused(NotJSONRPC):
    """This transport takes one JSON-RPC message a POST, not an array. Send the messages one by one."""


class BatchTooLong(NotJSONRPC):
    """The array has more than MAX_BATCH messages. Send fewer at once."""


class EmptyBody(NotJSONRPC):
    """The body is empty. Send one JSON-RPC 2.0 message."""


class MalformedRequest(ProxyError):
    """This is not HTTP/1.1 as RFC 9112 has it; the connection is closed."""


class HeadTooLarge(MalformedRequest):
    """The head of the request is too large; the connection is closed."""


class HTTPVersionRefused(MalformedRequest):
    """HTTP/1.1 and HTTP/1.0 are spoken here; the connection is closed."""


class EndlessBody(MalformedRequest):
    """The body is so large that not even its end is waited for; the connection is closed."""


class TooSlow(MalformedRequest):
    """The request did not come in time; the connection is closed."""


class ClientStalled(ProxyError):
    """The client does not read what it is sent, for STALL_TIMEOUT; the connection is closed."""


class NoSuchPath(ProxyError):
    """There is nothing at this path. MCP clients connect to /mcp, or to /mcp/sse for HTTP+SSE."""


class UnknownSession(ProxyError):
    """No such session for this credential. Connect again: GET /mcp/sse, or POST initialize to /mcp."""


class MissingSession(ProxyError):
    """This request needs the Mcp-Session-Id header that came with the answer to initialize."""


class VersionRefused(ProxyError):
    """The MCP-Protocol-Version header names a revision that is not spoken here."""


class NothingToStream(ProxyError):
    """The reply that Last-Event-ID names is complete."""


class InvalidParams(ProxyError):
    """The params of the request are not what its revision asks for."""


class HeaderMismatch(ProxyError):
    """The headers of the request do not say what its body says."""


class UnsupportedVersion(ProxyError):
    """The request is of a revision that is not spoken here."""


class MethodNotFound(ProxyError):
    """The backend has no such method."""


class MethodRefused(ProxyError):
    """This path does not take that HTTP method."""


class OnlyPost(MethodRefused):
    """In revision 2026-07-28 there is nothing but POST."""


class LengthRequired(ProxyError):
    """A POST needs Content-Length or Transfer-Encoding: chunked."""


class BodyTooLarge(ProxyError):
    """The body is larger than MAX_BODY_BYTES."""


class UnsupportedMediaType(ProxyError):
    """The body must be application/json."""


class NotAcceptable(ProxyError):
    """This path answers text/event-stream; the Accept header rules that out."""


class OriginRefused(ProxyError):
    """This Origin is not allowed. Add it to ALLOWED_ORIGINS to admit it."""


class HostRefused(ProxyError):
    """This Host is not served here. Add it to ALLOWED_HOSTS to admit it."""


class TokenWanted(ProxyError):
    """This page is for operators: send Authorization: Bearer and the ADMIN_TOKEN."""


class KeyWanted(ProxyError):
    """This proxy wants a key of its own: send one of its keys as X-Proxy-Key. What the server wants goes beside it."""


class OnlyLocal(ProxyError):
    """This page is for operators on the proxy's own machine, unless ADMIN_TOKEN is set."""


class TooManySessions(ProxyError):
    """The proxy is at MAX_SESSIONS. Try again when other clients have gone."""


class TooManyOfYours(TooManySessions):
    """This credential is at MAX_SESSIONS_PER_CREDENTIAL. End a session of its first."""


class TooManyStreams(ProxyError):
    """The proxy is at MAX_STREAMS. Try again when other clients have gone."""


class TooManyConnections(ProxyError):
    """The proxy may open no more files for clients (ulimit -n). Try again when others have gone."""


class TooManyRequests(ProxyError):
    """This credential asks more often than MAX_REQUEST_RATE allows; the request was not delivered. Try again later."""


class ShuttingDown(ProxyError):
    """The proxy is shutting down."""


# -- the backend is away, or went away -------------------------------------------------------------------------


class BackendUnavailable(ProxyError):
    """Backend unavailable"""


class NotDelivered(BackendUnavailable):
    """The backend is unavailable; the request was not delivered. It is safe to send it again later."""


class OutcomeUnknown(ProxyError):
    """The backend was lost after the request was sent; whether it took effect is unknown. Check before repeating."""


class NotRestorable(ProxyError):
    """The session could not be restored at the backend. Connect again and send initialize."""


class Overloaded(ProxyError):
    """Too many requests are waiting for the backend; this one was not delivered. Try again later."""


class TooManyHeld(Overloaded):
    """HOLD_MAX_REQUESTS requests wait for the backend; this one was not delivered. Try again later."""


class TooMuchHeld(Overloaded):
    """What waits for the backend would be more than HOLD_MAX_BYTES; this was not delivered. Try again later."""


class TooMuchHeldInAll(Overloaded):
    """What all clients wait for would be more than HOLD_MAX_TOTAL_BYTES; this was not delivered. Try again later."""


class TooManyInFlight(Overloaded):
    """Too many requests of this session wait for their answers; this one was not delivered. Try again later."""


class TooManyParked(Overloaded):
    """Too many requests wait for their clients' answers; this one was cancelled."""


class TooManyQuestions(Overloaded):
    """Too many requests of the backend's wait for the client's answers; this one was dropped."""


class EventTooLarge(OutcomeUnknown):
    """The backend's answer is larger than MAX_EVENT_BYTES and was dropped. Do not repeat it if it changes anything."""


class BackendRefused(ProxyError):
    """The backend refused the request."""


ANSWERS: Mapping[type[ProxyError], Answer] = {
    ProxyError: Answer(HTTPStatus.INTERNAL_SERVER_ERROR, -32603),
    NotJSON: Answer(HTTPStatus.BAD_REQUEST, -32700),
    NotJSONRPC: Answer(HTTPStatus.BAD_REQUEST, -32600),
    MalformedRequest: Answer(HTTPStatus.BAD_REQUEST, -32600),
    HeadTooLarge: Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, -32600),
    HTTPVersionRefused: Answer(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, -32600),
    EndlessBody: Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, -32600),
    TooSlow: Answer(HTTPStatus.REQUEST_TIMEOUT, -32600),
    BatchTooLong: Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, -32600),
    NoSuchPath: Answer(HTTPStatus.NOT_FOUND, -32600),
    UnknownSession: Answer(HTTPStatus.NOT_FOUND, -32600),
    MissingSession: Answer(HTTPStatus.BAD_REQUEST, -32600),
    VersionRefused: Answer(HTTPStatus.BAD_REQUEST, -32600),
    NothingToStream: Answer(HTTPStatus.METHOD_NOT_ALLOWED, -32600, {"Allow": "DELETE, POST"}),
    InvalidParams: Answer(HTTPStatus.BAD_REQUEST, -32602),
    HeaderMismatch: Answer(HTTPStatus.BAD_REQUEST, -32020),
    UnsupportedVersion: Answer(HTTPStatus.BAD_REQUEST, -32022),
    MethodNotFound: Answer(HTTPStatus.NOT_FOUND, -32601),
    MethodRefused: Answer(HTTPStatus.METHOD_NOT_ALLOWED, -32600),
    OnlyPost: Answer(HTTPStatus.METHOD_NOT_ALLOWED, -32600, {"Allow": "POST"}),
    LengthRequired: Answer(HTTPStatus.LENGTH_REQUIRED, -32600),
    BodyTooLarge: Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, -32600),
    UnsupportedMediaType: Answer(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, -32600),
    NotAcceptable: Answer(HTTPStatus.NOT_ACCEPTABLE, -32600),
    OriginRefused: Answer(HTTPStatus.FORBIDDEN, -32600),
    HostRefused: Answer(HTTPStatus.MISDIRECTED_REQUEST, -32600),
    TokenWanted: Answer(HTTPStatus.UNAUTHORIZED, -32600, {"WWW-Authenticate": 'Bearer realm="mcp-proxy"'}),
    # 401 would make clients doubt the token that they have for the backend
    KeyWanted: Answer(HTTPStatus.FORBIDDEN, -32600),
    OnlyLocal: Answer(HTTPStatus.FORBIDDEN, -32600),
    TooManySessions: Answer(HTTPStatus.SERVICE_UNAVAILABLE, -31004, {"Retry-After": "5"}),
    TooManyConnections: Answer(HTTPStatus.SERVICE_UNAVAILABLE, -31004, {"Retry-After": "5"}),
    TooManyStreams: Answer(HTTPStatus.SERVICE_UNAVAILABLE, -31004, {"Retry-After": "5"}),
    TooManyRequests: Answer(HTTPStatus.TOO_MANY_REQUESTS, -31004, {"Retry-After": "1"}),
    ShuttingDown: Answer(HTTPStatus.SERVICE_UNAVAILABLE, -31001, {"Retry-After": "5"}),
    BackendUnavailable: Answer(HTTPStatus.SERVICE_UNAVAILABLE, -31001, {"Retry-After": "2"}),
    OutcomeUnknown: Answer(HTTPStatus.OK, -31002),
    NotRestorable: Answer(HTTPStatus.OK, -31003),
    Overloaded: Answer(HTTPStatus.OK, -31004),
    BackendRefused: Answer(HTTPStatus.BAD_GATEWAY, -32603),
}


@cache
def _reason(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
