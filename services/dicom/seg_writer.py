"""The result as a DICOM Segmentation (PS3.3 A.51): what goes back to the PACS.

BINARY. Segment 1 is the pulmonary artery without the emboli's voxels, segment k + 1 is lesion k, an embolus or (where
somebody asked for more than the threshold lets through) a candidate: no voxel belongs to two segments, since viewers
(OHIF among them) warn about overlapping segments or draw them wrongly. The lumen with its clots is the union of all.

Frames in which a segment is empty are left out: with a frame per segment and slice a scan of 400 slices and 20 emboli
would have 8,400 frames instead of some 250. Each frame names its source image and its position, which is all a reader
needs to put it in its place; `highdicom`'s and dcmqi's do, as the tests say.
"""

from __future__ import annotations

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

from imaging.findings import Findings, Outcome
from imaging.result import SegmentationResult
from services.dicom.identity import ResultIdentity
from services.dicom.reference_headers import reference_headers
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import (
    MANUFACTURER,
    MODEL_NAME,
    SopInstance,
    algorithm_parameters,
    contributing_equipment,
    save_whole,
    series_number,
)
from services.dicom.result_wording import series_description
from services.dicom.series_reader import SourceSeries

ARTERY_COLOUR_RGB = (86, 156, 214)
EMBOLUS_COLOUR_RGB = (235, 64, 52)


def write_seg(source: SourceSeries, result: SegmentationResult, path: Path, *, identity: ResultIdentity) -> SopInstance:
    """Write the result as one SEG under `path`, complete or not at all; the same bytes for the same arguments.

    Raises:
        ValueError: the masks do not lie on the source's grid, or nothing was analysed: "not analysable" is no SEG.
    """
    if result.artery.shape != source.volume.shape_zyx:
        raise ValueError(f"masks {result.artery.shape} do not lie on the source's grid {source.volume.shape_zyx}")
    if result.findings.outcome is Outcome.NOT_ANALYSABLE:
        raise ValueError("a scan that was not analysable must not get a segmentation that looks like a negative one")
    headers = reference_headers(source)
    segmentation = _segmentation(source, headers, result, identity)
    _make_reproducible(segmentation, identity)
    return save_whole(segmentation, headers[0], path)


def segment_numbers(result: SegmentationResult) -> NDArray[Any]:
    """Segment number of every voxel (z, y, x) as uint8 or uint16, 0 background: 1 artery, k + 1 embolus k."""
    largest = 1 + len(result.findings.lesions)
    if result.embolus_labelmap.max(initial=0) >= largest:
        raise ValueError(f"label map has values above its {largest - 1} lesions")
    numbers: NDArray[Any] = result.artery.astype(np.uint8 if largest <= 255 else np.uint16)
    emboli = result.embolus_labelmap > 0
    numbers[emboli] = result.embolus_labelmap[emboli] + 1
    return numbers


def _segmentation(
    source: SourceSeries, headers: list[Dataset], result: SegmentationResult, identity: ResultIdentity
) -> Segmentation:
    numbers = segment_numbers(result)
    if source.is_multi_frame:  # planes in the order of the source's frames
        numbers = numbers[np.argsort(source.frame_indices)]
    return Segmentation(
        source_images=headers,
        pixel_array=numbers,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_segment_descriptions(result.findings, identity),
        series_instance_uid=identity.uid("seg", "series"),
        series_number=series_number(ResultKind.SEG, headers[0]),
        sop_instance_uid=identity.uid("seg", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=identity.software_version,
        device_serial_number=identity.package_sha256[:16],
        content_label="PULMONARY_EMBOLI",
        content_description=series_description(result.findings),
        series_description=series_description(result.findings),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        contributing_equipment=[contributing_equipment(identity)],
    )


def _segment_descriptions(findings: Findings, identity: ResultIdentity) -> list[SegmentDescription]:
    algorithm = hd.AlgorithmIdentificationSequence(
        name="Embolens",
        family=codes.DCM.ArtificialIntelligence,
        version=identity.software_version,
        source=MANUFACTURER,
        parameters=algorithm_parameters(identity),
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


def _make_reproducible(segmentation: Segmentation, identity: ResultIdentity) -> None:
    """Replace what highdicom took from chance."""
    dimension_organization_uid = identity.uid("seg", "dimension organization")
    for sequence in (segmentation.DimensionOrganizationSequence, segmentation.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = dimension_organization_uid
