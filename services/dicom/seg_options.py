"""How an operator wants the segmentation: its type, and whether the pulmonary artery is in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SegType(StrEnum):
    """Segmentation Type (PS3.3 C.8.20.2.3)."""

    BINARY = "binary"
    LABELMAP = "labelmap"
    FRACTIONAL = "fractional"


@dataclass(frozen=True, slots=True)
class SegOptions:
    """The defaults are what most archives and viewers take.

    Attributes:
        type: a LABELMAP is a storage class of its own, which many archives refuse; FRACTIONAL says of every voxel of an
            embolus how probable it is, and has no artery.
        artery: whether segment 1 is the pulmonary artery.
    """

    type: SegType = SegType.BINARY
    artery: bool = True

    @property
    def has_artery(self) -> bool:
        return self.artery and self.type is not SegType.FRACTIONAL

    def segment_number(self, lesion_id: int) -> int:
        return lesion_id + 1 if self.has_artery else lesion_id

    def to_dict(self) -> dict[str, str | bool]:
        return {"type": self.type.value, "artery": self.artery}


DEFAULT_OPTIONS = SegOptions()
