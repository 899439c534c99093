"""Has the backend gone, has it forgotten the session, or was it only that stream, only that message?

Over Streamable HTTP a broken stream, a 400 or a gateway's 503 alone does not tell. A ping under the same session id
does, once for all that is in doubt at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from mcp_proxy.backend.post import Post
from mcp_proxy.backend.response import GATEWAY, Response
from mcp_proxy.session.interfaces import Loss, Outgoing, Refusal
from mcp_proxy.timers import Timers

#: For how many seconds, once the session is known to be lost, POSTs without an answer may still be refused as well.
STALE_WAIT = 1.0
#: What is answered to a session that is not known, or by what is no MCP endpoint (any more).
UNKNOWN = (404, 405, 410)


class IDoubted(Protocol):
    """Who has the doubts; a link does this."""

    @property
    def session(self) -> bytes:
        """The backend's session id; empty if there is none to ask for."""

    @property
    def has_unheard(self) -> bool:
        """Whether there is a message of which nobody knows yet what the backend makes of it."""

    def ask(self, answered: Callable[[Response | None], None], *, is_gateway: bool) -> None:
        """Ping the session; without one, see whether anybody is there (None). No answer ends the link.

        :param is_gateway: it is one that listens, so that somebody does tells nothing.
        """

    def hold(self) -> None:
        """Send nothing any more."""

    def go(self) -> None:
        """Send again."""

    def only_a_stream(self, post: Post, reason: str) -> None:
        """The backend is there: what it was sending can perhaps be resumed."""

    def only_a_message(self, post: Post, refusal: Refusal) -> None:
        """The backend knows the session: it refused that very message."""

    def only_listening(self) -> None:
        """The backend is there: the GET stream can be asked for again."""

    def lose(self, loss: Loss) -> None:
        """The link is over."""


class Doubts:
    """See the module."""

    __slots__ = (
        "_broken",
        "_is_asked",
        "_is_held",
        "_is_listening_lost",
        "_link",
        "_refused",
        "_timers",
        "_unseen",
        "_why",
        "is_stale",
    )

    def __init__(self, link: IDoubted, clock: IReactorTime) -> None:
        self.is_stale = False
        self._link = link
        self._timers = Timers(clock)
        self._broken: tuple[tuple[Post, str], ...] = ()
        self._refused: tuple[tuple[Post, Refusal], ...] = ()
        self._unseen: tuple[Outgoing, ...] = ()
        self._is_listening_lost = False
        self._is_asked = False
        self._is_held = False
        self._why = ""

    def stream_broke(self, post: Post, reason: str) -> None:
        """The stream of a POST, or the POST itself, broke."""
        self._broken += ((post, reason),)
        self._ask()

    def listening_broke(self) -> None:
        """The GET stream is over."""
        self._is_listening_lost = True
        self._ask()

    def message_refused(self, post: Post, refusal: Refusal) -> None:
        """A message was refused with a status that may mean the session, or that the backend has gone."""
        self._refused += ((post, refusal),)
        if refusal.status >= GATEWAY:
            self._is_held = True
            self._link.hold()  # else all that comes now meets the same
        self._ask()

    def session_unknown(self, post: Post, reason: str) -> None:
        """A message was refused with a status that means the session."""
        self._unseen += (post.outgoing,)
        self.session_lost(reason)

    def session_lost(self, reason: str) -> None:
        """The backend does not know the session; others of our POSTs will hear the same, and count as not sent then."""
        self.is_stale = True
        self._why = self._why or reason
        self._link.hold()
        if self._link.has_unheard:
            self._timers.keep("stale", STALE_WAIT, self._lose)
        else:
            self._lose()

    @property
    def is_holding(self) -> bool:
        """Whether nothing is to be sent until it is known more."""
        return self._is_held or self.is_stale

    def close(self) -> None:
        """It does not matter any more."""
        self._timers.cancel_all()

    def _lose(self) -> None:
        # what a gateway has lost, the backend before may have carried out
        refused = (post.outgoing for post, refusal in self._refused if refusal.status < GATEWAY)
        unseen = (*self._unseen, *refused)
        reason = f"the backend does not know the session any more ({self._why})"
        self._link.lose(Loss(reason, reachable=True, unseen=unseen))

    def _ask(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            is_gateway = self._is_held
            self._link.ask(lambda response: self._answered(response, is_gateway), is_gateway=is_gateway)

    def _answered(self, response: Response | None, is_gateway: bool) -> None:
        if response is None and self._is_held and not is_gateway:
            self._is_asked = False
            self._ask()  # that somebody listens does not tell any more
            return
        if response is not None:
            status, session, own = response.status, response.header(b"mcp-session-id"), self._link.session
            response.abort()
            is_other = status < 300 and session and session != own
            if status in UNKNOWN or (own and (status == 400 or is_other)):
                self.session_lost(f"HTTP {status} to a ping")
                return
            if status >= GATEWAY or (self._is_suspicious and self._is_no_answer(response)):
                self._link.lose(Loss(f"the backend answered {status} to a ping", reachable=False))
                return
        if self.is_stale:
            return  # what it said about the session has been said before
        self._is_asked = False
        if self._is_held:
            self._is_held = False
            self._link.go()
        is_listening_lost, self._is_listening_lost = self._is_listening_lost, False
        refused, self._refused = self._refused, ()
        broken, self._broken = self._broken, ()
        if is_listening_lost:
            self._link.only_listening()
        for post, refusal in refused:
            self._link.only_a_message(post, refusal)
        for post, reason in broken:
            self._link.only_a_stream(post, reason)

    @property
    def _is_suspicious(self) -> bool:
        """Whether something has ended that does not end by itself."""
        return bool(self._broken) or self._is_listening_lost

    @staticmethod
    def _is_no_answer(response: Response) -> bool:
        """Whether it is what a server says that is only just starting: a fault, a page, a way to somewhere else."""
        status = response.status
        return status in (500, 501) or 300 <= status < 400 or (status < 300 and response.kind == b"text/html")
