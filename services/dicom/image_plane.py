"""One image plane of a CT series: a single-frame instance, or one frame of a multi-frame instance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.errors import InputError, NotAnalysable, Reason
from services.dicom import reason_codes
from services.dicom.headers import MALFORMED, first_item, integer, items, numbers, text
from services.dicom.hounsfield import Rescale, rescale_of
from services.dicom.storage import MULTI_FRAME_CT_SOP_CLASSES

Vector = NDArray[np.float64]

# PS3.3 C.7.4.1, C.8.2.1 and C.7.6.18.2.1; for multi-frame instances C.7.6.16.2.2 and C.8.15.3
_ACQUISITION_KEYWORDS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "KVP",
    "ConvolutionKernel",
    "FrameAcquisitionNumber",
    "TemporalPositionIndex",
    "StackID",
)
_MACROS = (
    "FrameContentSequence",
    "CTImageFrameTypeSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "CTReconstructionSequence",
    "CTXRayDetailsSequence",
    "CardiacSynchronizationSequence",
)


@dataclass(frozen=True, slots=True, eq=False)
class ImagePlane:
    """Where a plane lies and how its stored values become HU (PS3.3 C.7.6.2, C.8.2.1; functional groups C.7.6.16).

    Attributes:
        frame_index: 0-based frame of a multi-frame instance; None for a single-frame one.
        position_lps_mm: centre of the first voxel (ImagePositionPatient); None where absent or malformed.
        orientation: ImageOrientationPatient as (2, 3): direction of a row (towards growing column), then of a column;
            None where absent or not orthonormal.
        pixel_spacing_mm: distance between (rows, columns); None where absent or not positive.
        acquisition: what tells one pass of the scanner, phase or reconstruction from another in the same series.
    """

    path: Path
    header: Dataset
    frame_index: int | None
    sop_instance_uid: str
    rows: int
    columns: int
    position_lps_mm: Vector | None
    orientation: Vector | None
    pixel_spacing_mm: Vector | None
    rescale: Rescale
    is_localizer: bool
    acquisition: tuple[str, ...]

    @property
    def has_geometry(self) -> bool:
        return self.position_lps_mm is not None and self.orientation is not None and self.pixel_spacing_mm is not None


def is_multi_frame(header: Dataset) -> bool:
    return text(header, "SOPClassUID") in MULTI_FRAME_CT_SOP_CLASSES


def planes_of(path: Path, header: Dataset) -> list[ImagePlane]:
    """The planes of one instance, in frame order.

    Raises:
        InputError: `input.no_image` for impossible rows or columns, `input.invalid` for impossible frames or no UID.
        NotAnalysable: frames of an old multi-frame object, which have no position of their own.
    """
    rows, columns = _rows_and_columns(path, header)
    if not is_multi_frame(header):
        # Old secondary captures of several frames carry no position per frame: nothing can be measured in them.
        if (integer(header, "NumberOfFrames") or 1) > 1:
            raise NotAnalysable(
                [Reason(reason_codes.NO_GEOMETRY, f"{path.name}: frames without a position of their own")]
            )
        return [_plane(path, header, None, rows, columns, [header], [])]
    return frame_planes(path, header)


def frame_planes(path: Path, header: Dataset) -> list[ImagePlane]:
    """The planes of a multi-frame instance with functional groups, in frame order.

    Raises:
        InputError: as `planes_of`.
    """
    rows, columns = _rows_and_columns(path, header)
    try:
        frames = items(header, "PerFrameFunctionalGroupsSequence")
    except MALFORMED as error:
        raise InputError(f"{path.name}: the per-frame functional groups are malformed") from error
    if not frames or len(frames) != integer(header, "NumberOfFrames"):
        raise InputError(
            f"{path.name}: {len(frames)} per-frame groups, NumberOfFrames {text(header, 'NumberOfFrames')}"
        )
    shared = first_item(header, "SharedFunctionalGroupsSequence") or Dataset()
    return [
        _plane(path, header, index, rows, columns, _functional_groups(frame, shared), [frame, shared])
        for index, frame in enumerate(frames)
    ]


def _rows_and_columns(path: Path, header: Dataset) -> tuple[int, int]:
    rows, columns = integer(header, "Rows"), integer(header, "Columns")
    if not rows or not columns or rows < 0 or columns < 0:
        raise InputError(f"{path.name} has no image: rows {rows}, columns {columns}", code="input.no_image")
    if not text(header, "SOPInstanceUID"):
        raise InputError(f"{path.name} has no SOP Instance UID: no result could refer to it")
    return rows, columns


def _functional_groups(frame: Dataset, shared: Dataset) -> list[Dataset]:
    """The macros that place a frame and say what it shows: its own before the shared ones (PS3.3 C.7.6.16)."""
    items = [first_item(groups, macro) for macro in _MACROS for groups in (frame, shared)]
    return [item for item in items if item is not None]


def _plane(
    path: Path,
    header: Dataset,
    frame_index: int | None,
    rows: int,
    columns: int,
    sources: list[Dataset],
    groups: list[Dataset],
) -> ImagePlane:
    def vector(keyword: str, count: int) -> Vector | None:
        return next((found for source in sources if (found := numbers(source, keyword, count)) is not None), None)

    def words(keyword: str) -> str:
        return next((found for source in sources if (found := text(source, keyword))), "")

    cosines = vector("ImageOrientationPatient", 6)
    spacing = vector("PixelSpacing", 2)
    return ImagePlane(
        path=path,
        header=header,
        frame_index=frame_index,
        sop_instance_uid=text(header, "SOPInstanceUID"),
        rows=rows,
        columns=columns,
        position_lps_mm=vector("ImagePositionPatient", 3),
        orientation=None if cosines is None else _orthonormal(tuple(cosines)),
        pixel_spacing_mm=spacing if spacing is not None and np.all(spacing > 1e-3) else None,
        rescale=rescale_of(header, sources, groups),
        is_localizer="LOCALIZER" in f"{text(header, 'ImageType')}\\{words('FrameType')}".upper().split("\\"),
        acquisition=tuple(words(keyword) for keyword in _ACQUISITION_KEYWORDS),
    )


@lru_cache(maxsize=64)
def _orthonormal(cosines: tuple[float, ...]) -> Vector | None:
    """The orientation freed of the rounding of its decimals, or None where it is not a rotation."""
    row, column = np.reshape(cosines, (2, 3))
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2 or abs(row @ column) > 1e-2:
        return None
    row = row / np.linalg.norm(row)
    column = column - (column @ row) * row
    orientation = np.stack([row, column / np.linalg.norm(column)])
    orientation.flags.writeable = False  # one for all slices that have the same
    return orientation
