"""The proxy itself is told to stop, as by a new version of it, while its clients are at work."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.e2e.cases import for_pairs
from tests.e2e.kinds import PYTHON_SSE, PYTHON_STREAMABLE, SSE, STREAMABLE, TYPESCRIPT_SSE, TYPESCRIPT_STREAMABLE
from tests.e2e.processes import until


@for_pairs(
    [
        (PYTHON_SSE, STREAMABLE),
        (PYTHON_STREAMABLE, SSE),
        (TYPESCRIPT_SSE, SSE),
        (TYPESCRIPT_STREAMABLE, STREAMABLE),
    ]
)
class Stop:
    """SIGTERM."""

    settings = {"DRAIN_TIMEOUT": "600"}

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

    async def test_impatient(self) -> None:
        """SIGTERM once more: a call under way is answered with the truth, and the proxy is gone without waiting."""
        client = await self.connected()
        await client.do("list")
        self.backend.shut_gate("append")
        appending = client.start_call("append", line="once", gate="append")
        await until(self.backend.ledger, "the mutation has happened")
        self.proxy.signal("TERM")

        def insisted() -> bool:
            self.proxy.signal("TERM")
            return "told to stop again" in self.proxy.output

        await until(insisted, "the proxy knows that there is no time")
        await self.assertError(appending, -31002)
        await self.proxy.end()
        self.assertEqual(self.proxy.status, 0)
        self.backend.open_gate("append")
