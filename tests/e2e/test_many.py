"""Many restarts, and many clients."""

from __future__ import annotations

from itertools import count, cycle, islice

from twisted.internet.defer import Deferred, gatherResults

from tests.e2e.actors import Client, ClientError, Reply
from tests.e2e.cases import for_pairs
from tests.e2e.kinds import DIRECT_PAIRS
from tests.e2e.processes import until

RESTARTS = 20
CLIENTS = 50


@for_pairs(DIRECT_PAIRS)
class Many:
    """Under load."""

    limit = 100.0

    async def test_restarts_under_traffic(self) -> None:
        """Through 20 restarts in a row every call gets an answer, and no answer lies about what was done."""
        client = await self.connected()
        lines = count()
        done: set[str] = set()
        lost: dict[str, ClientError] = {}
        is_over = False

        async def keep_calling() -> None:
            while not is_over:
                line = f"line-{next(lines)}"
                reply = await client.start_call("append", line=line)
                if reply.error is None:
                    done.add(line)
                else:
                    lost[line] = reply.error

        async def some_are_done() -> None:
            goal = len(done) + 10
            await until(lambda: len(done) >= goal, "calls are carried out again")

        traffic = [Deferred.fromCoroutine(keep_calling()) for _ in range(4)]
        await some_are_done()
        for signal in islice(cycle(("KILL", "TERM")), RESTARTS):
            before = len(lost)
            await self.backend.restart(signal)
            await some_are_done()
            # A backend that is killed can take no more calls to the grave than there were in flight; one that is asked
            # to end may carry out calls whose answers it does not send any more.
            if signal == "KILL":
                self.assertLessEqual(len(lost) - before, len(traffic))
        is_over = True
        await gatherResults(traffic)

        ledger = self.backend.ledger()
        self.assertEqual(len(ledger), len(set(ledger)), "a call was carried out twice")
        self.assertEqual(done - set(ledger), set(), "a call was said to be carried out, but was not")
        self.assertEqual({error.code for error in lost.values()} - {-31002}, set(), lost)

    async def test_clients(self) -> None:
        """50 clients carry on across a restart, each with its own session, and each is introduced once."""
        clients = [self.client(f"client-{number}") for number in range(CLIENTS)]
        await self.all_of([client.start_connect(self.proxy.port) for client in clients])
        await self.all_echo(clients, "before")
        await self.backend.stop("KILL")
        meanwhile = [client.start_call("echo", text=f"down {client.name}") for client in clients]
        await self.backend.start()
        answers = await self.all_of(meanwhile)
        self.assertEqual([each["text"] for each in answers], [f"down {client.name}" for client in clients])
        await self.all_echo(clients, "after")
        for process in self.backend.processes:
            self.assertEqual(len(self.backend.received("initialize", process.pid)), CLIENTS)

    async def all_echo(self, clients: list[Client], when: str) -> None:
        """All clients call at the same time, and each gets what is its own."""
        answers = await self.all_of([each.start_call("echo", text=f"{when} {each.name}") for each in clients])
        self.assertEqual([each["text"] for each in answers], [f"{when} {each.name}" for each in clients])

    async def all_of(self, replies: list[Deferred[Reply]]) -> list[object]:
        """Return the values of all replies; fail if one is an error."""
        return [reply.get() for reply in await gatherResults(replies)]
