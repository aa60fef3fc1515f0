"""UIDs derived from what an object is made of: repeated work names the same object (PS3.5 B.2, `2.25.` + UUID)."""

from __future__ import annotations

import hashlib
import uuid


def derive_uid(*parts: str) -> str:
    """A DICOM UID that depends on `parts` and on nothing else.

    The SHA-256 of the length-prefixed parts, cut to a UUID with the version bits of a name-based one (RFC 9562),
    written as ``2.25.`` and its decimal value: at most 44 characters, no registration needed (PS3.5 Annex B.2).
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return f"2.25.{uuid.UUID(bytes=digest.digest()[:16], version=5).int}"
