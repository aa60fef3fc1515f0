"""Image planes to one regular grid: order, spacing and affine from position and orientation alone.

InstanceNumber, SliceLocation and SliceThickness are never asked: they are numbers a scanner may choose freely, and the
distance between slices is not their thickness (PS3.3 C.7.6.2.1.1, C.7.6.2.1.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from imaging.errors import NotAnalysable, Reason
from services.dicom import reason_codes
from services.dicom.image_plane import ImagePlane

MIN_SLICES = 3
# How far a slice may lie from its place in an even stack, in parts of the step: the rounding of written decimals
# (3.987 and 3.988 mm; 0.6 and 0.7 mm for 0.625), not more.
SPACING_TOLERANCE = 0.1
SAME_POSITION_MM = 0.01
# A stack drifts sideways when it was acquired with a tilted gantry; below a pixel over the whole stack nobody can tell.
MAX_DRIFT_PIXELS = 1.0
# Gantries tilt by 30 degrees at most; beyond this the positions are no stack's.
MAX_TILT_DEGREES = 45.0
ORIENTATION_TOLERANCE = 1e-3
# Scouts and reformats lie across the stack; what lies nearly along it is a slice of it.
_ACROSS_COSINE = 0.7


def drop_localizers(planes: Sequence[ImagePlane]) -> tuple[list[ImagePlane], tuple[Reason, ...]]:
    """The planes of the stack without scout views that share its series, and a warning where some were dropped.

    Planes that call themselves LOCALIZER (PS3.3 C.8.2.1.1.1) go first; then planes that differ from the great majority
    in size or lie across it, if they are at most a fifth of it.

    Raises:
        NotAnalysable: where no clear majority is left, or what would be left out may be a slice of the stack.
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
        slices = [plane for plane in kept if not _is_foreign(plane, majority[0])]
        if len(slices) > len(majority):
            raise NotAnalysable([_mixture(slices, len(groups))])
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
    if plane.orientation is other.orientation:
        return True
    if plane.orientation is None or other.orientation is None:
        return False
    return bool(np.allclose(plane.orientation, other.orientation, atol=ORIENTATION_TOLERANCE))


