"""What became of one object on its way to a destination, and what the destination said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imaging.errors import DeliveryError

_SUCCESS = 0x0000
DUPLICATE = 0x0111  # PS3.7 C.5.7: it has this instance; our UIDs are derived from content, so it is the same one
# PS3.4 Table B.2-1, PS3.7 C.2: it is stored all the same.
WARNINGS = {
    0xB000: "data elements coerced",
    0xB006: "data elements discarded",
    0xB007: "data set does not match its SOP class",
    0x0001: "requested optional attributes not supported",
    0x0107: "attribute list error",
    0x0116: "attribute value out of range",
}


@dataclass(frozen=True, slots=True)
class SentObject:
    """What became of one object: `error` is None when the destination has it.

    `status` is what was answered of the object (a DIMSE status; STOW-RS uses the same numbers), None where no answer
    came. `comment`: the destination's own words; they may quote the patient and are not for logs.
    """

    path: Path
    error: DeliveryError | None = None
    status: int | None = None
    comment: str = ""

    @property
    def note(self) -> str:
        """What there is to log of an object that arrived."""
        if self.status == DUPLICATE:
            return f"which it had already ({status_text(self.status)})"
        return f"stored with warning {status_text(self.status)}" if self.status else ""


def status_text(status: int) -> str:
    return f"0x{status:04X}"


def warning_of(status: int) -> str | None:
    """What there is to say of an object that was taken with this status."""
    if status in (_SUCCESS, DUPLICATE):
        return None
    return WARNINGS.get(status, f"stored with warning {status_text(status)}")
