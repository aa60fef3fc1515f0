"""Slices sheared by a tilted gantry, and the orthogonal grid they are read onto.

Every slice moves within its own plane and by its own fraction of a pixel: no slice is mixed with its neighbours, and
labels go back onto the very slices they were found on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from imaging.volume import Affine, Hu

AIR_HU = -1024
# A shear that moves no slice further than this along an axis is the rounding of written decimals.
_SAME_PIXEL = 0.05


def shear_degrees(affine_lps: Affine) -> float:
    """Angle between the step from slice to slice and the normal of the slices, to a thousandth of a degree."""
    step = affine_lps[:3, 0]
    normal = np.cross(affine_lps[:3, 1], affine_lps[:3, 2])
    along = abs(float(step @ normal))
    return round(float(np.degrees(np.arctan2(np.linalg.norm(np.cross(step, normal)), along))), 3)


@dataclass(frozen=True, slots=True, eq=False)
class ShearedStack:
    """Where the slices of a sheared stack lie on an orthogonal grid that holds them all.

    Attributes:
        shape_zyx: slices, rows and columns as acquired.
        offsets_px: float64 (slices, 2): row and column of the grid at which a slice's first voxel lies, 0 or more.
    """

    shape_zyx: tuple[int, int, int]
    offsets_px: NDArray[np.float64]

    @classmethod
    def of(cls, affine_lps: Affine, shape_zyx: tuple[int, int, int]) -> tuple[Self, Affine]:
        """The stack, and the affine (z, y, x) -> LPS of its orthogonal grid, whose slices lie in the acquired planes.

        Args:
            affine_lps: of the slices as acquired; rows and columns are orthogonal, the step between slices is not.
        """
        in_plane = affine_lps[:3, 1:3]
        lengths = np.linalg.norm(in_plane, axis=0)
        drift_px = affine_lps[:3, 0] @ in_plane / lengths**2  # (2,): rows and columns from slice to slice
        offsets_px = np.arange(shape_zyx[0])[:, None] * drift_px
        offsets_px[:, np.ptp(offsets_px, axis=0) < _SAME_PIXEL] = 0.0
        start_px = offsets_px.min(axis=0)
        affine = affine_lps.copy()
        affine[:3, 0] -= in_plane @ drift_px
        affine[:3, 3] += in_plane @ start_px
        return cls(shape_zyx, offsets_px - start_px), affine

    @property
    def grid_shape_zyx(self) -> tuple[int, int, int]:
        slices, rows, columns = self.shape_zyx
        more_rows, more_columns = np.ceil(self.offsets_px.max(axis=0)).astype(int)
        return slices, rows + int(more_rows), columns + int(more_columns)

    def straightened(self, hu: Hu) -> Hu:
        """HU of the slices as acquired -> HU on the orthogonal grid, linearly within each slice; air outside them."""
        grid = np.full(self.grid_shape_zyx, AIR_HU, dtype=np.int16)
        _, rows, columns = self.shape_zyx
        framed = np.full((rows + 2, columns + 2), AIR_HU, dtype=np.float32)
        for plane, acquired, offset_px in zip(grid, hu, self.offsets_px, strict=True):
            row, column = offset_px.astype(int)
            down, right = (offset_px - (row, column)).astype(np.float32)
            framed[1:-1, 1:-1] = acquired
            moved = framed[1:] * (1 - down) + framed[:-1] * down
            moved = moved[:, 1:] * (1 - right) + moved[:, :-1] * right
            place = plane[row : row + rows + 1, column : column + columns + 1]
            place[:] = np.rint(moved[: place.shape[0], : place.shape[1]])
        return grid

    def on_slices(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels on the orthogonal grid -> labels on the slices as acquired, from the nearest voxel of the plane."""
        _, rows, columns = self.shape_zyx
        starts = np.rint(self.offsets_px).astype(int)
        return np.stack(
            [
                plane[row : row + rows, column : column + columns]
                for plane, (row, column) in zip(labels, starts, strict=True)
            ]
        )

    def onto_grid(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels on the slices as acquired -> on the orthogonal grid: what `on_slices` takes back unchanged."""
        grid = np.zeros(self.grid_shape_zyx, dtype=labels.dtype)
        _, rows, columns = self.shape_zyx
        starts = np.rint(self.offsets_px).astype(int)
        for plane, acquired, (row, column) in zip(grid, labels, starts, strict=True):
            plane[row : row + rows, column : column + columns] = acquired
        return grid
