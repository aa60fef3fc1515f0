"""How a conversion is wanted: what the files do not say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from services.dicom.seg_options import SegType


class Drawn(StrEnum):
    """What the labels of a label map show: the coded category and type of all its segments."""

    TISSUE = "tissue"
    EMBOLUS = "embolus"
    ARTERY = "artery"


@dataclass(frozen=True, slots=True)
class LabelSegOptions:
    """How a label map becomes a SEG.

    Attributes:
        algorithm: the name of what drew it; empty: drawn by hand (Segment Algorithm Type, PS3.3 C.8.20.2).
    """

    type: SegType = SegType.BINARY
    drawn: Drawn = Drawn.TISSUE
    algorithm: str = ""


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """What the functions of `conversion` are asked for; each heeds those that concern it."""

    rounded: bool = False
    resample: bool = False
    only_segment: int | None = None
    patient_id: str | None = None
    patient_name: str = ""
    seg: LabelSegOptions = field(default_factory=LabelSegOptions)
