"""The source series as result objects refer to it: clean headers, whatever the scanner or an anonymiser left of them.

Only what a result copies or refers to is kept, every value checked; a type 2 attribute that is missing or malformed
becomes empty (PS3.5 7.4.3), an identity that is missing is derived, so that a result can be written and found again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from highdicom import SpecificCharacterSetValues
from pydicom.config import RAISE
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.valuerep import DSfloat, validate_value

from services.dicom.headers import MALFORMED, decimal_strings, numbers, text
from services.dicom.series_reader import SourceSeries
from services.dicom.uids import derive_uid

# Patient and General Study modules, type 2 (PS3.3 C.7.1.1, C.7.2.1)
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# Copied where present and valid.
PATIENT_AND_STUDY = (
    *_TYPE_2,
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
)
# What the image says of itself: the equipment names the scanner in the contributing equipment.
_IMAGE = (
    "SeriesNumber",
    "ContentDate",
    "ContentTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "SeriesDate",
    "SeriesTime",
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
DEFAULT_CHARACTER_SET = "ISO_IR 192"


def reference_headers(source: SourceSeries) -> list[Dataset]:
    """One header per slice in volume order, or the multi-frame instance's one, as highdicom wants its source images."""
    common = _common_header(source)
    if source.is_multi_frame:
        in_its_order = [int(index) for index in np.argsort(source.frame_indices)]
        return [_multi_frame_header(source, common, in_its_order)]
    _place(source, common, common)
    return [_single_frame_header(source, common, index) for index in range(len(source.headers))]


def slice_header(source: SourceSeries, index: int) -> Dataset:
    """The header of one slice; of a multi-frame instance as if it had no other frame."""
    common = _common_header(source)
    if source.is_multi_frame:
        return _multi_frame_header(source, common, [index])
    _place(source, common, common)
    return _single_frame_header(source, common, index)


def position_of(source: SourceSeries, index: int) -> list[DSfloat]:
    """Image Position of a slice: as its image writes it, so that viewers find the slice, where that can be read."""
    position = None if source.is_multi_frame else numbers(source.headers[index], "ImagePositionPatient", 3)
    return decimal_strings(source.position_lps_mm(index) if position is None else position)


def _common_header(source: SourceSeries) -> Dataset:
    first = source.headers[0]
    header = without_uids(first)
    first_sop_instance_uid = source.sop_instance_uids[0]
    header.StudyInstanceUID = source.study_instance_uid or derive_uid("study of", first_sop_instance_uid)
    header.SeriesInstanceUID = source.series_instance_uid or derive_uid("series of", first_sop_instance_uid)
    header.FrameOfReferenceUID = text(first, "FrameOfReferenceUID") or derive_uid(
        "frame of reference of", header.SeriesInstanceUID
    )
    header.PositionReferenceIndicator = header.get("PositionReferenceIndicator", "")
    header.SOPClassUID = text(first, "SOPClassUID")
    header.Modality = "CT"
    header.Rows, header.Columns = source.rows_and_columns
    return header


def without_uids(first: Dataset) -> Dataset:
    """Of one image's header what a result of its study says again or derives from it."""
    header = Dataset()
    header.SpecificCharacterSet = _character_set(first)
    for keyword in (*PATIENT_AND_STUDY, *_IMAGE):
        _copy_if_valid(first, header, keyword)
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    if header.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in header:
        header.DeidentificationMethod = (
            "as of the source images"  # type 1C, also where they have it in codes or not at all
        )
    return header


def _character_set(header: Dataset) -> str | list[str]:
    """The source's, so that a PACS compares like with like; UTF-8 where it has none or one that highdicom lacks."""
    names = text(header, "SpecificCharacterSet").split("\\")
    try:
        return [SpecificCharacterSetValues(name).value for name in names]
    except ValueError:
        return DEFAULT_CHARACTER_SET


def _copy_if_valid(source: Dataset, target: Dataset, keyword: str) -> None:
    try:
        element = source[keyword]
        if element.value in (None, ""):
            return
        values = element.value if element.VM > 1 else [element.value]
        for value in values:
            validate_value(element.VR, str(value), RAISE)
        target[keyword] = element
    except (*MALFORMED, OSError):  # KeyError where it is absent
        return


def _single_frame_header(source: SourceSeries, common: Dataset, index: int) -> Dataset:
    header = Dataset()
    header.update(common)
    header.SOPInstanceUID = source.sop_instance_uids[index]
    header.ImagePositionPatient = position_of(source, index)
    return header


def _multi_frame_header(source: SourceSeries, common: Dataset, indices: Sequence[int]) -> Dataset:
    header = Dataset()
    header.update(common)
    header.SOPInstanceUID = source.sop_instance_uids[0]
    header.NumberOfFrames = len(indices)
    orientation, measures = Dataset(), Dataset()
    _place(source, orientation, measures)
    shared = Dataset()
    shared.PlaneOrientationSequence = DicomSequence([orientation])
    shared.PixelMeasuresSequence = DicomSequence([measures])
    header.SharedFunctionalGroupsSequence = DicomSequence([shared])
    frames = []
    for index in indices:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = position_of(source, index)
        frame.PlanePositionSequence = DicomSequence([position])
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    return header


def _place(source: SourceSeries, orientation: Dataset, measures: Dataset) -> None:
    """Orientation and spacing, free of the rounding of what the images write."""
    slice_mm, row_mm, column_mm = source.volume.spacing_zyx_mm
    cosines = source.volume.direction_cosines
    orientation.ImageOrientationPatient = decimal_strings([*cosines[:, 2], *cosines[:, 1]])
    measures.PixelSpacing = decimal_strings([row_mm, column_mm])
    # A segment's voxel reaches from slice to slice, however thick the X-ray beam was
    measures.SliceThickness = decimal_strings([slice_mm])[0]
    measures.SpacingBetweenSlices = decimal_strings([slice_mm])[0]
