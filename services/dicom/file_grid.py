"""The grid of a volume file: taken as it stands, straightened where a gantry was tilted, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.errors import NotAnalysable, Reason
from imaging.sheared_stack import ShearedStack, shear_degrees
from imaging.volume import Affine, CtVolume, Hu
from services.dicom import reason_codes
from services.dicom.source_image import refuse_too_many_voxels
from services.dicom.stack_geometry import MAX_TILT_DEGREES, MIN_SLICES

ORTHOGONAL_WITHIN = 2e-3  # cosines between axes


@dataclass(frozen=True, slots=True, eq=False)
class FileGrid:
    """Where a file's voxels lie.

    Attributes:
        affine_lps: of the orthogonal grid, (z, y, x) -> LPS mm.
        sheared: how the file's slices lie on that grid; None where they are the grid's slices.
        reasons: a warning where they are not.
    """

    affine_lps: Affine
    sheared: ShearedStack | None = None
    reasons: tuple[Reason, ...] = ()

    @classmethod
    def of(cls, affine_lps: Affine, shape_kji: tuple[int, int, int], *, exact: bool) -> FileGrid:
        """The grid of a file whose voxel (k, j, i) lies at `affine_lps @ (k, j, i, 1)`.

        Raises:
            NotAnalysable: the affine gives voxels no size; axes are sheared otherwise than by a tilted gantry, or at
                all where `exact`.
        """
        lengths = np.linalg.norm(affine_lps[:3, :3], axis=0)
        if not np.all(np.isfinite(affine_lps)) or lengths.min() < 1e-3:
            text = f"the affine {affine_lps.tolist()} gives voxels no size"
            raise NotAnalysable([Reason(reason_codes.NO_GEOMETRY, text)])
        cosines = affine_lps[:3, :3] / lengths
        skew = np.abs(cosines.T @ cosines - np.eye(3))
        if skew.max() <= ORTHOGONAL_WITHIN:
            return cls(affine_lps)
        shear = shear_degrees(affine_lps)
        if skew[1, 2] > ORTHOGONAL_WITHIN or shear > MAX_TILT_DEGREES:
            angle = np.degrees(np.arcsin(min(1.0, float(skew.max()))))
            text = f"the axes are sheared by {angle:.1f} degrees, otherwise than by a tilted gantry"
            raise NotAnalysable([Reason(reason_codes.SHEARED, text)])
        text = f"the slices are sheared by {shear:.1f} degrees"
        if exact:
            raise NotAnalysable([Reason(reason_codes.SHEARED, f"{text}: HU would have to be interpolated")])
        sheared, orthogonal = ShearedStack.of(affine_lps, shape_kji)
        refuse_too_many_voxels(sheared.grid_shape_zyx)
        warning = Reason(reason_codes.RESAMPLED, f"{text}: moved within their planes onto an orthogonal grid")
        return cls(orthogonal, sheared, (warning,))

    def volume(self, hu: Hu) -> CtVolume:
        """The file's HU on the orthogonal grid."""
        return CtVolume(hu if self.sheared is None else self.sheared.straightened(hu), self.affine_lps)

    def on_file(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels on the orthogonal grid -> on the file's own voxels (k, j, i)."""
        return labels if self.sheared is None else self.sheared.on_slices(labels)


def refuse_too_few_slices(shape_kji: tuple[int, int, int]) -> None:
    if min(shape_kji) < MIN_SLICES:
        extents = " x ".join(str(n) for n in shape_kji[::-1])
        text = f"the volume has {extents} voxels, at least {MIN_SLICES} slices are needed"
        raise NotAnalysable([Reason(reason_codes.TOO_FEW_SLICES, text)])
