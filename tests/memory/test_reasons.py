"""What is said about a backend that could not be asked."""

from __future__ import annotations

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.failures import RequestFailed
from mcp_proxy.backend.http import BackendHTTP
from mcp_proxy.backend.target import Target


class Reasons(SynchronousTestCase):
    def failed(self, body: bytes | None) -> RequestFailed:
        """A request to a backend that never accepts the connection."""
        reactor = MemoryReactorClock()
        client = BackendHTTP(reactor, Target.of("http://127.0.0.1:1"), 10.0).client()
        opened = client.open("POST" if body else "GET", "http://127.0.0.1:3000/x", (), body)
        opened.cancel()
        return RequestFailed.trapped(self.failureResultOf(opened))

    def test_given_up_while_connecting(self) -> None:
        """A question that is given up before there is a connection got no answer in time, and was not sent."""
        for body in (None, b"{}"):
            error = self.failed(body)
            self.assertEqual((error.reason, error.sent), ("no answer in time", False))
