"""The lean way of HTTP over TLS."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.ssl import CertificateOptions

from tests.integration.service_case import ServiceCase, reactor
from tests.support import messages
from tests.support.http1 import ask, read_answer
from tests.support.messages import encoded


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of nobody's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public = folder / "cert.pem"
    public.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return private, public


class Caller(Protocol):
    """A client that says something and keeps what it gets."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.got = b""
        self.gone = False

    def connectionMade(self) -> None:
        """Say it."""
        assert self.transport is not None
        self.transport.write(self.said)

    def dataReceived(self, data: bytes) -> None:
        """More."""
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        """The end."""
        self.gone = True


class OverTLS(ServiceCase):
    def call(self, said: bytes, *protocols: bytes) -> Caller:
        """A client that offers these protocols."""
        caller = Caller(said)
        factory: Any = ClientFactory()
        factory.buildProtocol = lambda address: caller
        options = CertificateOptions(acceptableProtocols=[*protocols] or None)
        self.connector = reactor.connectSSL("127.0.0.1", self.port, factory, options)
        return caller

    async def test_served(self) -> None:
        """Clients that offer HTTP/2 beside HTTP/1.1, only the latter, or nothing, are served alike: by both ways."""
        folder = Path(self.mktemp())
        folder.mkdir()
        key, certificate = write_certificate(folder)
        self.start(
            backend_transport="streamable",
            listen=f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
        )
        headers = ((b"content-type", b"application/json"),)
        refused = ask("POST", "/mcp", headers, encoded(messages.request("ping", 1)))
        closing = ask("GET", "/health", ((b"connection", b"close"),))
        for protocols in ((b"http/1.1",), (b"h2", b"http/1.1"), ()):
            caller = self.call(refused + closing, *protocols)
            await self.until(lambda caller=caller: caller.gone, protocols)
            first = read_answer(caller.got)
            assert first is not None
            self.assertEqual((first.status, first.json()["error"]["code"]), (400, -32600), protocols)
            self.assertIn(b"HTTP/1.1 200 OK\r\n", caller.got, protocols)
