"""What the operator decided about sessions."""

from __future__ import annotations

from collections.abc import Callable

from attrs import field, frozen

from mcp_proxy.session.room import Room


@frozen
class Policy:
    """What the operator decided. Times in seconds.

    ``max_attempts`` 0 is no limit. ``room`` is what all sessions together may hold. ``linger`` is how long the link
    outlives the client's stream.
    """

    hold_timeout: float = 45.0
    max_held: int = 100
    max_held_bytes: int = 8 * 1024 * 1024
    room: Room = field(factory=Room)
    max_attempts: int = 10
    reconnect_delay: float = 2.0
    handshake_timeout: float = 10.0
    linger: float = 5.0
    retry_annotated_tools: bool = False
    jitter: Callable[[float], float] = lambda delay: delay
