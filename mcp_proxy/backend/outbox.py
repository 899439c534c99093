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

    __slots__ = (
        "_barriers",
        "_busy",
        "_is_held",
        "_max_posts",
        "_order_wait",
        "_post",
        "_queue",
        "_timers",
        "_unheard",
    )

    def __init__(
        self, clock: IReactorTime, post: Callable[[Outgoing], None], *, max_posts: int, order_wait: float
    ) -> None:
        self._post = post
        self._max_posts = max_posts
        self._order_wait = order_wait
        self._timers = Timers(clock)
        self._queue: deque[Outgoing] | None = None  # an empty one is large, and most are empty
        self._busy: dict[Outgoing, bool] = {}  # those under way; true: nobody knows yet what the backend makes of it
        self._unheard = 0
        self._barriers = 0  # of these
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
        if self._busy.get(outgoing):
            self._busy[outgoing] = False
            self._count_out(outgoing)
        if self._queue:
            self._pump()

    def _count_out(self, outgoing: Outgoing) -> None:
        self._unheard -= 1
        self._barriers -= outgoing.barrier

    def done(self, outgoing: Outgoing) -> None:
        """Nothing more comes of a message: another may be under way in its place."""
        if self._busy.pop(outgoing, False):
            self._count_out(outgoing)
        self._busy = self._busy or {}  # an emptied one is large
        if self._queue:
            self._pump()

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
        return self._unheard > 0

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
        self._busy[outgoing] = True
        self._unheard += 1
        self._barriers += outgoing.barrier
        self._post(outgoing)
