"""Waiting for something to become true, never for time to pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import deferLater

STEP = 0.004


async def until(reactor: Any, condition: Callable[[], object], what: object = "", timeout: float = 5.0) -> None:
    """Return as soon as the condition holds.

    :param what: what is waited for, or something that tells it, for the error.
    :raises AssertionError: it does not hold in time.
    """
    deadline = reactor.seconds() + timeout
    while not condition():
        if reactor.seconds() > deadline:
            raise AssertionError(f"waited {timeout} s in vain: {what() if callable(what) else what}")
        await deferLater(reactor, STEP, lambda: None)
