"""The frames of a DICOM Segmentation: which segment is in which slice, its pixels, and what is said of each.

highdicom makes the object around one frame. The others differ from it in where they lie, which image and which segment
they show; with ten segments there are a thousand of them, with fifty five thousand, and each takes highdicom and
pydicom a millisecond as a data set. Here they are encoded as they will stand in the file: the same bytes, as the tests
say.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.enum import DimensionOrganizationTypeValues
from highdicom.seg import Segmentation
from highdicom.spatial import get_volume_positions
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.valuerep import DS

from services.dicom.explicit_encoding import element, encoded, head_of, references, sequence
from services.dicom.reference_headers import position_of, slice_header
from services.dicom.result_object import SopInstance, save_whole
from services.dicom.seg_options import SegType
from services.dicom.series_reader import SourceSeries

_REFERENCED_SERIES, _REFERENCED_INSTANCES = Tag("ReferencedSeriesSequence"), Tag("ReferencedInstanceSequence")
_SERIES_INSTANCE_UID = Tag("SeriesInstanceUID")
_SOURCE_IMAGES, _SOP_INSTANCE, _FRAME_NUMBER = (
    Tag("SourceImageSequence"),
    Tag("ReferencedSOPInstanceUID"),
    Tag("ReferencedFrameNumber"),
)
_DERIVATION_IMAGE, _FRAME_CONTENT = Tag("DerivationImageSequence"), Tag("FrameContentSequence")
_DIMENSION_INDEX_VALUES = Tag("DimensionIndexValues")
_PLANE_POSITION, _IMAGE_POSITION = Tag("PlanePositionSequence"), Tag("ImagePositionPatient")
_SEGMENT_IDENTIFICATION, _SEGMENT_NUMBER = Tag("SegmentIdentificationSequence"), Tag("ReferencedSegmentNumber")
_PER_FRAME, _PIXEL_DATA = Tag("PerFrameFunctionalGroupsSequence"), Tag("PixelData")
_FRAMES_AT_ONCE = 8  # end on a whole byte, whatever the size of a frame

Frame = tuple[int, int]  # segment number, 0 where a frame shows all of them; slice of the volume


def save_segmentation(
    source: SourceSeries,
    numbers: NDArray[Any],
    path: Path,
    make: Callable[[list[Dataset], NDArray[Any]], Segmentation],
    *,
    dimension_organization_uid: str,
    probability: NDArray[np.uint8] | None = None,
) -> SopInstance:
    """Write segment numbers as a SEG under `path`, complete or not at all; the same bytes for the same arguments.

    Args:
        numbers: (z, y, x) on the volume's grid, uint8 or uint16; 0 background.
        make: the object of these source images and pixels, of numbers from 1 without a gap.
        probability: of a FRACTIONAL one (z, y, x), 255 for 1.
    """
    header = slice_header(source, 0)
    planes = np.ascontiguousarray(source.on_slices(numbers))
    example = np.zeros((1, *planes.shape[1:]), dtype=planes.dtype)
    example[0, 0, 0] = 1
    segmentation = make([header], example)
    kind, segments = SegType(segmentation.SegmentationType.lower()), len(segmentation.SegmentSequence)
    if kind is SegType.LABELMAP:
        segments = 0
    if kind is SegType.FRACTIONAL and probability is None:
        raise ValueError("a FRACTIONAL SEG needs the probabilities of its voxels")
    frames = _frames(planes, segments)
    if segments <= 1 and _evenly_spaced(source, frames, header):
        segmentation.DimensionOrganizationType = DimensionOrganizationTypeValues.THREE_DIMENSIONAL.value
    for items in (segmentation.DimensionOrganizationSequence, segmentation.DimensionIndexSequence):
        for item in items:
            item.DimensionOrganizationUID = dimension_organization_uid  # in place of one from chance
    segmentation.NumberOfFrames = len(frames)
    described = _described(source, segmentation.PerFrameFunctionalGroupsSequence[0], frames)
    images = [(header.SOPClassUID, uid) for uid in dict.fromkeys(source.sop_instance_uids)]
    series = references(_REFERENCED_INSTANCES, images)
    series += element(_SERIES_INSTANCE_UID, "UI", header.SeriesInstanceUID.encode())
    ready: dict[int, Iterable[bytes | memoryview]] = {
        _REFERENCED_SERIES: [sequence(_REFERENCED_SERIES, [series])],
        _SOURCE_IMAGES: [references(_SOURCE_IMAGES, images)],
        _PER_FRAME: [sequence(_PER_FRAME, described)],
        _PIXEL_DATA: _pixel_data(planes, frames, kind, None if probability is None else source.on_slices(probability)),
    }
    return save_whole(segmentation, header, path, ready)


def _frames(planes: NDArray[Any], segments: int) -> list[Frame]:
    """Segment by segment the slices it is in, every slice where no segment is in any; `segments` 0: all in one.

    Slices in highdicom's order, against the normal of the image plane, along which a volume's slices run.
    """
    found: list[list[int]] = [[] for _ in range(segments + 1)]
    downwards = range(len(planes) - 1, -1, -1)
    for index in downwards:
        plane = planes[index]
        if not (highest := int(plane.max())):
            continue
        if not segments:
            found[0].append(index)
            continue
        present = np.bincount(plane[plane > 0], minlength=highest + 1)
        for number in np.flatnonzero(present):
            found[number].append(index)
    if not any(found):
        found = [list(downwards)] * (segments + 1)
    return [(number, index) for number in range(min(1, segments), segments + 1) for index in found[number]]


def _evenly_spaced(source: SourceSeries, frames: list[Frame], header: Dataset) -> bool:
    """Whether the frames are a regular stack in the order in which the source has their images."""
    if len(frames) < 2:
        return False
    indices = sorted(index for _, index in frames)
    if source.is_multi_frame:
        indices.sort(key=lambda index: source.frame_indices[index])
        orientation = header.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    else:
        orientation = header.ImageOrientationPatient
    positions = [[float(value) for value in position_of(source, index)] for index in indices]
    spacing, _ = get_volume_positions(positions, orientation, sort=False)
    return spacing is not None and spacing > 0


def _described(source: SourceSeries, example: Dataset, frames: list[Frame]) -> Iterator[bytes]:
    """An item of the Per-frame Functional Groups Sequence for each frame, after the one of `example`."""
    derivation = example.DerivationImageSequence[0]
    shown = derivation.SourceImageSequence[0]
    before, after = encoded(shown[:_SOP_INSTANCE]), encoded(shown[_FRAME_NUMBER + 1 :])
    how = encoded(derivation[_SOURCE_IMAGES + 1 :])
    has_segment = "SegmentIdentificationSequence" in example
    derived, placed = {}, {}
    occupied = sorted({index for _, index in frames}, reverse=True)
    for index in occupied:
        image = before + element(_SOP_INSTANCE, "UI", source.sop_instance_uids[index].encode())
        if source.is_multi_frame:
            image += element(_FRAME_NUMBER, "IS", str(source.frame_indices[index] + 1).encode())
        derived[index] = sequence(_DERIVATION_IMAGE, [sequence(_SOURCE_IMAGES, [image + after]) + how])
        position = "\\".join(str(DS(value, auto_format=True)) for value in position_of(source, index))
        placed[index] = sequence(_PLANE_POSITION, [element(_IMAGE_POSITION, "DS", position.encode())])
    rank = {index: number for number, index in enumerate(occupied, start=1)}
    for number, index in frames:
        dimensions = struct.pack("<2I", number, rank[index]) if number else struct.pack("<I", rank[index])
        content = sequence(_FRAME_CONTENT, [element(_DIMENSION_INDEX_VALUES, "UL", dimensions)])
        item = derived[index] + content + placed[index]
        if has_segment:
            number_of_segment = element(_SEGMENT_NUMBER, "US", struct.pack("<H", number))
            item += sequence(_SEGMENT_IDENTIFICATION, [number_of_segment])
        yield item


def _pixel_data(
    planes: NDArray[Any], frames: list[Frame], kind: SegType, probability: NDArray[np.uint8] | None
) -> Iterator[bytes | memoryview]:
    """The element with the frames' pixels, some frames at a time: never all of them in memory."""
    voxels = len(frames) * planes[0].size
    length = -(-voxels // 8) if kind is SegType.BINARY else voxels * planes.itemsize
    if kind is SegType.FRACTIONAL:
        length = voxels
    yield head_of(_PIXEL_DATA, "OW" if kind is SegType.LABELMAP and planes.itemsize > 1 else "OB", length + length % 2)
    if kind is SegType.LABELMAP:
        for _, index in frames:
            yield planes[index].data.cast("B")
    elif kind is SegType.FRACTIONAL:
        assert probability is not None, "asked for before anything is written"
        for number, index in frames:
            inside = planes[index] == number
            yield (np.maximum(probability[index], 1) * inside).tobytes()
    else:
        masks = np.empty((_FRAMES_AT_ONCE, *planes.shape[1:]), dtype=bool)
        for start in range(0, len(frames), _FRAMES_AT_ONCE):
            some = frames[start : start + _FRAMES_AT_ONCE]
            for mask, (number, index) in zip(masks, some, strict=False):
                np.equal(planes[index], number, out=mask)
            yield np.packbits(masks[: len(some)], bitorder="little").data
    yield b"\0" * (length % 2)
