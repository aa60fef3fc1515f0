"""The table of the Basic Profile: what becomes of an attribute (PS3.15 Table E.1-1, edition 2026c).

Where the table leaves a choice (X/Z, X/D, X/Z/D), the attribute stays with an empty or a dummy value: so the object
stays a valid one whatever the type of the attribute in it, and the value is gone all the same.
"""

from __future__ import annotations

import csv
from enum import Enum
from functools import lru_cache
from pathlib import Path

from pydicom.tag import BaseTag

_TABLE = Path(__file__).with_name("basic_profile.csv")
# Curve and overlay groups, of which the table has single attributes: without these the others say nothing.
_REPEATING_GROUPS = (0x5000, 0x6000)


class Treatment(Enum):
    """What is done with an attribute."""

    KEEP = "K"
    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    NEW_UID = "U"
    CLEAN_ITEMS = "X/Z/U*"  # a sequence of references, which get the new UIDs


_TREATMENTS = {
    "X": Treatment.REMOVE,
    "Z": Treatment.EMPTY,
    "X/Z": Treatment.EMPTY,
    "D": Treatment.DUMMY,
    "Z/D": Treatment.DUMMY,
    "X/D": Treatment.DUMMY,
    "X/Z/D": Treatment.DUMMY,
    "U": Treatment.NEW_UID,
    "X/Z/U*": Treatment.CLEAN_ITEMS,
}


@lru_cache(maxsize=1)
def table() -> dict[int, Treatment]:
    """By the tag's number."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return {int(row["tag"], 16): _TREATMENTS[row["action"]] for row in csv.DictReader(file)}


def treatment_of(tag: BaseTag) -> Treatment:
    """Private attributes are removed (E.3.10: none is known to be safe); what the table does not name is kept."""
    if tag.is_private or tag.group & 0xFF00 in _REPEATING_GROUPS:
        return Treatment.REMOVE
    return table().get(int(tag), Treatment.KEEP)
