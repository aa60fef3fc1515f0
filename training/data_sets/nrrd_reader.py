"""An image or label map from NRRD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from imaging.errors import InputError
from imaging.volume import CtVolume
from services.dicom.pixel_reader import to_hu


def read_nrrd(path: Path, *, grid_of: CtVolume | None = None) -> CtVolume:
    """HU or labels of a three-dimensional NRRD, axes (z, y, x), in the place its header says.

    Args:
        grid_of: where the header says nothing of a place (origin 0 and no directions) and the voxels are as many,
            the file lies on this volume's grid, index by index.

    Raises:
        InputError: not readable as NRRD; not three-dimensional; sheared.
    """
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path.name} cannot be read: {error}", code="input.unreadable") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path.name} has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values per voxel",
            code="input.not_3d",
            remedy="one number per voxel and three axes are needed",
        )
    values = to_hu(SimpleITK.GetArrayViewFromImage(image), 1.0, 0.0, None)
    directions = np.array(image.GetDirection()).reshape(3, 3)  # columns: the steps of x, y and z
    origin = np.array(image.GetOrigin())
    says_nothing = not origin.any() and np.array_equal(directions, np.eye(3))
    if grid_of is not None and says_nothing and values.shape == grid_of.shape_zyx:
        return CtVolume(values, grid_of.affine_lps)
    affine = np.eye(4)
    affine[:3, :3] = (directions * image.GetSpacing())[:, ::-1]
    affine[:3, 3] = origin
    return CtVolume(values, affine)
