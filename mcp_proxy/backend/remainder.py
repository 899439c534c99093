"""The rest of a POST's stream that ended before its answer, asked for with the id of the last event that came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.listener import FIRST_RETRY, MAX_RETRY
from mcp_proxy.backend.post import Post
from mcp_proxy.backend.response import Response
from mcp_proxy.session.interfaces import Refusal
from mcp_proxy.timers import Timers

#: How often in a row a stream that brings nothing is asked for again.
MAX_RESUMES = 5


class IResuming(Protocol):
    """Whose streams they are; a link does this."""

    def get(self, last_event: str, answered: Callable[[Response], None], failed: Callable[[Failure], None]) -> None:
        """Ask for a stream, from after this event on."""

    def resumed(self, post: Post, response: Response) -> None:
        """Here is the rest."""

    def refuse(self, post: Post, refusal: Refusal) -> None:
        """There will be none."""

    def broke(self, post: Post, reason: str) -> None:
        """Asking for it has failed."""


class Remainder:
    """See the module."""

    __slots__ = ("_link", "_timers")

    def __init__(self, link: IResuming, clock: IReactorTime) -> None:
        self._link = link
        self._timers = Timers(clock)

    def ask_later(self, post: Post) -> None:
        """Ask when the backend wants to be asked, else after a while."""
        if post.resumes >= MAX_RESUMES:
            self._link.refuse(post, Refusal(0, "the backend ended the stream without the answer"))
            return
        post.resumes += 1
        delay = FIRST_RETRY * 2**post.resumes if post.retry is None else post.retry
        self._timers.set(f"resume {id(post)}", min(delay, MAX_RETRY), self._ask, post)

    def close(self) -> None:
        """Nobody wants it any more."""
        self._timers.cancel_all()

    def _ask(self, post: Post) -> None:
        self._link.get(
            post.last_event,
            lambda response: self._answered(response, post),
            lambda failure: self._link.broke(post, RequestFailed.trapped(failure).reason),
        )

    def _answered(self, response: Response, post: Post) -> None:
        if response.is_event_stream:
            self._link.resumed(post, response)
        else:
            response.abort()
            self._link.refuse(post, Refusal(0, f"the backend answered {response.status} when asked for the rest"))
