"""Shorter ways: the one place that uses private names of Twisted's.

``transport.write`` hands its bytes to the reactor, which calls the kernel twice more (``epoll_ctl``) and sends them one
turn later. With nothing queued the socket can be asked directly. A transport of another kind, or of another Twisted, is
written to in the public way.

The reactor makes a context for the log of old Twisted each time a descriptor is ready. Nobody here asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.logger import Logger

from .awake import EpollWatch

log = Logger()

#: What is read of a transport beside its public interface.
PRIVATE = ("_tempDataBuffer", "_writeDisconnected", "_aborting", "dataBuffer", "socket", "TLS")

#: What is used of a reactor.
POLL_PRIVATE = ("_poller", "_selectables", "_doReadOrWrite")

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


def quicken(reactor: Any) -> bool:
    """Let a reactor on epoll handle what is ready without such contexts; tells whether it can be done.

    It gets an ``at_turns_end`` as well (see :class:`~mcp_proxy.turn.Turn`). Once is enough for all who ask.
    """
    if hasattr(reactor, "at_turns_end"):
        return True
    if type(reactor).__name__ != "EPollReactor" or not all(hasattr(reactor, name) for name in POLL_PRIVATE):
        return False
    poll, selectables, handle = reactor._poller.poll, reactor._selectables, reactor._doReadOrWrite

    ending: list[Callable[[], None]] = []
    watch = EpollWatch(poll).next

    def turn(timeout: float | None) -> None:
        timeout = 0 if ending else -1 if timeout is None else timeout
        for descriptor, event in (watch if timeout else poll)(timeout, len(selectables)):
            selectable = selectables.get(descriptor)
            if selectable is not None:  # else what was ready before it has ended it
                try:
                    handle(selectable, descriptor, event)
                except Exception:
                    log.failure("a connection could not be ended in an orderly way")

        if ending:
            due = ending.copy()
            ending.clear()
            for work in due:
                work()

    reactor.doIteration = turn
    reactor.at_turns_end = ending.append
    return True
