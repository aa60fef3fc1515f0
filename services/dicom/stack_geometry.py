"""Image planes to one regular grid: order, spacing and affine from position and orientation alone.

InstanceNumber, SliceLocation and SliceThickness are never asked: they are numbers a scanner may choose freely, and the
distance between slices is not their thickness (PS3.3 C.7.6.2.1.1, C.7.6.2.1.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imaging.errors import NotAnalysable, Reason
from services.dicom import reason_codes
from services.dicom.image_plane import ImagePlane

MIN_SLICES = 3
# Gaps may differ by rounding of the written decimals (3.987 and 3.988 mm are equal), not by more.
SPACING_TOLERANCE = 0.05
SAME_POSITION_MM = 0.01
# A stack drifts sideways when it was acquired with a tilted gantry; below a pixel over the whole stack nobody can tell.
MAX_DRIFT_PIXELS = 1.0
ORIENTATION_TOLERANCE = 1e-3


def drop_localizers(planes: Sequence[ImagePlane]) -> tuple[list[ImagePlane], tuple[Reason, ...]]:
    """The planes of the stack without scout views that share its series, and a warning where some were dropped.

    Planes that call themselves LOCALIZER (PS3.3 C.8.2.1.1.1) go first; then planes of another size or orientation
    than the great majority, if they are at most a fifth of the rest.

    Raises:
        NotAnalysable: where no clear majority is left.
    """
    kept = [plane for plane in planes if not plane.is_localizer]
    groups: dict[int, list[ImagePlane]] = {}
    representatives: list[ImagePlane] = []
    for plane in kept:
        index = next((i for i, known in enumerate(representatives) if _stackable(plane, known)), len(representatives))
        if index == len(representatives):
            representatives.append(plane)
        groups.setdefault(index, []).append(plane)
    if len(groups) > 1:
        majority = max(groups.values(), key=len)
        if len(majority) < MIN_SLICES or len(kept) - len(majority) > len(majority) // 5:
            raise NotAnalysable([_mixture(kept, len(groups))])
        kept = majority
    dropped = len(planes) - len(kept)
    if not kept:
        raise NotAnalysable([Reason(reason_codes.TOO_FEW_SLICES, f"all {dropped} images are localizers")])
    if not dropped:
        return kept, ()
    return kept, (Reason(reason_codes.LOCALIZER_IGNORED, f"{dropped} localizer or foreign images were ignored"),)


def _stackable(plane: ImagePlane, other: ImagePlane) -> bool:
    if (plane.rows, plane.columns) != (other.rows, other.columns) or plane.has_geometry != other.has_geometry:
        return False
    if plane.orientation is None or other.orientation is None:
        return plane.orientation is other.orientation
    return bool(np.allclose(plane.orientation, other.orientation, atol=ORIENTATION_TOLERANCE))


def _mixture(planes: Sequence[ImagePlane], groups: int) -> Reason:
    sizes = Counter(f"{plane.columns}x{plane.rows}" for plane in planes)
    listed = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(4))
    if len(sizes) > 1:
        return Reason(reason_codes.MIXED_SIZES, f"the series mixes images of different sizes: {listed}")
    if not all(plane.has_geometry for plane in planes):
        return _no_geometry(planes)
    return Reason(reason_codes.MIXED_ORIENTATIONS, f"the series mixes {groups} slice orientations")


def _no_geometry(planes: Sequence[ImagePlane]) -> Reason:
    missing = sum(not plane.has_geometry for plane in planes)
    return Reason(
        reason_codes.NO_GEOMETRY,
        f"{missing} of {len(planes)} images have no ImagePositionPatient, ImageOrientationPatient or PixelSpacing",
    )


def arrange(planes: Sequence[ImagePlane]) -> tuple[list[ImagePlane], NDArray[np.float64]]:
    """The planes sorted along their normal, and the affine of the grid they form.

    Returns:
        planes from low to high along the normal (row direction x column direction), and the 4x4 affine that maps
        (slice, row, column, 1) to LPS mm, as `CtVolume` wants it.

    Raises:
        NotAnalysable: the stack is no regular orthogonal grid; every reason carries the measured value.
    """
    if len(planes) < MIN_SLICES:
        raise NotAnalysable(
            [Reason(reason_codes.TOO_FEW_SLICES, f"{len(planes)} slices, at least {MIN_SLICES} needed")]
        )
    if not all(plane.has_geometry for plane in planes):
        raise NotAnalysable([_no_geometry(planes)])
    row, column = np.mean(np.array([plane.orientation for plane in planes]), axis=0)
    row /= np.linalg.norm(row)
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    spacing = np.array([plane.pixel_spacing_mm for plane in planes])
    if np.ptp(spacing, axis=0).max() > 1e-3 * spacing.max():
        raise NotAnalysable([Reason(reason_codes.MIXED_SIZES, "the pixel spacing differs between slices")])

    positions = np.array([plane.position_lps_mm for plane in planes])
    # stable: planes at one position keep the order in which they were handed in
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    heights_mm = positions @ normal
    reasons = [
        *_duplicate_positions(heights_mm),
        *_drift(positions, normal, max_drift_mm=MAX_DRIFT_PIXELS * float(spacing.min())),
        *_irregular_steps(heights_mm),
    ]
    if reasons:
        raise NotAnalysable(reasons)

    affine = np.eye(4)
    affine[:3, 0] = normal * (heights_mm[-1] - heights_mm[0]) / (len(planes) - 1)
    affine[:3, 1] = column * spacing[:, 0].mean()
    affine[:3, 2] = row * spacing[:, 1].mean()
    affine[:3, 3] = positions[0]
    return [planes[index] for index in order], affine


def _duplicate_positions(heights_mm: NDArray[np.float64]) -> list[Reason]:
    duplicates = int((np.diff(heights_mm) < SAME_POSITION_MM).sum())
    if not duplicates:
        return []
    return [Reason(reason_codes.DUPLICATE_POSITIONS, f"{duplicates} slices lie at the position of another one")]


def _irregular_steps(heights_mm: NDArray[np.float64]) -> list[Reason]:
    """Why the sorted positions along the normal are not evenly spaced; duplicates are told apart by the caller."""
    gaps = np.diff(heights_mm)
    gaps = gaps[gaps >= SAME_POSITION_MM]
    if not gaps.size:
        return []
    usual = float(np.median(gaps))
    multiples = np.maximum(np.rint(gaps / usual), 1)
    if np.any(np.abs(gaps - multiples * usual) > SPACING_TOLERANCE * usual):
        text = f"distances between slices vary from {gaps.min():.3f} to {gaps.max():.3f} mm"
        return [Reason(reason_codes.UNEQUAL_SPACING, text)]
    if missing := int(multiples.sum()) - len(gaps):
        return [
            Reason(reason_codes.MISSING_SLICES, f"{missing} slices are missing between others {usual:.3f} mm apart")
        ]
    return []


def _drift(positions: NDArray[np.float64], normal: NDArray[np.float64], *, max_drift_mm: float) -> list[Reason]:
    """Why the sorted positions do not lie above one another along the normal."""
    offsets = positions - positions[0]
    heights = offsets @ normal
    sideways = offsets - heights[:, None] * normal
    drift = np.linalg.norm(sideways, axis=1)
    if drift.max() <= max_drift_mm:
        return []
    slope = sideways[-1] / max(heights[-1], SAME_POSITION_MM)
    if np.linalg.norm(sideways - heights[:, None] * slope, axis=1).max() <= max_drift_mm:
        angle = np.degrees(np.arctan(np.linalg.norm(slope)))
        return [Reason(reason_codes.GANTRY_TILT, f"slices are sheared by {angle:.1f} degrees (gantry tilt)")]
    return [Reason(reason_codes.MISALIGNED_SLICES, f"slices are shifted sideways by up to {drift.max():.1f} mm")]
