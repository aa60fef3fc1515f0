"""A DICOM Segmentation (PS3.3 A.51), ours or another maker's, as one label map in its place in the patient.

Frames without a segment are usually left out, so the frames alone do not say which slices the grid has. Over its source
series the label map has the series' grid; without it, every slice from the first frame to the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, SegmentationStorage

from imaging.errors import InputError, NotAnalysable, Reason
from imaging.geometry import laid_onto
from imaging.sheared_stack import ShearedStack
from imaging.volume import Affine
from services.dicom import reason_codes
from services.dicom.decoder_process import decoded
from services.dicom.dicom_file import opened_dicom
from services.dicom.headers import MALFORMED, first_item, integer, is_directory, items, read_header, text
from services.dicom.image_plane import ImagePlane, frame_planes
from services.dicom.series_reader import SourceSeries
from services.dicom.source_image import refuse_too_many_voxels
from services.dicom.stack_geometry import (
    MAX_DRIFT_PIXELS,
    MAX_TILT_DEGREES,
    ORIENTATION_TOLERANCE,
    SAME_POSITION_MM,
    SPACING_TOLERANCE,
)

_LABEL_MAP_SEGMENTATION_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # PS3.4 B.5, newer than pydicom 3.0
SEG_STORAGE_SOP_CLASSES = frozenset({SegmentationStorage, _LABEL_MAP_SEGMENTATION_STORAGE})
INSIDE_FROM = 0.5
"""Of a FRACTIONAL segment, the part of a voxel or the probability from which on it counts as inside."""
MAX_SEGMENTS = 65_535


@dataclass(frozen=True, slots=True, eq=False)
class SourceSeg:
    """A SEG that has been read.

    Attributes:
        labels: segment number of every voxel (z, y, x), uint16, 0 where there is none.
        affine_lps: (z, y, x) -> LPS mm.
        segments: label of every segment that was read, by its number.
    """

    labels: NDArray[np.uint16]
    affine_lps: Affine
    segments: dict[int, str]
    reasons: tuple[Reason, ...] = ()


def is_seg(path: Path) -> bool:
    """Whether it is a DICOM Segmentation, by its SOP class."""
    try:
        return text(read_header(path, keywords=["SOPClassUID"]), "SOPClassUID") in SEG_STORAGE_SOP_CLASSES
    except InputError:
        return False


def read_seg(
    path: Path,
    *,
    series: SourceSeries | None = None,
    only_segment: int | None = None,
    inside_from: float = INSIDE_FROM,
) -> SourceSeg:
    """Read a BINARY, FRACTIONAL or LABELMAP segmentation.

    Args:
        series: the series it lies on, whose grid the labels then have.
        only_segment: the number of the one segment that is read.
        inside_from: of a FRACTIONAL segment, the fraction of the greatest value from which on a voxel is inside.

    Raises:
        InputError: no SEG; a segment that is not described, or not there; two segments share a voxel
            (`segments.overlap`); frames that do not lie on the series' voxels (`geometry.grid_differs`).
        NotAnalysable: frames without a place, in several orientations, or on no regular stack; pixels unreadable.
    """
    header = read_header(path)
    if is_directory(header) or text(header, "SOPClassUID") not in SEG_STORAGE_SOP_CLASSES:
        raise InputError(f"{path.name} is no DICOM Segmentation", code="input.not_seg")
    frames = _placed_frames(path, header)
    segments = _described_segments(header, path)
    if only_segment is not None:
        if only_segment not in segments:
            known = ", ".join(str(number) for number in segments)
            raise InputError(f"there is no segment {only_segment}, only {known}", code="input.no_such_segment")
        segments = {only_segment: segments[only_segment]}
    grid = _SegGrid.on_series(frames, series) if series and series.sheared else _SegGrid.of(frames, header)
    labels = np.zeros(grid.shape_zyx, dtype=np.uint16)
    described = set(_described_segments(header, path))
    greatest = integer(header, "MaximumFractionalValue") or 255
    is_label_map = _segmentation_type(header) == "LABELMAP"
    for index, pixels in enumerate(_frames_of(path, len(frames), frames[0].rows, frames[0].columns)):
        if is_label_map:
            found = pixels.astype(np.uint16)
            present = {int(number) for number in np.unique(found)} - {0}
        else:
            number = _segment_number(header, index)
            is_inside = pixels >= inside_from * greatest if _is_fractional(header) else pixels > 0
            found = np.where(is_inside, np.uint16(number), np.uint16(0))
            present = {number}
        if unknown := present - described:
            raise InputError(f"{path.name}: segment {min(unknown)} is not described", code="input.no_such_segment")
        if only_segment is not None:
            found[found != only_segment] = 0
        _paint(labels[grid.slice_of_frame[index]], found)
    labels, affine = grid.straightened(labels)
    if series is None:
        return SourceSeg(labels, affine, segments, grid.reasons)
    if series.sheared is None:
        labels = _on_series(labels, affine, series)
    return SourceSeg(labels, series.volume.affine_lps, segments)


def _placed_frames(path: Path, header: Dataset) -> list[ImagePlane]:
    frames = frame_planes(path, header)
    if missing := sum(not frame.has_geometry for frame in frames):
        text_ = f"{missing} of {len(frames)} frames have no position, orientation or pixel spacing"
        raise NotAnalysable([Reason(reason_codes.NO_GEOMETRY, text_)])
    orientations = np.array([frame.orientation for frame in frames])
    if np.ptp(orientations, axis=0).max() > ORIENTATION_TOLERANCE:
        raise NotAnalysable([Reason(reason_codes.MIXED_ORIENTATIONS, "frames lie in several orientations")])
    spacing = np.array([frame.pixel_spacing_mm for frame in frames])
    if np.ptp(spacing, axis=0).max() > 1e-3 * spacing.max():
        raise NotAnalysable([Reason(reason_codes.MIXED_SIZES, "the pixel spacing differs between frames")])
    return frames


def _described_segments(header: Dataset, path: Path) -> dict[int, str]:
    try:
        described = items(header, "SegmentSequence")
    except MALFORMED as error:
        raise InputError(f"{path.name}: the segments are malformed", code="input.not_seg") from error
    found = {
        number: text(item, "SegmentLabel")
        for item in described
        if (number := integer(item, "SegmentNumber")) is not None and 0 < number <= MAX_SEGMENTS
    }
    if not found:
        raise InputError(f"{path.name} describes no segment", code="input.not_seg")
    return found


def _segmentation_type(header: Dataset) -> str:
    return text(header, "SegmentationType") or "BINARY"


def _is_fractional(header: Dataset) -> bool:
    return _segmentation_type(header) == "FRACTIONAL"


def _segment_number(header: Dataset, index: int) -> int:
    frame, shared = header.PerFrameFunctionalGroupsSequence[index], first_item(header, "SharedFunctionalGroupsSequence")
    for groups in (frame, shared):
        item = None if groups is None else first_item(groups, "SegmentIdentificationSequence")
        if item is not None and (number := integer(item, "ReferencedSegmentNumber")) is not None:
            return number if 0 < number <= MAX_SEGMENTS else 0
    return 0


def _frames_of(path: Path, count: int, rows: int, columns: int) -> Iterator[NDArray[Any]]:
    """Stored values (row, column), frame by frame; exactly as many as are placed."""
    read = 0
    try:
        with opened_dicom(path) as file:
            dataset = dcmread(file, force=True)
        for pixels in islice(_stored_frames(path, dataset, count, (rows, columns)), count):
            read += 1
            if pixels.shape != (rows, columns):
                raise ValueError(f"decoded to {pixels.shape}, announced {(rows, columns)}")
            yield pixels
        if read != count:
            raise ValueError(f"{read} of {count} frames")
    except (*MALFORMED, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"cannot read {path.name}: {error.strerror}", code="input.unreadable") from error
        message = f"pixel data of {path.name} cannot be read: {type(error).__name__}"
        raise NotAnalysable([Reason(reason_codes.PIXELS_UNREADABLE, message)]) from error


def _stored_frames(path: Path, dataset: Dataset, count: int, shape: tuple[int, int]) -> Iterator[NDArray[Any]]:
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return (decoded(path, index) for index in range(count))
    if integer(dataset, "BitsAllocated") == 1:
        return (bits.reshape(shape) for bits in _unpacked_bits(dataset, shape[0] * shape[1]))
    return iter_pixels(dataset)


def _unpacked_bits(dataset: Dataset, count: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of `count` bits, lowest bit first, one after another without padding (PS3.5 8.1.1).

    Not by pydicom: its frames begin at whole bytes, which those of an odd size do not.
    """
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    for start in range(0, packed.size * 8 - count + 1, count):
        bits = np.unpackbits(packed[start // 8 : (start + count + 7) // 8], bitorder="little")
        yield bits[start % 8 : start % 8 + count]


def _paint(plane: NDArray[np.uint16], found: NDArray[np.uint16]) -> None:
    shared = (plane > 0) & (found > 0) & (plane != found)
    if shared.any():
        row, column = np.argwhere(shared)[0]
        one, other = plane[row, column], found[row, column]
        raise InputError(
            f"segments {one} and {other} share voxels: one label map cannot hold both",
            code=reason_codes.SEGMENTS_OVERLAP,
            remedy="take one segment at a time",
        )
    np.copyto(plane, found, where=found > 0)


@dataclass(frozen=True, slots=True, eq=False)
class _SegGrid:
    """The slices that frames lie on.

    Attributes:
        affine_lps: of the slices as they lie, sheared where they are.
    """

    shape_zyx: tuple[int, int, int]
    affine_lps: Affine
    slice_of_frame: Sequence[int]
    sheared: ShearedStack | None = None
    reasons: tuple[Reason, ...] = ()

    @classmethod
    def of(cls, frames: Sequence[ImagePlane], header: Dataset) -> _SegGrid:
        """The smallest regular stack that holds all frames."""
        row, column = np.mean(np.array([frame.orientation for frame in frames]), axis=0)
        row, normal = row / np.linalg.norm(row), np.cross(row, column)
        normal /= np.linalg.norm(normal)
        column = np.cross(normal, row)
        positions = np.array([frame.position_lps_mm for frame in frames])
        heights_mm = positions @ normal
        spacing = np.mean(np.array([frame.pixel_spacing_mm for frame in frames]), axis=0)
        step_mm = _step_mm(heights_mm, _announced_step_mm(header))
        lowest, highest = int(heights_mm.argmin()), int(heights_mm.argmax())
        slices = np.rint((heights_mm - heights_mm[lowest]) / step_mm).astype(int)
        shape = (int(slices.max()) + 1, frames[0].rows, frames[0].columns)
        refuse_too_many_voxels(shape)
        step = normal * step_mm
        is_sheared = False
        if slices.max():
            along = (positions[highest] - positions[lowest]) / slices.max()
            drift_mm = float(np.linalg.norm(along - (along @ normal) * normal)) * slices.max()
            is_sheared = drift_mm > MAX_DRIFT_PIXELS * spacing.min()
            step = along if is_sheared else (along @ normal) * normal
            tilt = math.degrees(math.acos(min(1.0, abs(float(along @ normal)) / float(np.linalg.norm(along)))))
            off_mm = np.abs(positions - positions[lowest] - slices[:, None] * along).max()
            if off_mm > MAX_DRIFT_PIXELS * spacing.min() or tilt > MAX_TILT_DEGREES:
                text_ = f"frames lie up to {off_mm:.1f} mm beside a straight stack, sheared by {tilt:.0f} degrees"
                raise NotAnalysable([Reason(reason_codes.MISALIGNED_SLICES, text_)])
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, column * spacing[0], row * spacing[1]
        affine[:3, 3] = positions[lowest]
        if not is_sheared:
            return cls(shape, affine, slices.tolist())
        sheared, _ = ShearedStack.of(affine, shape)
        refuse_too_many_voxels(sheared.grid_shape_zyx)
        warning = Reason(reason_codes.RESAMPLED, "sheared frames were moved onto an orthogonal grid, to the next voxel")
        return cls(shape, affine, slices.tolist(), sheared, (warning,))

    @classmethod
    def on_series(cls, frames: Sequence[ImagePlane], series: SourceSeries) -> _SegGrid:
        """The slices of a tilted series as they were acquired."""
        assert series.sheared is not None
        cosines, (_, *spacing) = series.volume.direction_cosines, series.volume.spacing_zyx_mm
        places = np.array([series.position_lps_mm(index) for index in range(len(series.sop_instance_uids))])
        positions = np.array([frame.position_lps_mm for frame in frames])
        distances_mm = np.linalg.norm(positions[:, None] - places[None], axis=2)
        frame = frames[0]
        assert frame.orientation is not None
        assert frame.pixel_spacing_mm is not None
        agrees = (
            (frame.rows, frame.columns) == series.rows_and_columns
            and np.allclose(frame.orientation, cosines.T[[2, 1]], atol=ORIENTATION_TOLERANCE)
            and np.allclose(frame.pixel_spacing_mm, spacing, rtol=1e-3)
            and distances_mm.min(axis=1).max() <= SPACING_TOLERANCE * min(series.volume.spacing_zyx_mm)
        )
        if not agrees:
            raise _other_grid("the frames do not lie on the slices of the tilted series")
        shape = (len(places), frame.rows, frame.columns)
        return cls(shape, series.volume.affine_lps, distances_mm.argmin(axis=1).tolist(), series.sheared)

    def straightened(self, labels: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], Affine]:
        if self.sheared is None:
            return labels, self.affine_lps
        _, affine = ShearedStack.of(self.affine_lps, self.shape_zyx)
        return self.sheared.onto_grid(labels), affine


def _announced_step_mm(header: Dataset) -> list[float]:
    """SpacingBetweenSlices, which some makers leave out, then SliceThickness, by which they mean it."""
    shared = first_item(header, "SharedFunctionalGroupsSequence") or Dataset()
    try:
        groups = [shared, header.PerFrameFunctionalGroupsSequence[0]]
    except MALFORMED:
        groups = [shared]
    found = []
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        for group in groups:
            measures = first_item(group, "PixelMeasuresSequence")
            try:
                value = abs(float(measures.get(keyword))) if measures is not None else math.nan
            except MALFORMED:
                continue
            if math.isfinite(value) and value > SAME_POSITION_MM:
                found.append(value)
    return found


def _step_mm(heights_mm: NDArray[np.float64], announced_mm: Sequence[float]) -> float:
    """The distance between slices of which all heights are multiples."""
    heights_mm = np.sort(heights_mm)
    gaps = np.diff(heights_mm)
    gaps = gaps[gaps > SAME_POSITION_MM]
    if not gaps.size:
        if announced_mm:
            return announced_mm[0]
        raise NotAnalysable([Reason(reason_codes.NO_GEOMETRY, "a single slice without spacing or thickness")])
    for step_mm in (*announced_mm, float(gaps.min())):
        # made free of the rounding that a written spacing has over a long stack
        multiples = np.rint(gaps / step_mm)
        if multiples.min() >= 1 and np.abs(gaps / step_mm - multiples).max() <= SPACING_TOLERANCE:
            return float(gaps.sum() / multiples.sum())
    text_ = f"distances between frames vary from {gaps.min():.3f} to {gaps.max():.3f} mm"
    raise NotAnalysable([Reason(reason_codes.UNEQUAL_SPACING, text_)])


def _on_series(labels: NDArray[np.uint16], affine: Affine, series: SourceSeries) -> NDArray[np.uint16]:
    found = laid_onto(labels, affine, series.volume, may_be_part=True)
    if found is None:
        raise _other_grid("the segmentation does not lie on the voxels of the series")
    return found


def _other_grid(what: str) -> InputError:
    return InputError(what, code=reason_codes.GRID_DIFFERS, remedy="hand in the series that it was drawn on")
