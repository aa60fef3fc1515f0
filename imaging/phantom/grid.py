"""Where a phantom's voxels lie, and how a field known on another regular grid is read there.

All positions in this package are (z, y, x) in mm: z toward superior, y toward posterior, x toward the patient's left,
so that the axes are those of the canonical volume. The zero point is the centre of the lungs' bounding box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field3 = NDArray[np.float32]
Points = NDArray[np.float64]


def mm(z: float, y: float, x: float) -> Points:
    """A position or a step, (3,) zyx mm."""
    return np.array((z, y, x), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A regular grid; `origin_mm` is the (z, y, x) position of the centre of voxel (0, 0, 0)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @classmethod
    def centred(
        cls, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], centre_mm: tuple[float, float, float]
    ) -> Grid:
        origin = tuple(c - (n - 1) * s / 2 for c, n, s in zip(centre_mm, shape, spacing_mm, strict=True))
        return cls(shape, spacing_mm, (origin[0], origin[1], origin[2]))

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def pitch_mm(self) -> float:
        """Edge of the cube that has a voxel's volume."""
        return float(np.cbrt(np.prod(self.spacing_mm)))

    def affine_lps(self) -> NDArray[np.float64]:
        """4x4, (z, y, x, 1) index -> LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.diag(self.spacing_mm)[::-1]
        affine[:3, 3] = self.origin_mm[::-1]
        return affine

    def axis_mm(self, axis: int) -> NDArray[np.float32]:
        """Positions of the voxel centres along one axis, mm."""
        return (self.origin_mm[axis] + np.arange(self.shape[axis]) * self.spacing_mm[axis]).astype(np.float32)

    def open_mesh(self, box: tuple[slice, slice, slice] | None = None) -> tuple[Field3, Field3, Field3]:
        """Broadcastable z, y, x positions of the voxels in `box` (default: of all), mm."""
        z, y, x = (self.axis_mm(a)[box[a]] if box else self.axis_mm(a) for a in range(3))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def box_around(self, low_mm: Points, high_mm: Points) -> tuple[slice, slice, slice] | None:
        """The voxels between two corners, clipped to the grid; None where nothing is left."""
        parts = []
        for axis in range(3):
            first = int(np.ceil((low_mm[axis] - self.origin_mm[axis]) / self.spacing_mm[axis]))
            last = int(np.floor((high_mm[axis] - self.origin_mm[axis]) / self.spacing_mm[axis]))
            first, last = max(first, 0), min(last, self.shape[axis] - 1)
            if first > last:
                return None
            parts.append(slice(first, last + 1))
        return parts[0], parts[1], parts[2]

    def crop(self, box: tuple[slice, slice, slice]) -> Grid:
        """The part of the grid in `box`."""
        shape = tuple(b.stop - b.start for b in box)
        first = tuple(o + b.start * s for o, b, s in zip(self.origin_mm, box, self.spacing_mm, strict=True))
        return Grid((shape[0], shape[1], shape[2]), self.spacing_mm, (first[0], first[1], first[2]))

    def index(self, points_mm: Points) -> NDArray[np.intp]:
        """Nearest voxel of each point, clipped to the grid; (..., 3) in and out."""
        index = np.rint((np.asarray(points_mm) - self.origin_mm) / self.spacing_mm).astype(np.intp)
        return np.clip(index, 0, np.asarray(self.shape) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """Float values on a grid of their own, read elsewhere by trilinear interpolation (clamped at the border)."""

    values: Field3
    grid: Grid

    def at(self, points_mm: Points) -> Field3:
        index = (np.asarray(points_mm) - self.grid.origin_mm) / self.grid.spacing_mm
        return np.asarray(ndimage.map_coordinates(self.values, index.T, order=1, mode="nearest"))

    def slices_on(self, target: Grid) -> Iterator[Field3]:
        """The field on each slice of `target`, in order.

        Both grids have the same axes, so the interpolation is separable: two small matrix products per slice.
        """
        rows = _linear_weights(self.grid, target, 1)
        columns = _linear_weights(self.grid, target, 2).T.copy()
        position = (target.axis_mm(0) - self.grid.origin_mm[0]) / self.grid.spacing_mm[0]
        position = np.clip(position, 0, self.grid.shape[0] - 1)
        for z in position:
            low = min(int(z), self.grid.shape[0] - 2)
            part = np.float32(z - low)
            plane = (1 - part) * self.values[low] + part * self.values[low + 1]
            yield rows @ plane @ columns


def _linear_weights(source: Grid, target: Grid, axis: int) -> Field3:
    position = (target.axis_mm(axis) - source.origin_mm[axis]) / source.spacing_mm[axis]
    position = np.clip(position, 0, source.shape[axis] - 1)
    low = np.minimum(position.astype(np.intp), source.shape[axis] - 2)
    part = (position - low).astype(np.float32)
    weights = np.zeros((target.shape[axis], source.shape[axis]), np.float32)
    row = np.arange(target.shape[axis])
    weights[row, low] = 1 - part
    weights[row, low + 1] = part
    return weights


def smooth_noise(rng: np.random.Generator, grid: Grid, scale_mm: float) -> Field3:
    """Gaussian random field of mean 0 and SD 1 whose structures are about `scale_mm` wide."""
    knots = tuple(int(np.ceil(n * s / scale_mm)) + 3 for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
    values = rng.standard_normal(knots).astype(np.float32)
    knot_grid = Grid((knots[0], knots[1], knots[2]), (scale_mm,) * 3, grid.origin_mm)
    field = np.stack(list(Field(values, knot_grid).slices_on(grid)))
    # Trilinear interpolation alone leaves the knots visible as corners.
    field = ndimage.gaussian_filter(field, [0.35 * scale_mm / s for s in grid.spacing_mm], mode="nearest", truncate=2.5)
    return np.asarray(field / max(float(field.std()), 1e-6), dtype=np.float32)
