"""The proxy itself is told to stop, as by a new version of it, while its clients are at work."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.e2e.cases import for_pairs
from tests.e2e.kinds import PYTHON_SSE, PYTHON_STREAMABLE, STREAMABLE
from tests.e2e.processes import until


@for_pairs([(PYTHON_SSE, STREAMABLE), (PYTHON_STREAMABLE, STREAMABLE)])
class Stop:
    """SIGTERM."""

    settings = {"DRAIN_TIMEOUT": "15"}

    async def test_in_flight(self) -> None:
        """A call that is under way is answered; only then is the proxy gone, and all is well."""
        client = await self.connected()
        await client.do("list")  # else the SDK does it after the call
        self.backend.shut_gate("append")
        appending = client.start_call("append", line="once", gate="append")
        await until(self.backend.ledger, "the mutation has happened")
        ended = Deferred.fromCoroutine(self.proxy.stop("TERM"))
        await until(lambda: "received SIGTERM" in self.proxy.output, "the proxy knows")
        self.backend.open_gate("append")
        self.assertEqual((await appending).get()["text"], "appended once")
        await ended
        self.assertEqual(self.proxy.status, 0)
        self.assertEqual(self.backend.ledger(), ["once"])
