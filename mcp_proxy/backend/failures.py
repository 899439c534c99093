"""How a request towards the backend failed, in words and in how far it got."""

from __future__ import annotations

from errno import EMFILE, ENFILE

from twisted.internet.defer import CancelledError
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    ConnectionDone,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed

#: Nobody listens.
REFUSED = "connection refused"


class RequestFailed(Exception):
    """No answer came. ``sent`` tells whether the backend may have got the request all the same."""

    @classmethod
    def trapped(cls, failure: Failure) -> RequestFailed:
        """The failure as what it is; anything else is raised again."""
        failure.trap(cls)
        error = failure.value
        assert isinstance(error, cls)
        return error

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


def describe(failure: Failure) -> str:
    """What went wrong, in a few words without addresses or secrets."""
    reasons = getattr(failure.value, "reasons", None)
    while reasons:
        failure = next((each for each in reasons if not each.check(ConnectionDone)), reasons[0])
        reasons = getattr(failure.value, "reasons", None)
    error = failure.value
    if isinstance(error, (CancelledError, ConnectingCancelledError)):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if isinstance(error, DNSLookupError):
        return "its name cannot be resolved"
    if isinstance(error, ConnectionDone):
        return "the connection was closed"
    if getattr(error, "osError", None) in (EMFILE, ENFILE):
        return "the proxy may open no more files (ulimit -n)"
    if isinstance(error, (ConnectError, ConnectionClosed)):
        return (type(error).__doc__ or "the connection failed").strip().rstrip(".").lower()
    if isinstance(error, ResponseFailed):
        return "the answer was cut off"
    if "certificate verify failed" in str(error):
        return "its TLS certificate could not be verified"
    return "the connection broke"
