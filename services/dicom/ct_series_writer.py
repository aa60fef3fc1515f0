"""A `CtVolume` as a DICOM CT series (PS3.3 A.3): phantoms and NIfTI files become studies that any PACS takes.

The same volume, identity and UIDs write the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from imaging.volume import CtVolume
from services.dicom.headers import decimal_strings
from services.dicom.source_image import OnProgress
from services.dicom.uids import derive_uid

IMPLEMENTATION_CLASS_UID = UID(derive_uid("embolens", "implementation"))


def write_ct_series(
    volume: CtVolume,
    directory: Path,
    *,
    patient_id: str,
    patient_name: str,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    series_description: str = "Phantom CTPA",
    study_description: str = "Phantom CTPA",
    study_date: str = "20200101",
    study_time: str = "120000",
    accession_number: str = "",
    series_number: int = 1,
    protocol_name: str = "CTPA",
    manufacturer_model_name: str = "Phantom",
    kvp: str = "100",
    body_part_examined: str = "CHEST",
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Write one file per slice, ``000001.dcm`` upwards in volume order, creating `directory`.

    Args:
        patient_name: as PN, e.g. ``Phantom^One``.
        study_instance_uid / series_instance_uid: derived from `patient_id` (and the series' number and description)
            where not given; SOP Instance UIDs are derived from the series' UID and the slice's number.
        study_date / study_time: DA and TM of everything in the study; these, `kvp` and `body_part_examined` are
            empty where not known.
        on_progress: called with the fraction written.

    Returns:
        the files in slice order.
    """
    study_uid = study_instance_uid or derive_uid("study", patient_id)
    series_uid = series_instance_uid or derive_uid("series", study_uid, str(series_number), series_description)
    common = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": study_date,
        "SeriesDate": study_date,
        "AcquisitionDate": study_date,
        "ContentDate": study_date,
        "StudyTime": study_time,
        "SeriesTime": study_time,
        "AcquisitionTime": study_time,
        "ContentTime": study_time,
        "AccessionNumber": accession_number,
        "Modality": "CT",
        "Manufacturer": "Embolens",
        "ManufacturerModelName": manufacturer_model_name,
        "ReferringPhysicianName": "",
        "StudyDescription": study_description,
        "SeriesDescription": series_description,
        "PatientName": patient_name,
        "PatientID": patient_id,
        "PatientBirthDate": "",
        "PatientSex": "O",
        "BodyPartExamined": body_part_examined,
        "KVP": kvp,
        "ProtocolName": protocol_name,
        "PatientPosition": "HFS",
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": series_uid,
        "StudyID": "1",
        "SeriesNumber": series_number,
        "AcquisitionNumber": 1,
        "FrameOfReferenceUID": derive_uid("frame of reference", study_uid),
        "PositionReferenceIndicator": "",
        **_pixel_attributes(volume),
    }
    if not body_part_examined:
        common["Laterality"] = ""  # asked for unless the body part is known to be unpaired, PS3.3 C.7.3.1
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(volume.shape_zyx[0]):
        path = directory / f"{index + 1:06d}.dcm"
        _slice_dataset(volume, index, common).save_as(path, enforce_file_format=True)
        paths.append(path)
        if on_progress is not None:
            on_progress((index + 1) / volume.shape_zyx[0])
    return paths


def _pixel_attributes(volume: CtVolume) -> dict[str, object]:
    """Geometry and pixel description that all slices share; stored value = HU, 16 bits signed."""
    slice_mm, row_mm, column_mm = volume.spacing_zyx_mm
    cosines = volume.direction_cosines
    return {
        "SliceThickness": decimal_strings([slice_mm])[0],
        "SpacingBetweenSlices": decimal_strings([slice_mm])[0],
        "ImageOrientationPatient": decimal_strings([*cosines[:, 2], *cosines[:, 1]]),
        "PixelSpacing": decimal_strings([row_mm, column_mm]),
        "Rows": volume.shape_zyx[1],
        "Columns": volume.shape_zyx[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "WindowCenter": "100",
        "WindowWidth": "700",
    }


def _slice_dataset(volume: CtVolume, index: int, common: dict[str, object]) -> Dataset:
    dataset = Dataset()
    for keyword, value in common.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = derive_uid("slice", str(common["SeriesInstanceUID"]), str(index))
    dataset.InstanceNumber = index + 1
    position = volume.point_lps_mm((index, 0, 0))
    dataset.ImagePositionPatient = decimal_strings(position)
    dataset.SliceLocation = decimal_strings([position @ volume.direction_cosines[:, 0]])[0]
    dataset.PixelData = np.ascontiguousarray(volume.hu[index], dtype="<i2").tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    return dataset
