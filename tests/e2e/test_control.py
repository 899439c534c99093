"""The counter-check: without the proxy, a restart is noticed. Else the other tests would prove nothing."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import TimeoutError

from tests.e2e.actors import ClientError
from tests.e2e.cases import for_pairs
from tests.e2e.kinds import DIRECT_PAIRS


@for_pairs(DIRECT_PAIRS)
class WithoutProxy:
    """The client is connected to the backend itself."""

    async def test_restart(self) -> None:
        """A call after a restart fails, or is not answered at all."""
        client = self.client()
        (await client.start_connect(self.backend.port, self.backend.kind.path)).get()
        self.assertEqual(await client.call("pid"), str(self.backend.pid))
        await self.backend.restart()
        with self.assertRaises((ClientError, TimeoutError)):
            (await client.start_call("pid").addTimeout(3, reactor)).get()
