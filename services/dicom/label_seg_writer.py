"""Somebody's label map as a DICOM Segmentation over its source series: a segment for every label."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
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

from services.dicom.conversion_options import Drawn, LabelSegOptions
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import MANUFACTURER, SopInstance, series_number
from services.dicom.seg_frames import save_segmentation
from services.dicom.seg_options import SegType
from services.dicom.series_reader import SourceSeries
from services.dicom.uids import derive_uid
from services.version import VERSION

MODEL_NAME = "Label map converter"


_CATEGORY_AND_TYPE = {
    Drawn.TISSUE: (codes.SCT.Tissue, codes.SCT.Tissue),
    Drawn.EMBOLUS: (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Embolus),
    Drawn.ARTERY: (codes.SCT.AnatomicalStructure, codes.SCT.PulmonaryArtery),
}


def write_label_seg(
    source: SourceSeries, numbers: NDArray[Any], names: dict[int, str], path: Path, options: LabelSegOptions
) -> SopInstance:
    """Write segment numbers (z, y, x) on the source's grid under `path`; the same bytes for the same arguments.

    Args:
        names: the label of every segment; numbers from 1 without a gap.
    """
    digest = hashlib.sha256(np.ascontiguousarray(numbers, dtype="<u2").data).hexdigest()
    made_of = (
        "label map",
        source.content_digest(),
        digest,
        options.type,
        options.drawn,
        options.algorithm,
        repr(names),
    )
    return save_segmentation(
        source,
        numbers.astype(np.uint8 if len(names) <= 255 else np.uint16, copy=False),
        path,
        partial(_segmentation_of, names, options, made_of),
        dimension_organization_uid=derive_uid(*made_of, "dimension organization"),
        probability=np.where(numbers > 0, np.uint8(255), np.uint8(0)) if options.type is SegType.FRACTIONAL else None,
    )


def _segmentation_of(
    names: dict[int, str],
    options: LabelSegOptions,
    made_of: tuple[str, ...],
    images: list[Dataset],
    numbers: NDArray[Any],
) -> Segmentation:
    return Segmentation(
        source_images=images,
        pixel_array=numbers,
        segmentation_type=SegmentationTypeValues(options.type.value.upper()),
        fractional_type=SegmentationFractionalTypeValues.PROBABILITY,
        segment_descriptions=[_description(number, name, options) for number, name in names.items()],
        series_instance_uid=derive_uid(*made_of, "series"),
        series_number=series_number(ResultKind.SEG, images[0]),
        sop_instance_uid=derive_uid(*made_of, "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=VERSION,
        device_serial_number=MODEL_NAME,
        content_label="LABEL_MAP",
        content_description="Converted from a label map",
        series_description="Converted from a label map",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )


def _description(number: int, name: str, options: LabelSegOptions) -> SegmentDescription:
    category, kind = _CATEGORY_AND_TYPE[options.drawn]
    by_algorithm = None
    if options.algorithm:
        by_algorithm = hd.AlgorithmIdentificationSequence(
            name=options.algorithm, family=codes.DCM.ArtificialIntelligence, version="unknown"
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC if by_algorithm else SegmentAlgorithmTypeValues.MANUAL,
        algorithm_identification=by_algorithm,
    )
