"""A backend that speaks TLS: whose certificate is believed, and which one the proxy shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate

from tests.integration.service_case import ALICE, ServiceCase
from tests.support import messages
from tests.support.certificates import Identity, make


class Mutual(ServiceCase):
    """The backend has a certificate of an authority of its own, and wants one of the proxy's."""

    def setUp(self) -> None:
        """The backend listens over TLS."""
        super().setUp()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.authority = make("authority", is_authority=True)
        self.ca_file = self.authority.write(self.folder, "ca.pem", self.authority.public)
        self.server = make("backend", self.authority)

    async def listen(self) -> None:
        """Let the backend listen."""
        self.backend.die("fin")
        await self.backend._stopping
        own = PrivateCertificate.loadPEM(self.server.public + self.server.private)
        self.backend.ssl = CertificateOptions(
            privateKey=own.privateKey.original,
            certificate=own.original,
            verify=True,
            caCerts=[Certificate.loadPEM(self.authority.public).original],
        )
        self.backend.start()

    def begin(self, **files: str) -> None:
        """Start the proxy with these files."""
        url = f"https://127.0.0.1:{self.backend.port}"
        self.start(backend_url=url, max_reconnect_attempts=1, hold_timeout=0.4, health_interval=0.1, **files)

    def own_files(self, *parts: bytes, **files: Any) -> dict[str, str]:
        """The settings that name the proxy's certificate."""
        return {"backend_client_cert": self.server.write(self.folder, "own.pem", *parts), **files}

    async def assert_served(self) -> None:
        """Clients are served, and the health page is reached."""
        client = await self.connected(ALICE)
        self.assertIn("result", await client.call())
        await self.until(self.is_healthy)

    def is_healthy(self) -> bool:
        """What the proxy knows of the backend."""
        return bool(self.internals()._health.is_healthy)

    async def refused(self) -> Any:
        """A client whose requests do not reach the backend; return the error."""
        client = self.client(ALICE)
        await client.open()
        answer = await client.ask(messages.initialize(0))
        self.assertEqual(self.backend.asked, [])
        return answer["error"]

    async def test_served(self) -> None:
        """With the authority's file and a certificate of its own the proxy is served."""
        await self.listen()
        own = make("proxy", self.authority)
        key = own.write(self.folder, "key.pem", own.private)
        self.begin(backend_ca_file=self.ca_file, **self.own_files(own.public, backend_client_key=key))
        await self.assert_served()

    async def test_chain(self) -> None:
        """Key and certificate may be in one file, with whoever vouches in between."""
        await self.listen()
        between = make("between", self.authority, is_authority=True)
        own = make("proxy", between)
        self.begin(backend_ca_file=self.ca_file, **self.own_files(own.public, between.public, own.private))
        await self.assert_served()

    async def test_no_certificate(self) -> None:
        """Without one of its own it is not."""
        await self.listen()
        self.begin(backend_ca_file=self.ca_file)
        await self.refused()

    async def test_unknown_certificate(self) -> None:
        """Nor with one that the backend does not believe."""
        await self.listen()
        own = make("proxy")
        self.begin(backend_ca_file=self.ca_file, **self.own_files(own.public, own.private))
        await self.refused()

    async def test_another_authority(self) -> None:
        """A backend that another authority vouches for is refused, and is sent nothing."""
        await self.listen()
        other: Identity = make("other", is_authority=True)
        own = make("proxy", self.authority)
        ca_file = other.write(self.folder, "other.pem", other.public)
        self.begin(backend_ca_file=ca_file, **self.own_files(own.public, own.private))
        self.assertIn("certificate could not be verified", (await self.refused())["message"])
