"""What the stored values of a CT image mean: the line that makes Hounsfield units of them, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from services.dicom.headers import MALFORMED, first_item, integer, items, number, text

HU_UNIT = "[hnsf'U]"  # UCUM
# RescaleType (PS3.3 C.11.1.1.2): HU where absent (C.8.2.1.1.4); US is "unspecified", which some scanners write for HU.
_MAYBE_HU = ("", "HU", "US")


@dataclass(frozen=True, slots=True)
class Rescale:
    """HU = stored value * slope + intercept.

    Attributes:
        not_hu: why the values are no Hounsfield units; slope and intercept then say nothing.
    """

    slope: float = 1.0
    intercept: float = 0.0
    not_hu: str | None = None


def rescale_of(header: Dataset, macros: Sequence[Dataset], groups: Sequence[Dataset] = ()) -> Rescale:
    """The rescale of an image, or of a frame of `header`'s image.

    Args:
        macros: where RescaleSlope and RescaleIntercept may stand; the first to have one counts.
        groups: a frame's own functional groups and the shared ones.
    """
    photometric = text(header, "PhotometricInterpretation")
    if not photometric.startswith("MONOCHROME"):
        return Rescale(not_hu=f"PhotometricInterpretation is {photometric or 'missing'}")
    rescale_type = _written(macros, "RescaleType").upper()
    if rescale_type not in _MAYBE_HU:
        return Rescale(not_hu=f"RescaleType is {rescale_type}")
    real_world = _real_world_values([*groups, header])
    if real_world and HU_UNIT not in real_world and rescale_type != "HU":
        return Rescale(not_hu=f"the values are mapped to {', '.join(sorted(real_world))}")
    slope, intercept = _written(macros, "RescaleSlope"), _written(macros, "RescaleIntercept")
    if HU_UNIT in real_world and (rescale_type == "US" or not (slope or intercept)):
        return real_world[HU_UNIT]
    if not (slope or intercept) and integer(header, "PixelRepresentation") == 1:
        return Rescale()  # with a sign they can be HU as they stand
    try:
        rescale = Rescale(float(slope), float(intercept))
    except ValueError:
        rescale = Rescale(slope=0.0)
    if rescale.slope == 0 or not math.isfinite(rescale.slope + rescale.intercept):
        said = f"RescaleSlope is {slope or 'missing'}, RescaleIntercept is {intercept or 'missing'}"
        return Rescale(not_hu=said)
    return rescale


def _written(macros: Sequence[Dataset], keyword: str) -> str:
    """The attribute of the first macro that has it; empty where none has, "malformed" where it cannot be read."""
    for macro in macros:
        if found := text(macro, keyword):
            return found
        if keyword in macro and _has_bytes(macro, keyword):
            return "malformed"
    return ""


def _has_bytes(macro: Dataset, keyword: str) -> bool:
    """Whether something is written there, though it gave no text."""
    try:
        return bool(bytes(getattr(macro.get_item(keyword), "value", None) or b"").strip(b" \0"))
    except (*MALFORMED, OSError):
        return True


def _real_world_values(groups: Sequence[Dataset]) -> dict[str, Rescale]:
    """Real-world value maps (PS3.3 C.7.6.16.2.11) by their UCUM unit; the first of a unit counts."""
    found: dict[str, Rescale] = {}
    for group in groups:
        try:
            maps = items(group, "RealWorldValueMappingSequence")
        except MALFORMED:
            continue
        for item in maps:
            code = first_item(item, "MeasurementUnitsCodeSequence")
            slope, intercept = number(item, "RealWorldValueSlope"), number(item, "RealWorldValueIntercept")
            if code is not None and slope and intercept is not None:
                found.setdefault(text(code, "CodeValue"), Rescale(slope, intercept))
    return found
