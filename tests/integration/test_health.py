"""The status pages of the whole program."""

from __future__ import annotations

from typing import Any

from tests.integration.service_case import ALICE, ServiceCase
from tests.support.scripted import response


class Health(ServiceCase):
    async def watch(self, healthy: bool) -> Any:
        """Ask until the backend is (not) healthy; return the page."""
        page: Any = None
        for _ in range(200):
            page = await self.health()
            if page["backend"]["healthy"] is healthy:
                return page
        raise AssertionError(f"never became {healthy}: {page}")

    async def test_up(self) -> None:
        """A backend that answers is healthy, and the proxy ready."""
        self.start(health_interval=0.05)
        page = await self.watch(True)
        self.assertEqual(page["status"], "ok")
        self.assertIsNone(page["backend"]["problem"])
        self.assertEqual((await self.client().fetch("GET", "/ready")).status, 200)

    async def test_no_page(self) -> None:
        """A backend without a health page is healthy; a dead port is not, after one look; and back it is again."""
        self.backend.health = response(404, b"nothing here")
        self.start(health_interval=0.05)
        await self.watch(True)
        self.backend.die()
        page = await self.watch(False)
        self.assertEqual((page["status"], page["proxy"]["healthy"]), ("degraded", True))
        self.assertEqual(page["backend"]["problem"], "connection refused")
        answer = await self.client().fetch("GET", "/ready")
        self.assertEqual((answer.status, answer.json()["reason"]), (503, "Backend unavailable"))
        await self.backend.revive()
        await self.watch(True)

    async def test_three_strikes(self) -> None:
        """Of a page that fails it takes three in a row to call the backend ill."""
        self.start(health_interval=0.05)
        await self.watch(True)
        before = self.checks()
        self.backend.health = response(500, b"")
        page = await self.watch(False)
        self.assertGreaterEqual(self.checks() - before, 3)
        self.assertIn("500", page["backend"]["problem"])
        self.backend.health = response(204)
        await self.watch(True)

    async def test_silent_page(self) -> None:
        """A page that does not answer counts as failed, and its connections are not left open."""
        self.start(health_interval=0.05, connect_timeout=0.2)
        await self.watch(True)
        self.backend.health = b""
        page = await self.watch(False)
        self.assertEqual(page["backend"]["problem"], "no answer in time")
        await self.until(lambda: len(self.backend.connections) <= 2, lambda: self.backend.connections)

    async def test_live_traffic(self) -> None:
        """An outage that a session meets is known at once, before the next check."""
        self.start()
        await self.connected(ALICE)
        page = await self.watch(True)
        self.assertEqual((page["proxy"]["active_connections"], page["backend"]["links"]), (1, 1))
        self.backend.die()
        page = await self.watch(False)
        self.assertEqual((page["backend"]["outages"], page["backend"]["links"]), (1, 0))
        self.assertGreater(page["backend"]["outage_seconds"], 0)
        await self.backend.revive()
        await self.watch(True)

    def checks(self) -> int:
        """How often the page was asked for."""
        return sum(asked.path.startswith("/health") for asked in self.backend.asked)


class WellKnown(ServiceCase):
    async def test_page(self) -> None:
        """A discovery page comes from the root of the backend's origin, with status, kind and body unchanged."""
        page = b'{"resource": "x", "n": 1.0}'
        self.backend.health = response(401, page, ("Content-Type", "application/json"))
        self.start(backend_url=f"http://127.0.0.1:{self.backend.port}/prefix")
        answer = await self.client().fetch("GET", "/.well-known/oauth-protected-resource/mcp")
        self.assertEqual((answer.status, answer.body), (401, page))
        self.assertEqual(answer.header(b"content-type"), b"application/json")
