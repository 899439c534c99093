"""The ``requestState`` that a client brings back: it names a parked call, and only we can have made it."""

from __future__ import annotations

import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: How each of ours begins, so that it is told from a backend's.
PREFIX = "mcp-proxy.1."
#: The longest that is looked at.
MAX_LENGTH = 512

_NONCE = 12
_TIME = struct.Struct(">d")


class BadState(Exception):
    """It is none of ours, or belongs to another principal or another request."""


class Seal:
    """Seals names; the key is this process's own.

    What is sealed is bound to bytes that are not in it: whoever opens it must have the same.
    """

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(256))

    def close(self, name: bytes, expires: float, bound: bytes) -> str:
        """A text that holds a name."""
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._cipher.encrypt(nonce, _TIME.pack(expires) + name, bound)
        return PREFIX + urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def open(self, text: str, bound: bytes) -> tuple[bytes, float]:
        """The name in a text, and when it expires.

        :raises BadState: the text was changed, or is bound to something else.
        """
        if not is_sealed(text) or len(text) > MAX_LENGTH:
            raise BadState()
        try:
            data = urlsafe_b64decode(text[len(PREFIX) :].encode("ascii") + b"==")
            plain = self._cipher.decrypt(data[:_NONCE], data[_NONCE:], bound)
        except (ValueError, InvalidTag):
            raise BadState() from None
        return plain[_TIME.size :], _TIME.unpack_from(plain)[0]


def is_sealed(state: object) -> bool:
    """Whether a ``requestState`` is one of ours, by the look of it."""
    return isinstance(state, str) and state.startswith(PREFIX)
