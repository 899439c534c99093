"""Keys of the proxy's own, with the whole program."""

from __future__ import annotations

from pathlib import Path

from tests.integration.service_case import ALICE, ServiceCase

KEY = (b"x-proxy-key", b"the-only-key-there-is")


class OwnKeys(ServiceCase):
    async def test_not_passed_on(self) -> None:
        """The backend sees the client's credential, but never the proxy's key, also after a restart."""
        keys = Path(self.mktemp())
        keys.write_bytes(KEY[1] + b"\n")
        self.start(proxy_api_keys_file=str(keys))
        stranger = self.client(ALICE)
        self.assertEqual((await stranger.fetch("GET", "/mcp/sse")).status, 403)
        client = await self.connected(KEY, ALICE)
        await self.backend.restart()
        self.assertIn("result", await client.call())
        page = await client.fetch("GET", "/.well-known/oauth-protected-resource")
        self.assertNotEqual(page.status, 403)
        self.assertTrue(any("x-api-key" in each.headers for each in self.backend.asked))
        self.assertEqual([each.path for each in self.backend.asked if "x-proxy-key" in each.headers], [])
        self.assertNotIn(KEY[1].decode(), repr(self.backend.asked))
