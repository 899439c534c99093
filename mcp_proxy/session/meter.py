"""What is worth counting, told by those whom it happens to."""

from __future__ import annotations

from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.wire.errors import ProxyError


class Meter:
    """Counts nothing. What counts, overrides these methods; they are called often, and must be quick and never fail."""

    def began(self, exchange: Exchange, session: str) -> None:
        """A request of a client's has arrived; its headers may be changed.

        :param session: how logs name the session.
        """

    def answered_here(self, exchange: Exchange) -> None:
        """We have answered a request of a client's in the backend's place."""

    def answered(self, exchange: Exchange, received: float, done: float, *, is_error: bool) -> None:
        """The backend answered a request of a client's.

        :param received: when the answer came, in seconds of the session's clock.
        :param done: when it had been passed on.
        :param is_error: the answer is an error of the backend's.
        """

    def refused(self, exchange: Exchange) -> None:
        """The backend refused a request by HTTP, and the client was shown that."""

    def failed(self, exchange: Exchange, error: ProxyError) -> None:
        """A request was answered by us, with an error."""

    def cancelled(self, exchange: Exchange) -> None:
        """The client wants no answer any more."""

    def limited(self, error: ProxyError) -> None:
        """A limit was reached, and something was refused or dropped for that."""

    def held(self, seconds: float) -> None:
        """A message was held for so long."""

    def relayed(self) -> None:
        """A notification or a request of the backend's was passed on to a client."""

    def replayed(self, events: int) -> None:
        """A client that came back was sent events that it had missed."""

    def stalled(self) -> None:
        """A client does not keep up with what it is sent."""

    def restored(self) -> None:
        """A handshake was replayed."""

    def attempted(self) -> None:
        """A lost backend is tried."""

    def outage_over(self, seconds: float) -> None:
        """The backend is back after so long."""


#: Counts nothing.
NO_METER = Meter()
