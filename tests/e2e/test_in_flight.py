"""The backend is killed while a request is on its way: nothing hangs, and nothing is done twice."""

from __future__ import annotations

from tests.e2e.cases import for_pairs
from tests.e2e.kinds import PAIRS
from tests.e2e.processes import until


@for_pairs(PAIRS)
class InFlight:
    """During a request."""

    async def test_mutation(self) -> None:
        """A tool call that the backend took to its grave is answered with the truth, and not sent again."""
        client = await self.connected()
        self.backend.shut_gate("append")
        appending = client.start_call("append", line="once", gate="append")
        await until(self.backend.ledger, "the mutation has happened")
        await self.backend.stop("KILL")

        data = await self.assertError(appending, -31002)
        self.assertIn(data["delivered"], ("maybe", "yes"))
        self.assertIs(data["retrySafe"], False)
        self.assertEqual(data["method"], "tools/call")
        self.assertGreaterEqual(data["outageMs"], 0)

        self.backend.open_gate("append")
        await self.backend.start()
        self.assertEqual(await client.call("pid"), str(self.backend.pid))
        self.assertEqual(self.backend.ledger(), ["once"])

    async def test_read(self) -> None:
        """A read is asked again of the new process; its client sees no error."""
        client = await self.connected()
        self.backend.shut_gate("slow")
        reading = client.start("read", uri="note://slow")
        await until(lambda: self.backend.received("resources/read"), "the read is in flight")
        await self.backend.stop("KILL")
        self.backend.open_gate("slow")
        await self.backend.start()
        self.assertEqual((await reading).get(), f"note://slow of {self.backend.pid}")

    async def test_request_of_the_server(self) -> None:
        """A request of the dead process is cancelled; the client's late answer does not reach the new one."""
        client = await self.connected()
        await client.do("hold")
        asking = client.start_call("ask", kind="sampling")
        question = await client.wait_for("sampling/createMessage")
        await self.backend.restart()
        cancelled = await client.wait_for("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], question["id"])

        await client.do("release")
        await self.assertError(asking, -31002)
        self.assertEqual(await client.call("ask", kind="sampling"), "blue")
        answers = [each for each in self.backend.received(pid=self.backend.pid) if "result" in each]
        self.assertEqual(len(answers), 1)

    async def test_held(self) -> None:
        """Requests made while the backend is down wait for it, and are then carried out once each."""
        relay = self.relay()
        client = await self.connected(port=relay.entrance)
        await self.backend.stop("KILL")
        lines = [f"held-{number}" for number in range(5)]
        appending = [client.start_call("append", line=line) for line in lines]
        listing = client.start("list")
        sent = [line.encode() for line in lines] + [b"tools/list"]
        await until(lambda: all(each in relay.sent for each in sent), "the proxy has got the requests")
        await self.backend.start()
        for line, reply in zip(lines, appending, strict=True):
            self.assertEqual((await reply).get()["text"], f"appended {line}")
        self.assertIn("append", (await listing).get())
        self.assertEqual(sorted(self.backend.ledger()), lines)
