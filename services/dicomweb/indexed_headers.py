"""What the index keeps of a header: what can be searched for, and what a search returns (PS3.18 section 10.6.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

from imaging.errors import InputError
from services.dicom.headers import MALFORMED, integer, read_header, text
from services.dicom.pixel_reader import transfer_syntax_uid_of
from services.dicom.series_summary import modality_of
from services.dicomweb.json_model import json_model
from services.dicomweb.search_query import folded_name
from services.store.rows import HeldInstanceRow, HeldSeriesRow
from services.store.study_store import checked_uid


def tags_of(*keywords: str) -> frozenset[str]:
    """As the DICOM JSON Model writes them."""
    return frozenset(f"{tag_for_keyword(keyword) or 0:08X}" for keyword in keywords)


# The usual ones are returned by every search, the others where `includefield` asks for them.
USUAL_OF_STUDY = tags_of(
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC", "StudyDescription",
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
USUAL_OF_SERIES = tags_of(
    "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "SeriesDate", "SeriesTime",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence",
)  # fmt: skip
USUAL_OF_INSTANCE = tags_of(
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames",
)  # fmt: skip
OF_STUDY = USUAL_OF_STUDY | tags_of(
    "PatientAge", "PatientSize", "PatientWeight", "IssuerOfPatientID", "InstitutionName",
)  # fmt: skip
OF_SERIES = USUAL_OF_SERIES | tags_of(
    "BodyPartExamined", "ProtocolName", "Manufacturer", "ManufacturerModelName", "StationName", "OperatorsName",
    "ConvolutionKernel", "SliceThickness", "ContrastBolusAgent",
)  # fmt: skip
OF_INSTANCE = USUAL_OF_INSTANCE | tags_of(
    "ImageType", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime",
    "ImagePositionPatient", "SliceLocation",
)  # fmt: skip
_KEYWORDS = [keyword_for_tag(int(tag, 16)) for tag in OF_STUDY | OF_SERIES | OF_INSTANCE]
_LARGEST_NUMBER = 2**31 - 1  # of an integer string (PS3.5 6.2)


@dataclass(frozen=True, slots=True)
class IndexedHeader:
    """A file as two rows."""

    series: HeldSeriesRow
    instance: HeldInstanceRow


def read_indexed_header(path: Path, place: str, file_name: str) -> IndexedHeader | None:
    """The rows of one file; None where it is no instance that a URL could name.

    Raises:
        InputError: `input.unreadable`, which says nothing about the file.
    """
    modified_ns = path.stat().st_mtime_ns
    try:
        header = read_header(path, keywords=["SpecificCharacterSet", *_KEYWORDS])
        study = checked_uid(text(header, "StudyInstanceUID"))
        series = checked_uid(text(header, "SeriesInstanceUID"))
        sop = checked_uid(text(header, "SOPInstanceUID"))
    except InputError as error:
        if error.code == "input.unreadable":
            raise
        return None
    model = json_model(header)
    return IndexedHeader(
        HeldSeriesRow(
            study_instance_uid=study,
            series_instance_uid=series,
            patient_id=_text(header, "PatientID"),
            patient_name=folded_name(_name(header, "PatientName")),
            accession_number=_text(header, "AccessionNumber"),
            study_id=_text(header, "StudyID"),
            study_date=_text(header, "StudyDate").replace(".", ""),
            study_time=_text(header, "StudyTime").replace(":", ""),
            study_description=_text(header, "StudyDescription"),
            referring_physician_name=folded_name(_name(header, "ReferringPhysicianName")),
            modality=modality_of(header),
            series_number=_number(header, "SeriesNumber"),
            series_description=_text(header, "SeriesDescription"),
            attributes={tag: model[tag] for tag in model.keys() & (OF_STUDY | OF_SERIES)},
        ),
        HeldInstanceRow(
            sop_instance_uid=sop,
            study_instance_uid=study,
            series_instance_uid=series,
            sop_class_uid=_text(header, "SOPClassUID"),
            transfer_syntax_uid=transfer_syntax_uid_of(header),
            instance_number=_number(header, "InstanceNumber"),
            place=place,
            file_name=file_name,
            modified_ns=modified_ns,
            attributes={tag: model[tag] for tag in model.keys() & OF_INSTANCE},
        ),
    )


def _text(header: Dataset, keyword: str) -> str:
    return text(header, keyword).replace("\0", "")  # which PostgreSQL does not store


def _name(header: Dataset, keyword: str) -> str:
    try:
        return str(header.get(keyword) or "").replace("\0", "")
    except MALFORMED:
        return ""


def _number(header: Dataset, keyword: str) -> int | None:
    number = integer(header, keyword)
    return number if number is not None and abs(number) <= _LARGEST_NUMBER else None
