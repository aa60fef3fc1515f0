"""What stands in the place of UIDs, patient IDs and dates: the same for the same, within one export.

All of it is made with a secret. Without it nobody comes from a new UID to the old one, nor knows by how many days the
dates were moved; with it the next export gives the same patient the same ID.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from datetime import date, timedelta

_MOST_DAYS = 3650
_DATE_AND_TIME = re.compile(r"\d{8}(\d{2,6}(\.\d{1,6})?)?([+-]\d{4})?", re.ASCII)
_DICOM_ROOT = "1.2.840.10008."  # UIDs of the Standard name no instance


class Pseudonyms:
    """Of one export."""

    def __init__(self, secret: bytes | None = None) -> None:
        """Without a secret one is made and kept nowhere."""
        self._secret = secrets.token_bytes(32) if secret is None else secret

    def uid(self, uid: str) -> str:
        """A UID of PS3.5 B.2; one of the Standard, or none, stays what it is."""
        if not uid or uid.startswith(_DICOM_ROOT):
            return uid
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def patient_id(self, patient_id: str) -> str:
        return f"ANON{self._digest('patient', patient_id).hex()[:12].upper()}"

    def days_back(self, patient_id: str) -> int:
        """By how many days this patient's dates are moved into the past; at least one."""
        return 1 + int.from_bytes(self._digest("days", patient_id)[:8], "big") % _MOST_DAYS

    def moved(self, text: str, patient_id: str) -> str:
        """A DA or DT value with its date moved; the time of day stays. Empty where it is no whole date or no time."""
        if not _DATE_AND_TIME.fullmatch(text):
            return ""
        try:
            day = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
            moved = day - timedelta(days=self.days_back(patient_id))
        except (ValueError, OverflowError):
            return ""
        return f"{moved:%Y%m%d}".rjust(8, "0") + text[8:]

    def _digest(self, *parts: str) -> bytes:
        return hmac.new(self._secret, "\0".join(parts).encode(), hashlib.sha256).digest()
