"""The result as a DICOM Segmentation (PS3.3 A.51): what goes back to the PACS.

Segment 1 is the pulmonary artery without the emboli's voxels, segment k + 1 is lesion k, an embolus or (where somebody
asked for more than the threshold lets through) a candidate: no voxel belongs to two segments, since viewers (OHIF among
them) warn about overlapping segments or draw them wrongly. The lumen with its clots is the union of all. Without the
artery, which is an option, segment k is lesion k.

Frames in which a segment is empty are left out: with a frame per segment and slice a scan of 400 slices and 20 emboli
would have 8,400 frames instead of some 250. Each frame names its source image and its position, which is all a reader
needs to put it in its place; `highdicom`'s and dcmqi's do, as the tests say.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationFractionalTypeValues,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from imaging.findings import Findings
from imaging.result import SegmentationResult
from services.dicom.identity import ResultIdentity
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import (
    MANUFACTURER,
    MODEL_NAME,
    SopInstance,
    algorithm_parameters,
    contributing_equipment,
    series_number,
)
from services.dicom.result_wording import series_description
from services.dicom.seg_frames import save_segmentation
from services.dicom.seg_options import DEFAULT_OPTIONS, SegOptions, SegType
from services.dicom.series_reader import SourceSeries

ARTERY_COLOUR_RGB = (86, 156, 214)
EMBOLUS_COLOUR_RGB = (235, 64, 52)


def write_seg(
    source: SourceSeries,
    result: SegmentationResult,
    path: Path,
    *,
    identity: ResultIdentity,
    options: SegOptions = DEFAULT_OPTIONS,
) -> SopInstance:
    """Write the result as one SEG under `path`, complete or not at all; the same bytes for the same arguments.

    Raises:
        ValueError: the masks do not lie on the source's grid, nothing was analysed ("not analysable" is no SEG), no
            segment is left, or probabilities are asked for where the result has none.
    """
    if result.artery.shape != source.volume.shape_zyx:
        raise ValueError(f"masks {result.artery.shape} do not lie on the source's grid {source.volume.shape_zyx}")
    if not result.findings.analysed:
        raise ValueError("a scan that was not analysable must not get a segmentation that looks like a negative one")
    if not has_segments(result.findings, options):
        raise ValueError("a SEG has at least one segment: without the artery there is none where no embolus was found")
    return save_segmentation(
        source,
        segment_numbers(result, options),
        path,
        partial(segmentation_of, result.findings, identity, options),
        dimension_organization_uid=identity.uid("seg", "dimension organization"),
        probability=result.lesion_probability if options.type is SegType.FRACTIONAL else None,
    )


def has_segments(findings: Findings, options: SegOptions) -> bool:
    return options.has_artery or bool(findings.lesions)


def segment_numbers(result: SegmentationResult, options: SegOptions = DEFAULT_OPTIONS) -> NDArray[Any]:
    """Segment number of every voxel (z, y, x) as uint8 or uint16, 0 background."""
    lesions = len(result.findings.lesions)
    if result.embolus_labelmap.max(initial=0) > lesions:
        raise ValueError(f"label map has values above its {lesions} lesions")
    smallest = np.uint8 if options.segment_number(lesions) <= 255 else np.uint16
    if not options.has_artery:
        return result.embolus_labelmap.astype(smallest)
    numbers: NDArray[Any] = result.artery.astype(smallest)
    for plane, labels in zip(numbers, result.embolus_labelmap, strict=True):
        if labels.max():
            np.copyto(plane, (labels + 1).astype(smallest), where=labels > 0)
    return numbers


def segmentation_of(
    findings: Findings, identity: ResultIdentity, options: SegOptions, images: list[Dataset], numbers: NDArray[Any]
) -> Segmentation:
    """The object as highdicom makes it of segment numbers on the planes of these source images."""
    return Segmentation(
        source_images=images,
        pixel_array=numbers,
        segmentation_type=SegmentationTypeValues(options.type.value.upper()),
        fractional_type=SegmentationFractionalTypeValues.PROBABILITY,
        segment_descriptions=_segment_descriptions(findings, identity, options),
        series_instance_uid=identity.uid("seg", "series"),
        series_number=series_number(ResultKind.SEG, images[0]),
        sop_instance_uid=identity.uid("seg", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=identity.software_version,
        device_serial_number=identity.package_sha256[:16],
        content_label="PULMONARY_EMBOLI",
        content_description=series_description(findings),
        series_description=series_description(findings),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        contributing_equipment=[contributing_equipment(identity)],
    )


def _segment_descriptions(
    findings: Findings, identity: ResultIdentity, options: SegOptions
) -> list[SegmentDescription]:
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
    descriptions = [artery] if options.has_artery else []
    reported = findings.reported
    for lesion in findings.lesions:
        name = f"{'Embolus' if lesion in reported else 'Candidate'} {lesion.id}"
        embolus = SegmentDescription(
            segment_number=options.segment_number(lesion.id),
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
