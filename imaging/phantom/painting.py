"""How tubes and ellipsoids become voxels: the share of each voxel that they fill, 0..255.

Soft edges (partial volume) matter: a branch of 2 mm is only two voxels wide, and its HU follow from them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imaging.phantom.grid import Grid, Points

Occupancy = NDArray[np.uint8]
Box = tuple[slice, slice, slice]


def paint_tube(occupancy: Occupancy, grid: Grid, points_mm: Points, radii_mm: NDArray[np.float64]) -> None:
    """Paint a polyline of round cones with rounded ends; keeps the larger value where tubes meet.

    Args:
        occupancy: uint8 zyx on `grid`, changed in place.
        points_mm: (n, 3) positions zyx, n >= 2.
        radii_mm: (n,) radius at each point.
    """
    for start, end, r0, r1 in zip(points_mm[:-1], points_mm[1:], radii_mm[:-1], radii_mm[1:], strict=True):
        _paint_cone(occupancy, grid, start, end, float(r0), float(r1))


def _paint_cone(occupancy: Occupancy, grid: Grid, start: Points, end: Points, r0: float, r1: float) -> None:
    reach = max(r0, r1) + grid.pitch_mm
    box = grid.box_around(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
    if box is None:
        return
    z, y, x = grid.open_mesh(box)
    dz, dy, dx = (np.float32(v) for v in end - start)
    z, y, x = z - np.float32(start[0]), y - np.float32(start[1]), x - np.float32(start[2])
    along = (z * dz + y * dy + x * dx) * np.float32(1.0 / max(float(dz * dz + dy * dy + dx * dx), 1e-9))
    np.clip(along, 0, 1, out=along)
    distance = np.sqrt((z - along * dz) ** 2 + (y - along * dy) ** 2 + (x - along * dx) ** 2)
    inside = (np.float32(r0) + along * np.float32(r1 - r0) - distance) * np.float32(255 / grid.pitch_mm) + 127.5
    np.clip(inside, 0, 255, out=inside)
    np.maximum(occupancy[box], inside.astype(np.uint8), out=occupancy[box])


def paint_ellipsoid(occupancy: Occupancy, grid: Grid, centre_mm: Points, semi_axes_mm: Points) -> None:
    """Paint an axis-parallel ellipsoid; keeps the larger value where it meets what is there."""
    centre, semi = np.asarray(centre_mm, dtype=np.float64), np.asarray(semi_axes_mm, dtype=np.float64)
    box = grid.box_around(centre - semi - grid.pitch_mm, centre + semi + grid.pitch_mm)
    if box is None:
        return
    z, y, x = ((c - np.float32(o)) / np.float32(s) for c, o, s in zip(grid.open_mesh(box), centre, semi, strict=True))
    depth = (1 - np.sqrt(z * z + y * y + x * x)) * np.float32(semi.min())
    inside = np.clip(depth * np.float32(255 / grid.pitch_mm) + 127.5, 0, 255).astype(np.uint8)
    np.maximum(occupancy[box], inside, out=occupancy[box])


def occupied_box(occupancy: NDArray[np.uint8] | NDArray[np.bool_]) -> Box | None:
    """Smallest box that holds all non-zero voxels; None where there are none."""
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(occupancy.any(axis=others))
        if hit.size == 0:
            return None
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return spans[0], spans[1], spans[2]


def blend(hu: NDArray[np.float32], occupancy: Occupancy, value: float | NDArray[np.float32]) -> None:
    """Move `hu` toward `value` by the share that `occupancy` fills; all of one shape, or `value` a number; in place."""
    for k, share in enumerate(occupancy):
        hit = np.nonzero(share != 0)  # on booleans it is several times faster
        if hit[0].size:
            wanted = value[k][hit] if isinstance(value, np.ndarray) else np.float32(value)
            here = hu[k][hit]
            hu[k][hit] = here + share[hit] * np.float32(1 / 255) * (wanted - here)


def fill_tube(
    hu: NDArray[np.float32],
    grid: Grid,
    points_mm: Points,
    radii_mm: NDArray[np.float64],
    value: float,
    spared: Occupancy,
) -> None:
    """Blend a tube (see `paint_tube`) of HU `value` into `hu`, but not where `spared` is full; in place."""
    reach = float(radii_mm.max()) + grid.pitch_mm
    box = grid.box_around(points_mm.min(axis=0) - reach, points_mm.max(axis=0) + reach)
    if box is not None:
        crop = grid.crop(box)
        share = np.zeros(crop.shape, np.uint8)
        paint_tube(share, crop, points_mm, radii_mm)
        blend(hu[box], np.minimum(share, 255 - spared[box]), value)


def fill_ellipsoid(
    hu: NDArray[np.float32], grid: Grid, centre_mm: Points, semi_axes_mm: Points, value: float, spared: Occupancy
) -> None:
    """Blend an ellipsoid of HU `value` into `hu`, but not where `spared` is full; in place."""
    reach = np.asarray(semi_axes_mm) + grid.pitch_mm
    box = grid.box_around(centre_mm - reach, centre_mm + reach)
    if box is not None:
        crop = grid.crop(box)
        share = np.zeros(crop.shape, np.uint8)
        paint_ellipsoid(share, crop, centre_mm, semi_axes_mm)
        blend(hu[box], np.minimum(share, 255 - spared[box]), value)
