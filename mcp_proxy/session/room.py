"""What may be held while the backend is away: by one session, and by all together."""

from __future__ import annotations

from attrs import define, frozen

from mcp_proxy.wire.errors import Overloaded, TooManyHeld, TooMuchHeld, TooMuchHeldInAll


@define(eq=False)
class Room:
    """Bytes of held messages, of all sessions.

    :ivar limit: how many there may be; 0 is no limit.
    :ivar used: how many there are.
    """

    limit: int = 0
    used: int = 0

    def change(self, old: int, new: int) -> int:
        """Somebody holds so many instead of so many before."""
        self.used += new - old
        return new

    def has(self, size: int) -> bool:
        """Whether there is room for so many more."""
        return not self.limit or self.used + size <= self.limit


@frozen
class Allowance:
    """What one session may hold.

    :ivar count: how many messages.
    :ivar size: how many bytes they may have in all.
    :ivar room: for those of all sessions.
    """

    count: int
    size: int
    room: Room

    def refusal(self, count: int, held: int, size: int) -> Overloaded | None:
        """Why there is no room for so many bytes more, beside so many messages with so many; None if there is."""
        if count >= self.count:
            return TooManyHeld()
        if held + size > self.size:
            return TooMuchHeld()
        return None if self.room.has(size) else TooMuchHeldInAll()