def _is_foreign(plane: ImagePlane, of_stack: ImagePlane) -> bool:
    """Whether a plane cannot be a slice of the stack: of another size, or across it."""
    if (plane.rows, plane.columns) != (of_stack.rows, of_stack.columns):
        return True
    if plane.orientation is None or of_stack.orientation is None:
        return False
    return abs(float(np.cross(*plane.orientation) @ np.cross(*of_stack.orientation))) < _ACROSS_COSINE


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
    """The planes sorted along their normal, and the affine of the stack they form.

    Returns:
        planes from low to high along the normal (row direction x column direction), and the 4x4 affine that maps
        (slice, row, column, 1) to LPS mm. Its first column is oblique where the gantry was tilted (`ShearedStack`).

    Raises:
        NotAnalysable: the stack is not regular; every reason carries the measured value.
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
    planes = [planes[index] for index in order]
    positions = positions[order]
    heights_mm = positions @ normal
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    max_drift_mm = MAX_DRIFT_PIXELS * float(spacing.min())
    reasons = [
        *(_mixed_acquisitions(planes) or _duplicate_positions(heights_mm)),
        *_misaligned(positions, normal, max_drift_mm),
        *_irregular_steps(heights_mm),
    ]
    if reasons:
        raise NotAnalysable(reasons)

    straight = (step @ normal) * normal
    is_tilted = np.linalg.norm(step - straight) * (len(planes) - 1) > max_drift_mm
    affine = np.eye(4)
    affine[:3, 0] = step if is_tilted else straight
    affine[:3, 1] = column * spacing[:, 0].mean()
    affine[:3, 2] = row * spacing[:, 1].mean()
    affine[:3, 3] = positions[0]
    return planes, affine


def _mixed_acquisitions(planes: Sequence[ImagePlane]) -> list[Reason]:
    """Why the sorted planes are not of one pass: phases or reconstructions that lie over one another.

    Passes that follow one another along the table, as of a step-and-shoot scan, are one stack.
    """
    passes = Counter(plane.acquisition for plane in planes)
    changes = sum(plane.acquisition != after.acquisition for plane, after in pairwise(planes))
    if changes < len(passes):
        return []
    listed = ", ".join(f"{count} slices" for _, count in passes.most_common(4))
    text = f"{len(passes)} phases or reconstructions lie over one another in the series: {listed}; hand in one"
    return [Reason(reason_codes.MULTIPLE_PHASES, text)]


def _duplicate_positions(heights_mm: NDArray[np.float64]) -> list[Reason]:
    duplicates = int((np.diff(heights_mm) < SAME_POSITION_MM).sum())
    if not duplicates:
        return []
    return [Reason(reason_codes.DUPLICATE_POSITIONS, f"{duplicates} slices lie at the position of another one")]


def missing_slices(heights_mm: NDArray[np.float64]) -> Reason | None:
    """That slices are missing between those at these heights along their normal, in any order; None where none is."""
    reasons = _irregular_steps(np.sort(heights_mm))
    return next((reason for reason in reasons if reason.code == reason_codes.MISSING_SLICES), None)


def is_even_stack(heights_mm: NDArray[np.float64]) -> bool:
    """Whether slices at these heights along their normal, in any order, are evenly spaced and none lies twice."""
    heights_mm = np.sort(heights_mm)
    return not _irregular_steps(heights_mm) and bool(np.all(np.diff(heights_mm) >= SAME_POSITION_MM))


def _irregular_steps(heights_mm: NDArray[np.float64]) -> list[Reason]:
    """Why the sorted positions along the normal are not evenly spaced; duplicates are told apart by the caller.

    A slice that is missing at either end leaves no trace here.
    """
    heights_mm = heights_mm[np.diff(heights_mm, prepend=-np.inf) >= SAME_POSITION_MM]
    if len(heights_mm) < 2:
        return []
    even, step_mm = np.linspace(heights_mm[0], heights_mm[-1], len(heights_mm), retstep=True)
    if np.abs(heights_mm - even).max() <= SPACING_TOLERANCE * step_mm:
        return []
    gaps = np.diff(heights_mm)
    usual = float(np.median(gaps))
    multiples = np.maximum(np.rint(gaps / usual), 1)
    missing = int(multiples.sum()) - len(gaps)
    if missing and np.abs(gaps - multiples * usual).max() <= SPACING_TOLERANCE * usual:
        text = f"{missing} slices are missing between others {usual:.3f} mm apart"
        return [Reason(reason_codes.MISSING_SLICES, text)]
    text = f"distances between slices vary from {gaps.min():.3f} to {gaps.max():.3f} mm"
    return [Reason(reason_codes.UNEQUAL_SPACING, text)]


def _misaligned(positions: NDArray[np.float64], normal: NDArray[np.float64], max_drift_mm: float) -> list[Reason]:
    """Why the sorted positions do not lie on one straight line, be it along the normal or oblique to it."""
    offsets = positions - positions[0]
    heights = offsets @ normal
    sideways = offsets - heights[:, None] * normal
    slope = sideways[-1] / max(heights[-1], SAME_POSITION_MM)
    off_line = np.linalg.norm(sideways - heights[:, None] * slope, axis=1).max()
    if off_line > max_drift_mm:
        return [Reason(reason_codes.MISALIGNED_SLICES, f"slices are shifted sideways by up to {off_line:.1f} mm")]
    tilt = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if tilt > MAX_TILT_DEGREES:
        return [Reason(reason_codes.GANTRY_TILT, f"slices are sheared by {tilt:.1f} degrees, no gantry tilts so far")]
    return []
