"""A CT volume: Hounsfield units and where they lie in the patient, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.errors import InputError

Affine = NDArray[np.float64]
Hu = NDArray[np.int16]
Mask = NDArray[np.bool_]
Labelmap = NDArray[np.uint16]
Probability = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class CtVolume:
    """HU values on a regular grid.

    Attributes:
        hu: int16, axes (z, y, x): slice, row, column. Read-only.
        affine_lps: float64 4x4. Maps a voxel centre's index (z, y, x, 1) to patient coordinates (L, P, S, 1) in mm,
            LPS as in DICOM (PS3.3 C.7.6.2.1.1). Column 0 is the step from slice to slice, column 1 from row to row,
            column 2 from column to column, column 3 the centre of voxel (0, 0, 0).

    The three steps are orthogonal; a sheared (gantry-tilted) stack is resampled before it becomes a CtVolume.
    """

    hu: Hu
    affine_lps: Affine

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16:
            raise InputError(f"HU array must be int16 with 3 axes, got {self.hu.dtype} with {self.hu.ndim}")
        affine = np.asarray(self.affine_lps, dtype=np.float64)
        if affine.shape != (4, 4) or not np.all(np.isfinite(affine)) or not np.allclose(affine[3], (0, 0, 0, 1)):
            raise InputError(f"affine must be a finite homogeneous 4x4 matrix, got {affine!r}", code="geometry.affine")
        steps = affine[:3, :3]
        lengths = np.linalg.norm(steps, axis=0)
        if np.any(lengths < 1e-6):
            raise InputError(f"voxel spacing must be positive, got {lengths} mm", code="geometry.affine")
        cosines = steps / lengths
        if not np.allclose(cosines.T @ cosines, np.eye(3), atol=2e-3):
            raise InputError("axes are not orthogonal", code="geometry.sheared", remedy="resample the stack first")
        hu = self.hu.view()
        hu.flags.writeable = False
        affine.flags.writeable = False
        object.__setattr__(self, "hu", hu)
        object.__setattr__(self, "affine_lps", affine)

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (slice, row, column) axes, mm."""
        z, y, x = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing_zyx_mm))

    @property
    def direction_cosines(self) -> Affine:
        """3x3; column k is the unit LPS vector along index axis k of (z, y, x)."""
        cosines: Affine = self.affine_lps[:3, :3] / np.asarray(self.spacing_zyx_mm)
        return cosines

    def point_lps_mm(self, index_zyx: Any) -> NDArray[np.float64]:
        """Patient coordinates of (fractional) voxel indices; shape (..., 3) in, (..., 3) out, mm."""
        index = np.asarray(index_zyx, dtype=np.float64)
        return index @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]

    def index_zyx(self, point_lps_mm: Any) -> NDArray[np.float64]:
        """Fractional voxel indices of patient points; shape (..., 3) in, (..., 3) out."""
        point = np.asarray(point_lps_mm, dtype=np.float64) - self.affine_lps[:3, 3]
        return point @ np.linalg.inv(self.affine_lps[:3, :3]).T
