"""Becomes one program as often as it is asked: ``python -m tests.e2e.zygote FD MODULE``.

Most of a second goes by until Python has imported an SDK, and a scenario restarts its backend again and again. So a
zygote imports the module once, and forks for each request: what runs then is a process of its own all the same, with
an id, signals and an end of its own, and with nothing in its memory but what was imported.

FD is a socket. A request is one line on it: a JSON object with ``arguments``, ``environment`` and ``folder``, together
with three sockets. The program gets the first as stdin and stdout, and the second as stderr. The third tells the
requester two lines: the process id at once, and the exit status (negative: the signal) when the process has ended. The
next request may come after the first of them. The zygote ends when FD is closed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

#: How many bytes are read at once.
SIZE = 1 << 16


def wait_for_request(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request; return it in the process that is to carry it out, and None when no more will come."""
    # Nobody here wants to know how those have ended who only watch over a program; Ctrl-C is for the tests.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, sockets, _, _ = socket.recv_fds(control, SIZE, 3)
        while request and not request.endswith(b"\n"):
            request += control.recv(SIZE)
        if not request:
            return None
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            return json.loads(request), sockets
        for number in sockets:
            os.close(number)


def watch_over_program(sockets: list[int]) -> None:
    """Fork once more; the child returns, the parent tells what becomes of it, and ends."""
    talk, noise, fate = sockets
    pid = os.fork()
    if pid == 0:
        os.close(fate)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return
    os.close(talk)
    os.close(noise)
    try:
        os.write(fate, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(fate, b"%d\n" % os.waitstatus_to_exitcode(status))
    finally:
        os._exit(0)


def prepare() -> Callable[[], None] | None:
    """Return the program's main function in each process that is to be the program, and None in the zygote's end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    program = import_module(sys.argv[2])
    gc.freeze()
    wanted = wait_for_request(control)
    if wanted is None:
        return None
    request, sockets = wanted
    watch_over_program(sockets)
    talk, noise, _ = sockets
    for source, target in ((talk, 0), (talk, 1), (noise, 2)):
        os.dup2(source, target)
    os.close(talk)
    os.close(noise)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    main: Callable[[], None] = program.main
    return main


if __name__ == "__main__":
    main = prepare()
    if main is not None:
        main()
