"""Sending at once: the one place that reads private names of Twisted's.

``transport.write`` hands its bytes to the reactor, which calls the kernel twice more (``epoll_ctl``) and sends them one
turn later. With nothing queued the socket can be asked directly. A transport of another kind, or of another Twisted, is
written to in the public way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp

#: What is read of a transport beside its public interface.
PRIVATE = ("_tempDataBuffer", "_writeDisconnected", "_aborting", "dataBuffer", "socket", "TLS")


Send = Callable[[Any, bytes], None]


def sender(transport: Any) -> Send:
    """What sends bytes on this transport, which it is given: directly if that can be, else by ``transport.write``."""
    fits = type(transport) in (tcp.Server, tcp.Client) and all(hasattr(transport, name) for name in PRIVATE)
    return send if fits and not transport.TLS else write


def write(transport: Any, data: bytes) -> None:
    """Send in the public way."""
    transport.write(data)


def send(transport: Any, data: bytes) -> None:
    """Send directly, if nothing is queued."""
    if (
        transport.connected
        and not transport._tempDataBuffer
        and not transport.dataBuffer
        and not transport.disconnecting
        and not transport._writeDisconnected
        and not transport._aborting
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:  # full, or broken: the transport finds out which, and says so in its own way
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)
