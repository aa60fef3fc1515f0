"""One data set without what names the patient: Basic Profile with Clean Structured Content (PS3.15 E.1 and E.3.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

from services.deidentification.basic_profile import Treatment, treatment_of
from services.deidentification.pseudonyms import Pseudonyms
from services.version import VERSION

REMOVED = "REMOVED"
_DATE, _TIME, _DATETIME = "19000101", "000000", "19000101000000"
_DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT", "PN"), REMOVED),
    "DA": _DATE,
    "TM": _TIME,
    "DT": _DATETIME,
    "AS": "000Y",
    "DS": "0",
    "IS": "0",
    "UR": "",
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"), 0),
    **dict.fromkeys(("OB", "OW", "OD", "OF", "OL", "OV", "UN"), b""),
    "AT": 0,
}
_TIME_OF_DAY = re.compile(r"[\d:]{2,8}(\.\d{1,6})?", re.ASCII)
_TEXT_VALUE = Tag(0x0040, 0xA160)
_BIRTH = (Tag(0x0010, 0x0030), Tag(0x0010, 0x0032))
# UIDs that name no instance: SOP classes, coding schemes, mapping resources, context groups.
_NO_INSTANCE = {
    Tag(tag)
    for tag in (
        *(0x00080016, 0x00081150, 0x0008010C, 0x00080117, 0x00080118, 0x0008001A, 0x0008001B, 0x00080062),
        *(0x0008115A, 0x00080059, 0x00041510, 0x00041512, 0x00020010, 0x00183003),
    )
}
# CID 7050
_BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")
_CLEAN_STRUCTURED_CONTENT = ("113104", "Clean Structured Content Option")
_MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_RETAIN_UIDS = ("113110", "Retain UIDs Option")


@dataclass(frozen=True, slots=True)
class CleaningOptions:
    """Options of the profile.

    Attributes:
        retain_uids: UIDs stay as they are (PS3.15 E.3.9).
        modified_dates: dates are moved by the same number of days for all of a patient's objects (E.3.6).
    """

    retain_uids: bool = False
    modified_dates: bool = False

    def codes(self) -> list[tuple[str, str]]:
        found = [_BASIC_PROFILE, _CLEAN_STRUCTURED_CONTENT]
        if self.modified_dates:
            found.append(_MODIFIED_DATES)
        if self.retain_uids:
            found.append(_RETAIN_UIDS)
        return found


def cleaned(dataset: FileDataset, pseudonyms: Pseudonyms, options: CleaningOptions) -> Dataset:
    """A new data set with a file meta of its own; pixel data are the same.

    What is in the pixels, and texts that the table does not name (a segment's label), are not looked at.
    """
    cleaner = _Cleaner(pseudonyms, options, str(dataset.get("PatientID") or ""))
    clean = cleaner.cleaned(dataset)
    clean.PatientName = clean.PatientID = pseudonyms.patient_id(cleaner.patient_id)
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = f"PS3.15 Annex E by Embolens {VERSION}"
    clean.DeidentificationMethodCodeSequence = Sequence(_code(*code) for code in options.codes())
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if options.modified_dates else "REMOVED"
    clean.file_meta = FileMetaDataset()
    clean.file_meta.MediaStorageSOPClassUID = clean.SOPClassUID
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    clean.file_meta.TransferSyntaxUID = UID(dataset.file_meta.TransferSyntaxUID)
    clean.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return clean


class _Cleaner:
    def __init__(self, pseudonyms: Pseudonyms, options: CleaningOptions, patient_id: str) -> None:
        self._pseudonyms = pseudonyms
        self._options = options
        self.patient_id = patient_id

    def cleaned(self, dataset: Dataset) -> Dataset:
        clean = Dataset()
        for element in dataset:
            kept = self._element(element)
            if kept is not None:
                clean.add(kept)
        return clean

    def _element(self, element: DataElement) -> DataElement | None:
        """What becomes of it; None where it is removed."""
        tag = element.tag
        treatment = treatment_of(tag)
        vr = _vr_of(tag, element)
        if treatment is Treatment.REMOVE or vr is None:
            return None if tag.is_private else self._moved_date(element, vr)
        if vr == "SQ":
            return self._sequence(element, treatment)
        if tag == _TEXT_VALUE:
            return DataElement(tag, vr, REMOVED)
        if vr == "UI":
            return DataElement(tag, "UI", self._uids(tag, element.value))
        if treatment in (Treatment.EMPTY, Treatment.DUMMY):
            if (moved := self._moved_date(element, vr)) is not None:
                return moved
            return DataElement(tag, vr, None if treatment is Treatment.EMPTY else _DUMMIES[vr])
        if vr == "PN":  # a name that the table does not know
            return DataElement(tag, vr, None)
        return element

    def _sequence(self, element: DataElement, treatment: Treatment) -> DataElement | None:
        items = element.value if isinstance(element.value, Sequence) else Sequence()
        if treatment is Treatment.EMPTY:
            return DataElement(element.tag, "SQ", Sequence())
        is_code = any("CodeMeaning" in item for item in items)
        if treatment is Treatment.DUMMY and is_code:
            return DataElement(element.tag, "SQ", Sequence([_code("0", REMOVED, scheme="99REMOVED")]))
        return DataElement(element.tag, "SQ", Sequence(self.cleaned(item) for item in items))

    def _moved_date(self, element: DataElement, vr: str | None) -> DataElement | None:
        """The same moment on another day, with the option; a time of day says nothing without its date."""
        if not self._options.modified_dates or element.tag in _BIRTH or vr not in ("DA", "DT", "TM"):
            return None
        values = [str(value) for value in _values(element.value)]
        if vr == "TM":
            values = [value if _TIME_OF_DAY.fullmatch(value) else "" for value in values]
        else:
            values = [self._pseudonyms.moved(value, self.patient_id) for value in values]
        return DataElement(element.tag, vr, values)

    def _uids(self, tag: BaseTag, value: Any) -> list[str]:
        uids = [str(uid) for uid in _values(value)]
        if self._options.retain_uids or tag in _NO_INSTANCE:
            return uids
        return [self._pseudonyms.uid(uid) for uid in uids]


def _vr_of(tag: BaseTag, element: DataElement) -> str | None:
    """The VR of the dictionary; None for what it does not know, and for what was written as another: what that is
    cannot be judged."""
    try:
        known = dictionary_VR(tag).split(" or ")
    except KeyError:
        return None
    if element.VR in (*known, " or ".join(known)):  # which of them is found out when it is written
        return str(element.VR)
    return known[0] if treatment_of(tag) in (Treatment.EMPTY, Treatment.DUMMY) and known[0] != "SQ" else None


def _values(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list)) else [value]


def _code(value: str, meaning: str, *, scheme: str = "DCM") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
