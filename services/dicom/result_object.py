"""What all result objects have in common: who made them, when, and how they come to lie under their name."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import highdicom as hd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from imaging.findings import RESEARCH_USE_ONLY, Findings
from services.dicom.ct_series_writer import IMPLEMENTATION_CLASS_UID
from services.dicom.explicit_encoding import write_file
from services.dicom.headers import integer
from services.dicom.identity import ResultIdentity
from services.dicom.reference_headers import PATIENT_AND_STUDY
from services.dicom.result_kind import ResultKind
from services.dicom.result_wording import series_description

MANUFACTURER = "Embolens"
MODEL_NAME = "Embolens"
# For sources without any date: a result must have one, and the same each time it is made.
UNKNOWN_DATE = "19000101"
# Behind the scanner's series, each kind of object in a range of its own.
_FIRST_SERIES_NUMBER = {
    ResultKind.SEG: 9000,
    ResultKind.SR: 10000,
    ResultKind.KEY_IMAGES: 11000,
    ResultKind.REPORT: 12000,
}

# highdicom quotes the patient's name where it finds it unusual; no such text may reach a log.
warnings.filterwarnings("ignore", module="highdicom")
logging.getLogger("highdicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class SopInstance:
    """A DICOM object that has been written."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    path: Path


def series_number(kind: ResultKind, source: Dataset) -> int:
    """A number for the result's series that sorts behind the scanner's and tells source series apart."""
    return _FIRST_SERIES_NUMBER[kind] + abs(integer(source, "SeriesNumber") or 0) % 1000


def content_date_time(source: Dataset) -> tuple[DA, TM]:
    """Of the acquisition, not of the work: work that is repeated must not look newer (and must give equal bytes)."""
    for kind in ("Content", "Acquisition", "Series", "Study"):
        try:
            date = DA(str(source.get(f"{kind}Date") or ""))
            time = TM(str(source.get(f"{kind}Time") or ""))
        except ValueError:
            continue
        if date:
            return date, time or TM("000000")
    return DA(UNKNOWN_DATE), TM("000000")


def algorithm_parameters(identity: ResultIdentity) -> dict[str, str]:
    """What tells this algorithm from others of its name and version."""
    return {
        "package": f"{identity.package_name} {identity.package_version}",
        "package_sha256": identity.package_sha256,
        "configuration_sha256": identity.configuration_sha256,
    }


def contributing_equipment(identity: ResultIdentity) -> hd.ContributingEquipment:
    """Software and model package; the Device UID names the package (PS3.3 C.12.1.1.5)."""
    equipment = hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=MODEL_NAME,
        software_versions=[
            identity.software_version,
            f"{identity.package_name} {identity.package_version}"[:64],
            identity.package_sha256,
        ],
        contribution_description=RESEARCH_USE_ONLY,
    )
    equipment.DeviceUID = identity.device_uid
    return equipment


def plain_object(
    sop_class_uid: str, kind: ResultKind, source: Dataset, findings: Findings, identity: ResultIdentity, number: int = 1
) -> Dataset:
    """What highdicom has no class for: an object with its patient, study, series, equipment and SOP common modules.

    Args:
        source: clean header of the (first) source image.
        number: of the instance within its series.
    """
    instance = Dataset()
    for keyword in (*PATIENT_AND_STUDY, "StudyInstanceUID", "SpecificCharacterSet"):
        if keyword in source:
            instance[keyword] = source[keyword]
    instance.SOPClassUID = sop_class_uid
    instance.SOPInstanceUID = identity.uid(kind.value, "instance", str(number))
    instance.InstanceNumber = number
    instance.SeriesInstanceUID = identity.uid(kind.value, "series")
    instance.SeriesNumber = series_number(kind, source)
    instance.SeriesDescription = series_description(findings)
    instance.Manufacturer = MANUFACTURER
    instance.ManufacturerModelName = MODEL_NAME
    instance.SoftwareVersions = identity.software_version
    instance.DeviceSerialNumber = identity.package_sha256[:16]
    instance.ConversionType = "WSD"  # made by a workstation (PS3.3 C.8.6.1)
    instance.ContributingEquipmentSequence = [contributing_equipment(identity)]
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    return instance


def save_whole(
    instance: Dataset,
    source: Dataset,
    path: Path,
    ready: Mapping[int, Iterable[bytes | memoryview]] = MappingProxyType({}),
) -> SopInstance:
    """Write the object under `path`, complete or not at all, without anything that was taken from the clock.

    Args:
        source: header of the (first) source image, which the times are taken from.
        ready: elements that are encoded already, by their tag.
    """
    instance.ContentDate, instance.ContentTime = content_date_time(source)
    instance.InstanceCreationDate, instance.InstanceCreationTime = instance.ContentDate, instance.ContentTime
    for equipment in instance.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            del equipment["ContributionDateTime"]
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        write_file(file, instance, ready)
    os.replace(temporary, path)
    return SopInstance(
        sop_class_uid=str(instance.SOPClassUID),
        sop_instance_uid=str(instance.SOPInstanceUID),
        series_instance_uid=str(instance.SeriesInstanceUID),
        study_instance_uid=str(instance.StudyInstanceUID),
        path=path,
    )
