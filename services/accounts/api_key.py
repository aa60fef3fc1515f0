"""The text of an API key: `embolens_<id>_<secret><checksum>`.

The id names the row, the secret proves the caller, the checksum tells a mistyped or random text from a key without
asking the database. The prefix lets secret scanners find a key that was committed or logged by mistake.

A key's secret has 256 random bits. SHA-256 is enough to store it: no dictionary or brute force reaches it, so a slow
password hash would cost every request its time and protect nothing. Keys are found by their id, and the hashes are
compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "embolens_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 12
_SECRET_LENGTH = 43  # of 62 characters: 256 bits
_CHECKSUM_LENGTH = 6
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_ID_LENGTH}}})_([0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{6}})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in the clear. Its secret appears in no representation."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"

    @classmethod
    def generate(cls) -> ApiKey:
        return cls(_random(_ID_LENGTH), _random(_SECRET_LENGTH))

    @classmethod
    def parse(cls, text: str) -> ApiKey | None:
        """The key; None where the text is none, or is mistyped."""
        match = _FORM.fullmatch(text)
        if match is None:
            return None
        key = cls(match[1], match[2])
        return key if hmac.compare_digest(_checksum(key), match[3]) else None

    def text(self) -> str:
        """What is handed to the client, once."""
        return f"{PREFIX}{self.id}_{self.secret}{_checksum(self)}"

    def secret_hash(self) -> str:
        return hashed(self.secret)

    def matches(self, secret_hash: str) -> bool:
        return hmac.compare_digest(self.secret_hash(), secret_hash)


def hashed(secret: str) -> str:
    """SHA-256 in hex, of a secret with 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(key: ApiKey) -> str:
    number = zlib.crc32(f"{key.id}_{key.secret}".encode())
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits += _ALPHABET[digit]
    return digits
