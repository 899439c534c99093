"""The client's answers to questions of the backend's, until the backend has them."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from mcp_proxy.session.interfaces import Outgoing
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.route import IRoute
from mcp_proxy.timers import Timers
from mcp_proxy.wire.headers import Headers


class Answers:
    """Those of one session. What was not taken is sent again; it can come twice, but without it the backend waits."""

    __slots__ = ("_clock", "_policy", "_refused", "_route", "_timers", "_until")

    def __init__(self, route: IRoute, clock: IReactorTime, policy: Policy) -> None:
        self._route = route
        self._clock = clock
        self._policy = policy
        self._timers = Timers(clock)
        self._until: dict[Outgoing, float] = {}  # those not taken yet, and until when they are sent again
        self._refused: list[Outgoing] = []  # those of them whose turn it is

    def send(self, raw: bytes, headers: Headers) -> None:
        """An answer that something at the backend depends on."""
        outgoing = Outgoing(raw, headers)
        self._until[outgoing] = self._clock.seconds() + self._policy.hold_timeout
        self._send(outgoing)

    def _send(self, outgoing: Outgoing) -> None:
        if self._route.link is not None:
            self._route.link.send(outgoing)

    def taken(self, outgoing: Outgoing) -> None:
        """The backend has it."""
        self._until.pop(outgoing, None)

    def refused(self, outgoing: Outgoing, reason: str, in_flight: int) -> None:
        """It did not reach the backend. In vain for too long: the link is of no use to whoever waits.

        :param in_flight: how many requests wait for the backend; while it stops, those that need no answer may end.
        """
        if outgoing not in self._until:
            return  # a ping's: the next one will do
        is_hopeless = self._route.phase is Phase.DRAINING and in_flight <= 1
        if is_hopeless or self._clock.seconds() >= self._until[outgoing]:
            self._route.lost(reason, is_away=True)
        else:
            self._refused.append(outgoing)
            self._timers.keep("again", self._policy.jitter(self._policy.reconnect_delay) / 4, self._send_again)

    def _send_again(self) -> None:
        refused, self._refused = self._refused, []
        for outgoing in refused:
            self._send(outgoing)

    def forget(self) -> None:
        """Nobody waits for them any more."""
        self._timers.cancel_all()
        self._until.clear()
        self._refused.clear()
