"""What every kind of client has to survive with every kind of backend, in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from tests.e2e.actors import Client
from tests.e2e.cases import for_backends, for_pairs
from tests.e2e.kinds import ALL_BACKENDS, ALL_CLIENTS, LONELY_PAIRS
from tests.e2e.processes import until

Step = Callable[[Client], Coroutine[Deferred[Any], Any, Any]]


@for_pairs(LONELY_PAIRS)
@for_backends(ALL_BACKENDS, ALL_CLIENTS)
class Survival:
    """Clients that stay, of all kinds at the same time or one alone, and a backend that is killed again and again."""

    async def test_restarts(self) -> None:
        """It is killed between two calls, and in the middle of one; then a call comes while nobody is there."""
        relay = self.relay()
        clients = [self.client(kind.name, kind) for kind in self.client_kinds]

        async def connect(client: Client) -> None:
            (await client.start_connect(relay.entrance)).get()
            self.assertIn(self.backend_kind.mutation("").tool, await client.do("list"))

        await self.each(clients, connect)
        await self.each(clients, self.assert_served)
        await self.backend.restart()
        await self.each(clients, self.assert_served)

        self.backend.shut_gate("append")
        mutating = {client.name: client.start(**self.backend_kind.mutation(client.name).command) for client in clients}
        once = Counter(client.name for client in clients)
        await until(lambda: self.mutations() == once, "all mutations are in flight")
        await self.backend.stop("KILL")

        async def learn_the_truth(client: Client) -> None:
            data = await self.assertError(mutating[client.name], -31002)
            self.assertIs(data["retrySafe"], False)

        await self.each(clients, learn_the_truth)
        self.backend.open_gate("append")

        held = {client.name: self.start_echo(client, f"held {client.name}") for client in clients}
        await until(lambda: all(f"held {each}".encode() in relay.sent for each in held), "the proxy has got the calls")
        await self.backend.start()

        async def be_answered(client: Client) -> None:
            expected = self.backend_kind.echo(f"held {client.name}").text
            self.assertEqual((await held[client.name]).get()["text"], expected)

        await self.each(clients, be_answered)
        await self.each(clients, self.assert_served)
        self.assertEqual(self.mutations(), once)

    async def each(self, clients: list[Client], step: Step) -> None:
        """Let all clients do this at the same time; fail with what has become of each that failed."""
        results = await DeferredList([Deferred.fromCoroutine(step(client)) for client in clients], consumeErrors=True)
        failures = [
            f"{client.name}: {result.getTraceback()}"
            for client, (is_done, result) in zip(clients, results, strict=True)
            if not is_done
        ]
        self.assertEqual(len(failures), 0, "\n".join(failures))

    async def assert_served(self, client: Client) -> None:
        """The client's call is answered, and so is the server's question, if it can ask one."""
        expected = self.backend_kind.echo(client.name).text
        self.assertEqual((await self.start_echo(client, client.name)).get()["text"], expected)
        if self.backend_kind.asks and self.backend_kind.has_sessions:
            self.assertEqual(await client.call("ask", kind="elicitation"), "accept: blue")

    def start_echo(self, client: Client, text: str) -> Deferred[Any]:
        """Begin a call that is answered at once."""
        return client.start(**self.backend_kind.echo(text).command)

    def mutations(self) -> Counter[str]:
        """How often each client's mutation has happened or, where that does not show, has reached a backend."""
        if self.backend_kind.is_ours:
            return Counter(self.backend.ledger())
        calls = [call["params"] for call in self.backend.received("tools/call")]
        wanted = {kind.name: self.backend_kind.mutation(kind.name) for kind in self.client_kinds}
        return Counter(
            name for name, mutation in wanted.items() for call in calls if call.items() >= mutation.params.items()
        )
