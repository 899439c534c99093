"""What all sessions together may hold while the backend is away."""

from __future__ import annotations

from attrs import define


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
