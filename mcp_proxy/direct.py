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


def sender(transport: Any) -> Callable[[bytes], object]:
    """What sends bytes on this transport: directly if that can be, else ``transport.write``."""
    if (
        type(transport) not in (tcp.Server, tcp.Client)
        or not all(hasattr(transport, name) for name in PRIVATE)
        or transport.TLS
    ):
        write: Callable[[bytes], object] = transport.write
        return write

    def send(data: bytes) -> None:
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

    return send
