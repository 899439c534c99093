"""TLS towards the backend: whose certificates are believed, and which one the proxy shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import crypto
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS, trustRootFromCertificates
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer


class BadFile(Exception):
    """A file with certificates or a key cannot be used. The message is one line."""


@implementer(IPolicyForHTTPS)
@frozen
class Trust:
    """What is agreed on with the backend.

    :ivar roots: who vouches for it; None: whoever the system trusts.
    :ivar own: the certificate that it is shown, or none, and its chain.
    """

    roots: Any = None
    own: PrivateCertificate | None = field(default=None, repr=False)
    chain: list[crypto.X509] = field(factory=list)

    @classmethod
    def of(cls, ca_file: str, certificate_file: str, key_file: str) -> Trust:
        """Read the files; no name is no file.

        :raises BadFile: one cannot be read, or holds something else; or the key is another's.
        """
        roots = trustRootFromCertificates(_certificates(ca_file)) if ca_file else None
        if not certificate_file:
            if key_file:
                raise BadFile("BACKEND_CLIENT_KEY is of no use without BACKEND_CLIENT_CERT")
            return cls(roots)
        chain = [each.original for each in _certificates(certificate_file)[1:]]
        try:
            pem = _read(certificate_file) + (b"\n" + _read(key_file) if key_file else b"")
            load_pem_private_key(pem, None)  # OpenSSL would ask for the password of an encrypted one
            own = PrivateCertificate.loadPEM(pem)
        except (VerifyError, crypto.Error, ValueError, TypeError) as error:
            raise BadFile(
                f"{key_file or certificate_file} has no key, without a password, that belongs to {certificate_file}"
            ) from error
        return cls(roots, own, chain)

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """See IPolicyForHTTPS."""
        extra = {"extraCertChain": self.chain} if self.chain else None
        return optionsForClientTLS(hostname.decode("ascii"), self.roots, self.own, extraCertificateOptions=extra)


def _certificates(name: str) -> list[Any]:
    try:
        found = x509.load_pem_x509_certificates(_read(name))
    except ValueError as error:
        raise BadFile(f"{name} holds no PEM certificates") from error
    return [Certificate.loadPEM(each.public_bytes(Encoding.PEM)) for each in found]


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise BadFile(f"{name} cannot be read: {error.strerror}") from error
