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
        self._queue: deque[Outgoing] | None = None  # an empty one is large, and most are empty
        self._busy: dict[Outgoing, None] = {}  # the smaller set
        self._unheard: dict[Outgoing, None] = {}
        self._barriers: dict[Outgoing, None] = {}
        self._is_held = False

    def add(self, outgoing: Outgoing) -> bool:
        """Take a message; False if there is no room."""
        if self._queue or self._is_held or self._barriers or outgoing.barrier or len(self._busy) >= self._max_posts:
            if self._queue is None:
                self._queue = deque()
            if len(self._queue) >= MAX_QUEUED:
                return False
            self._queue.append(outgoing)
            self._pump()
        else:
            self._begin(outgoing)
        return True

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Take a message back; False if its turn has come already."""
        if self._queue is None or outgoing not in self._queue:
            return False
        self._queue.remove(outgoing)
        return True

    def heard(self, outgoing: Outgoing) -> None:
        """The backend has reacted to a message, so it has read it."""
        self._unheard.pop(outgoing, None)
        self._barriers.pop(outgoing, None)
        if self._queue:
            self._pump()

    def done(self, outgoing: Outgoing) -> None:
        """Nothing more comes of a message: another may be under way in its place."""
        self._busy.pop(outgoing, None)
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
        self._queue = None
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
        if not self._is_held:
            self._next()
        self._pump()

    def _next(self) -> None:
        self._timers.cancel("order")
        if self._queue:
            outgoing = self._queue.popleft()
            self._queue = self._queue or None
            self._begin(outgoing)

    def _begin(self, outgoing: Outgoing) -> None:
        self._busy[outgoing] = self._unheard[outgoing] = None
        if outgoing.barrier:
            self._barriers[outgoing] = None
        self._post(outgoing)
