"""The shape that the lungs give the chest: the convex outline around them at each height."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.grid import Field3, Grid, Points

DIRECTIONS = 40
POSTERIOR, ANTERIOR = DIRECTIONS // 4, 3 * DIRECTIONS // 4


@dataclass(frozen=True, slots=True, eq=False)
class Cage:
    """`support` (direction, z of `grid`): how far the lungs reach in each direction of the axial plane, mm.

    The first direction is the patient's left, the others follow toward posterior.
    """

    grid: Grid
    support: Field3

    def widened(self, window_mm: float, smooth_mm: float) -> Cage:
        """The widest within `window_mm` along z, smoothed: an outline that bridges the apices."""
        step = self.grid.spacing_mm[0]
        support = self.support
        if window_mm > step:
            support = ndimage.maximum_filter1d(support, int(window_mm / step), axis=1, mode="nearest")
        return Cage(self.grid, ndimage.gaussian_filter1d(support, smooth_mm / step, axis=1, mode="nearest"))

    def outside_mm(self) -> Field3:
        """Distance outside the outline at each voxel of the grid; negative inside."""
        sine, cosine = _directions()
        _, y, x = self.grid.open_mesh()
        distance = np.full(self.grid.shape, -np.inf, np.float32)
        for k in range(DIRECTIONS):
            np.maximum(distance, (sine[k] * y + cosine[k] * x) - self.support[k][:, None, None], out=distance)
        return distance

    def reach_mm(self, direction: int, z_mm: NDArray[np.float64]) -> Points:
        """Support in one direction at the given heights, mm."""
        return np.asarray(np.interp(z_mm, self.grid.axis_mm(0), self.support[direction]))

    def points(
        self, side: int, from_back_rad: NDArray[np.float64], z_mm: NDArray[np.float64], outside_mm: float
    ) -> Points:
        """Points (n, 3) zyx mm outside the outline; angles run from straight back (0) round `side` to the front (pi).

        `side`: 1 the patient's left, -1 the right.
        """
        sine, cosine = (v.astype(np.float64) for v in _directions())
        reach = np.stack([self.reach_mm(k, z_mm) for k in range(DIRECTIONS)], axis=1)
        y0 = (reach[:, POSTERIOR] - reach[:, ANTERIOR]) / 2
        x0 = (reach[:, 0] - reach[:, DIRECTIONS // 2]) / 2
        reach = reach - y0[:, None] * sine - x0[:, None] * cosine + outside_mm
        dy, dx = np.cos(from_back_rad), side * np.sin(from_back_rad)
        facing = dy[:, None] * sine + dx[:, None] * cosine
        radius = np.where(facing > 0.2, np.maximum(reach, 5.0) / np.maximum(facing, 0.2), np.inf).min(axis=1)
        return np.stack([z_mm, y0 + radius * dy, x0 + radius * dx], axis=1)


def cage_of(lung: NDArray[np.bool_], grid: Grid) -> Cage:
    """The outline of a lung mask on `grid`; level above and below it."""
    sine, cosine = _directions()
    support = np.full((DIRECTIONS, grid.shape[0]), np.nan, np.float32)
    y_mm, x_mm = grid.axis_mm(1), grid.axis_mm(2)
    for k, plane in enumerate(lung):
        y, x = np.nonzero(plane)
        if y.size:
            support[:, k] = (sine[:, None] * y_mm[y] + cosine[:, None] * x_mm[x]).max(axis=1)
    known = np.flatnonzero(~np.isnan(support[0]))
    for row in support:
        row[:] = np.interp(np.arange(len(row)), known, row[known])
    # The chest does not narrow where only the slivers behind the diaphragm are left of the lungs.
    return Cage(grid, np.asarray(np.maximum.accumulate(support[:, ::-1], axis=1)[:, ::-1]))


def _directions() -> tuple[Field3, Field3]:
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)
