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
    headers = reference_headers(source)
    segmentation = _segmentation(source, headers, result, identity, options)
    if options.type is SegType.FRACTIONAL:
        _fill_in_probabilities(segmentation, source, result)
    name_dimensions(segmentation, identity.uid("seg", "dimension organization"))
    return save_whole(segmentation, headers[0], path)


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
    emboli = result.embolus_labelmap > 0
    numbers[emboli] = result.embolus_labelmap[emboli] + 1
    return numbers


def on_source_planes(source: SourceSeries, numbers: NDArray[Any]) -> NDArray[Any]:
    """Segment numbers (z, y, x) on the planes of the source images, in the order of `reference_headers`."""
    planes = source.on_slices(numbers)
    return planes[np.argsort(source.frame_indices)] if source.is_multi_frame else planes


def _segmentation(
    source: SourceSeries,
    headers: list[Dataset],
    result: SegmentationResult,
    identity: ResultIdentity,
    options: SegOptions,
) -> Segmentation:
    return Segmentation(
        source_images=headers,
        pixel_array=on_source_planes(source, segment_numbers(result, options)),
        segmentation_type=SegmentationTypeValues(options.type.value.upper()),
        fractional_type=SegmentationFractionalTypeValues.PROBABILITY,
        segment_descriptions=_segment_descriptions(result.findings, identity, options),
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


def _fill_in_probabilities(segmentation: Segmentation, source: SourceSeries, result: SegmentationResult) -> None:
    """In place of the 255 that highdicom writes where a segment is: the probability, 255 for 1."""
    if result.lesion_probability is None:
        raise ValueError("a FRACTIONAL SEG needs the probabilities of its voxels")
    probability = source.on_slices(result.lesion_probability)
    frame_of_plane = source.frame_indices or range(len(source.sop_instance_uids))
    plane_of = {
        (uid, frame if source.is_multi_frame else 0): index
        for index, (uid, frame) in enumerate(zip(source.sop_instance_uids, frame_of_plane, strict=True))
    }
    pixels = np.frombuffer(segmentation.PixelData, dtype=np.uint8)
    frames = pixels[: segmentation.NumberOfFrames * probability[0].size].reshape(-1, *probability.shape[1:]).copy()
    for frame, item in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        shown = item.DerivationImageSequence[0].SourceImageSequence[0]
        key = (str(shown.ReferencedSOPInstanceUID), int(shown.get("ReferencedFrameNumber", 1)) - 1)
        inside = frame > 0
        frame[inside] = np.maximum(probability[plane_of[key]][inside], 1)
    segmentation.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)


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


def name_dimensions(segmentation: Segmentation, dimension_organization_uid: str) -> None:
    """Replace the UID that highdicom took from chance."""
    for sequence in (segmentation.DimensionOrganizationSequence, segmentation.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = dimension_organization_uid
