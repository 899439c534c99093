"""Files with certificates: what is wrong with one is said in a line, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.backend.trust import BadFile, Trust
from mcp_proxy.config import ConfigError, Settings, load
from mcp_proxy.service import make_service
from tests.support.certificates import make


class Files(SynchronousTestCase):
    def setUp(self) -> None:
        """Some files."""
        folder = Path(self.mktemp())
        folder.mkdir()
        own, other = make("own"), make("other")
        self.public = own.write(folder, "public.pem", own.public)
        self.private = own.write(folder, "private.pem", own.private)
        self.other = other.write(folder, "other.pem", other.private)
        self.noise = own.write(folder, "noise.pem", b"s3cret noise")
        encrypted = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
        self.encrypted = own.write(folder, "encrypted.pem", encrypted)
        self.broken = own.write(folder, "broken.pem", own.public.replace(b"M", b"!", 3))
        self.folder = str(folder)

    def refused(self, ca_file: str, certificate_file: str, key_file: str, about: str) -> None:
        error = self.assertRaises(BadFile, Trust.of, ca_file, certificate_file, key_file)
        self.assertIn(about, str(error))
        self.assertNotIn("s3cret", str(error))
        self.assertEqual(len(str(error).splitlines()), 1)

    def test_refused(self) -> None:
        """What is no certificate, no key, or another's key is refused, and named."""
        self.refused(self.noise, "", "", "noise.pem")
        self.refused(self.broken, "", "", "broken.pem")
        self.refused(self.private, "", "", "private.pem")
        self.refused(self.folder, "", "", "cannot be read")
        self.refused("", self.noise, "", "noise.pem")
        self.refused("", self.public, "", "public.pem")
        self.refused("", self.public, self.noise, "noise.pem")
        self.refused("", self.public, self.other, "other.pem")
        self.refused("", self.public, self.encrypted, "encrypted.pem")
        self.refused("", "", self.private, "BACKEND_CLIENT_CERT")

    def test_taken(self) -> None:
        """A pair is taken, and the key is in no text about it."""
        trust = Trust.of(self.public, self.public, self.private)
        self.assertNotIn("PrivateCertificate", repr(trust))

    def test_settings(self) -> None:
        """A path that is no file is a bad setting; a file that is of no use ends the program before it listens."""
        self.assertRaises(ConfigError, load, {"BACKEND_CA_FILE": self.folder}, {}, None)
        settings = Settings(backend_url="https://localhost", backend_ca_file=self.noise)
        nothing: Any = None
        error = self.assertRaises(SystemExit, make_service, settings, nothing)
        self.assertIn("noise.pem", str(error))
