"""The result as a DICOM Segmentation (PS3.3 A.51): what goes back to the PACS.

BINARY. Segment 1 is the pulmonary artery without the emboli's voxels, segment k + 1 is lesion k, an embolus or (where
somebody asked for more than the threshold lets through) a candidate: no voxel belongs to two segments, since viewers
(OHIF among them) warn about overlapping segments or draw them wrongly. The lumen with its clots is the union of all.

Frames in which a segment is empty are left out: with a frame per segment and slice a scan of 400 slices and 20 emboli
would have 8,400 frames instead of some 250. Each frame names its source image and its position, which is all a reader
needs to put it in its place; `highdicom`'s and dcmqi's do, as the tests say.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from imaging.findings import RESEARCH_USE_ONLY, Findings, Outcome
from imaging.result import SegmentationResult
from services.dicom.identity import ResultIdentity
from services.dicom.reference_headers import reference_headers, series_number
from services.dicom.series_reader import SourceSeries

MANUFACTURER = "Embolens"
ARTERY_COLOUR_RGB = (86, 156, 214)
EMBOLUS_COLOUR_RGB = (235, 64, 52)
# For sources without any date: a result must have one, and the same each time it is made.
UNKNOWN_DATE = "19000101"

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


def write_seg(source: SourceSeries, result: SegmentationResult, path: Path, *, identity: ResultIdentity) -> SopInstance:
    """Write the result as one SEG under `path`, complete or not at all; the same bytes for the same arguments.

    Raises:
        ValueError: the masks do not lie on the source's grid, or nothing was analysed: "not analysable" is no SEG.
    """
    if result.artery.shape != source.volume.shape_zyx:
        raise ValueError(f"masks {result.artery.shape} do not lie on the source's grid {source.volume.shape_zyx}")
    if result.findings.outcome is Outcome.NOT_ANALYSABLE:
        raise ValueError("a scan that was not analysable must not get a segmentation that looks like a negative one")
    segmentation = _segmentation(source, result, identity)
    _make_reproducible(segmentation, identity)
    temporary = path.with_name(f".{path.name}.partial")
    segmentation.save_as(temporary, enforce_file_format=True)
    os.replace(temporary, path)
    return SopInstance(
        sop_class_uid=str(segmentation.SOPClassUID),
        sop_instance_uid=str(segmentation.SOPInstanceUID),
        series_instance_uid=str(segmentation.SeriesInstanceUID),
        study_instance_uid=str(segmentation.StudyInstanceUID),
        path=path,
    )


def series_description(findings: Findings) -> str:
    """What a reader sees in the PACS's list of series; at most 64 characters (LO)."""
    count = len(findings.reported)
    candidates = len(findings.lesions) - count
    found = f"{count} {'embolus' if count == 1 else 'emboli'}" if count else "no embolus found"
    beside = f", {candidates} candidate{'' if candidates == 1 else 's'}" if candidates else ""
    return f"Embolens: {found}{beside} (research use only)"


def segment_numbers(result: SegmentationResult) -> NDArray[Any]:
    """Segment number of every voxel (z, y, x) as uint8 or uint16, 0 background: 1 artery, k + 1 embolus k."""
    largest = 1 + len(result.findings.lesions)
    if result.embolus_labelmap.max(initial=0) >= largest:
        raise ValueError(f"label map has values above its {largest - 1} lesions")
    numbers: NDArray[Any] = result.artery.astype(np.uint8 if largest <= 255 else np.uint16)
    emboli = result.embolus_labelmap > 0
    numbers[emboli] = result.embolus_labelmap[emboli] + 1
    return numbers


def _segmentation(source: SourceSeries, result: SegmentationResult, identity: ResultIdentity) -> Segmentation:
    headers = reference_headers(source)
    numbers = source.on_slices(segment_numbers(result))
    if source.is_multi_frame:  # planes in the order of the source's frames
        numbers = numbers[np.argsort(source.frame_indices)]
    date, time = _content_date_time(source)
    return Segmentation(
        source_images=headers,
        pixel_array=numbers,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_segment_descriptions(result.findings, identity),
        series_instance_uid=identity.uid("seg", "series"),
        series_number=series_number(source),
        sop_instance_uid=identity.uid("seg", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="Embolens",
        software_versions=identity.software_version,
        device_serial_number=identity.package_sha256[:16],
        content_label="PULMONARY_EMBOLI",
        content_description=series_description(result.findings),
        series_description=series_description(result.findings),
        content_date=date,
        content_time=time,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        contributing_equipment=[_equipment(identity)],
    )


def _content_date_time(source: SourceSeries) -> tuple[DA, TM]:
    """Of the acquisition, not of the work: work that is repeated must not look newer (and must give equal bytes)."""
    header = source.headers[0]
    for kind in ("Content", "Acquisition", "Series", "Study"):
        try:
            date = DA(str(header.get(f"{kind}Date") or ""))
            time = TM(str(header.get(f"{kind}Time") or ""))
        except ValueError:
            continue
        if date:
            return date, time or TM("000000")
    return DA(UNKNOWN_DATE), TM("000000")


def _segment_descriptions(findings: Findings, identity: ResultIdentity) -> list[SegmentDescription]:
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Embolens",
        family=codes.DCM.ArtificialIntelligence,
        version=identity.software_version,
        source=MANUFACTURER,
        parameters={
            "package": f"{identity.package_name} {identity.package_version}",
            "package_sha256": identity.package_sha256,
            "configuration_sha256": identity.configuration_sha256,
        },
    )
    artery = SegmentDescription(
        segment_number=1,
        segment_label="Pulmonary artery",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.PulmonaryArtery,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id="Pulmonary artery",
        tracking_uid=identity.uid("tracking", "artery"),
        display_color=CIELabColor.from_rgb(*ARTERY_COLOUR_RGB),
    )
    artery.SegmentDescription = "Pulmonary artery without the voxels of the emboli"
    descriptions = [artery]
    reported = findings.reported
    for lesion in findings.lesions:
        name = f"{'Embolus' if lesion in reported else 'Candidate'} {lesion.id}"
        embolus = SegmentDescription(
            segment_number=lesion.id + 1,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Embolus,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=name,
            tracking_uid=identity.uid("tracking", "embolus", str(lesion.id)),
            anatomic_regions=[codes.SCT.PulmonaryArtery],
            display_color=CIELabColor.from_rgb(*EMBOLUS_COLOUR_RGB),
        )
        embolus.SegmentDescription = (
            f"{lesion.artery_level.value}, {lesion.volume_ml:.2f} ml, score {lesion.score:.2f}, research use only"
        )
        descriptions.append(embolus)
    return descriptions


def _equipment(identity: ResultIdentity) -> hd.ContributingEquipment:
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name="Embolens",
        software_versions=[
            identity.software_version,
            f"{identity.package_name} {identity.package_version}"[:64],
            identity.package_sha256,
        ],
        contribution_description=RESEARCH_USE_ONLY,
    )


def _make_reproducible(segmentation: Segmentation, identity: ResultIdentity) -> None:
    """Replace what highdicom took from the clock or from chance."""
    segmentation.InstanceCreationDate = segmentation.ContentDate
    segmentation.InstanceCreationTime = segmentation.ContentTime
    dimension_organization_uid = identity.uid("seg", "dimension organization")
    for sequence in (segmentation.DimensionOrganizationSequence, segmentation.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = dimension_organization_uid
    for item in segmentation.ContributingEquipmentSequence:
        _drop_time_of_work(item)


def _drop_time_of_work(equipment: Dataset) -> None:
    if "ContributionDateTime" in equipment:
        del equipment["ContributionDateTime"]
