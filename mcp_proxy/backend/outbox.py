"""The messages of one link that wait for their turn.

Requests may overtake each other, as they do at the client's. A barrier (a notification, an answer) neither overtakes
nor is overtaken: it waits until the backend has been heard on all that went before, and what follows waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from mcp_proxy.session.interfaces import Outgoing
from mcp_proxy.timers import Timers

#: How many messages may wait.
MAX_QUEUED = 2000


class Outbox:
    """See the module.

    :param post: sends a message, whose turn it is.
    :param max_posts: how many may be under way.
    :param order_wait: for how many seconds a barrier waits for a backend that does not say whether it has read what
        went before; it will have by then.
    """

    def __init__(
        self, clock: IReactorTime, post: Callable[[Outgoing], None], *, max_posts: int, order_wait: float
    ) -> None:
        self._post = post
        self._max_posts = max_posts
        self._order_wait = order_wait
        self._timers = Timers(clock)
        self._queue: deque[Outgoing] = deque()
        self._busy: set[Outgoing] = set()
        self._unheard: set[Outgoing] = set()
        self._barriers: set[Outgoing] = set()
        self._is_held = False

    def add(self, outgoing: Outgoing) -> bool:
        """Take a message; False if there is no room."""
        if len(self._queue) >= MAX_QUEUED:
            return False
        self._queue.append(outgoing)
        if len(self._queue) > 1 or self._is_held or self._barriers or outgoing.barrier:
            self._pump()
        elif len(self._busy) < self._max_posts:
            self._next()
        return True

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Take a message back; False if its turn has come already."""
        if outgoing not in self._queue:
            return False
        self._queue.remove(outgoing)
        return True

    def heard(self, outgoing: Outgoing) -> None:
        """The backend has reacted to a message, so it has read it."""
        self._unheard.discard(outgoing)
        self._barriers.discard(outgoing)
        if self._queue:
            self._pump()

    def done(self, outgoing: Outgoing) -> None:
        """Nothing more comes of a message: another may be under way in its place."""
        self._busy.discard(outgoing)
        self.heard(outgoing)

    def hold(self) -> None:
        """Send nothing for now."""
        self._is_held = True

    def go(self) -> None:
        """Send again."""
        self._is_held = False
        self._pump()

    def clear(self) -> None:
        """Forget all; nothing is sent any more."""
        self._is_held = True
        self._queue.clear()
        self._timers.cancel_all()

    @property
    def has_unheard(self) -> bool:
        """Whether there is a message of which nobody knows yet what the backend makes of it."""
        return bool(self._unheard)

    def _pump(self) -> None:
        while self._queue and not self._is_held and len(self._busy) < self._max_posts:
            if self._barriers or (self._queue[0].barrier and self._unheard):
                self._timers.keep("order", self._order_wait, self._waited_enough)
                return
            self._next()

    def _waited_enough(self) -> None:
        if self._queue and not self._is_held:
            self._next()
        self._pump()

    def _next(self) -> None:
        self._timers.cancel("order")
        outgoing = self._queue.popleft()
        self._busy.add(outgoing)
        self._unheard.add(outgoing)
        if outgoing.barrier:
            self._barriers.add(outgoing)
        self._post(outgoing)
