"""What became of one object on its way to a destination."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imaging.errors import DeliveryError


@dataclass(frozen=True, slots=True)
class SentObject:
    """What became of one object: `error` is None when the destination has it, and `note` says if it warned."""

    path: Path
    error: DeliveryError | None = None
    note: str = ""
