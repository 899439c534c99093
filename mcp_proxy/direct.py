"""Shorter ways: the one place that uses private names of Twisted's.

``transport.write`` hands its bytes to the reactor, which calls the kernel twice more (``epoll_ctl``) and sends them one
turn later. With nothing queued the socket can be asked directly. A transport of another kind, or of another Twisted, is
written to in the public way.

The reactor makes a context for the log of old Twisted each time a descriptor is ready. Nobody here asks for it. And it
sleeps between two events, however soon the next one comes: to fall asleep and wake up takes longer than a quick backend
does. So for a moment it only looks, as long as that is not in vain.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet import tcp
from twisted.logger import Logger

log = Logger()

#: What is read of a transport beside its public interface.
PRIVATE = ("_tempDataBuffer", "_writeDisconnected", "_aborting", "dataBuffer", "socket", "TLS")

#: What is used of a reactor.
POLL_PRIVATE = ("_poller", "_selectables", "_doReadOrWrite")

#: For how many seconds at most it is only looked for the next event, and how often in a row in vain.
AWAKE = 60e-6
IN_VAIN = 3

_let_others = getattr(os, "sched_yield", lambda: None)

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


class _Watch:
    """Waits for what is ready.

    :param poll: that of an epoll object.
    """

    __slots__ = ("_left", "_poll")

    def __init__(self, poll: Callable[[float, int], list[tuple[int, int]]]) -> None:
        self._poll = poll
        self._left = 0  # how often it may yet be looked in vain

    def next(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """What is ready, as soon as something is, or nothing after so many seconds (-1: never)."""
        poll = self._poll
        if self._left:
            end = monotonic() + AWAKE
            while monotonic() < end:
                ready = poll(0, most)
                if ready:
                    self._left = IN_VAIN
                    return ready
                _let_others()  # who may have to run here before anything can come
            self._left -= 1
        began = monotonic()
        ready = poll(timeout, most)
        if ready and monotonic() - began < AWAKE:
            self._left = IN_VAIN
        return ready


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
    watch = _Watch(poll).next

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
