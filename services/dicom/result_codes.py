"""Codes of our own (PS3.16 section 8): what SNOMED and DICOM have no word for, or only one that says too much."""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.coding import Code

from imaging.errors import Reason
from imaging.findings import ArteryLevel

SCHEME = "99EMBOLENS"  # "99": a private coding scheme (PS3.16 section 8.2)

# Neither SNOMED's "undetermined" nor "indeterminate": those could be read as an opinion on the scan.
NOT_ANALYSABLE = Code("not_analysable", SCHEME, "Not analysable: nothing is said about it")
WHY_NOT_ANALYSABLE = Code("why", SCHEME, "Reason why it is not analysable")
NOT_ANALYSED = Code("not_analysed", SCHEME, "Not analysed, for a technical failure: nothing is said")
WHY_NOT_ANALYSED = Code("why_failed", SCHEME, "Technical failure why it was not analysed")
WARNING = Code("warning", SCHEME, "Warning about the image")
# DICOM's "certainty of finding" would promise what has never been measured in patients.
SCORE = Code("score", SCHEME, "Score of the networks, 0 to 1")
ARTERY_LEVEL = Code("artery_level", SCHEME, "Level of the pulmonary artery tree")
MILLILITRE = Code("ml", "UCUM", "milliliter")


def scheme_identification() -> CodingSchemeIdentificationItem:
    """PS3.3 C.12.1.1.9: who is behind the private designator."""
    return CodingSchemeIdentificationItem(SCHEME, name="Embolens codes", responsible_organization="Embolens")


def reason_code(reason: Reason) -> Code:
    """The reason's own stable code; its meaning is the same in words."""
    return Code(reason.code, SCHEME, reason.code.replace(".", ": ").replace("_", " ")[:64])


def artery_level_code(level: ArteryLevel) -> Code:
    return Code(level.value, SCHEME, f"{level.value} pulmonary artery")
