"""Where a page of a list ended: the time and id of its last row, as one opaque word."""

from __future__ import annotations

import base64
import binascii
import uuid
from datetime import UTC, datetime

from imaging.errors import InputError


def cursor_after(created_at: datetime, row_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {row_id}".encode()).decode()


def place_of(cursor: str) -> tuple[datetime, str]:
    """Raises InputError (`request.invalid_cursor`)."""
    try:
        created_at, row_id = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii").split(" ")
        return datetime.fromisoformat(created_at).astimezone(UTC), str(uuid.UUID(row_id))
    except (ValueError, OverflowError, binascii.Error):
        raise InputError(
            f"cursor {cursor!r}", code="request.invalid_cursor", remedy="use `next` of the page before as it is"
        ) from None
