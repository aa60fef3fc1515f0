"""Where the opacified vessels of the lungs run, by density and place alone: no network, a fraction of a second.

It is no segmentation of the arteries: it tells where it is worth looking for emboli (veins are in it too).
"""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.volume import Mask

COARSE_STEP = 3  # voxels; lungs need no finer grid
LUNG_HU, OPACIFIED_HU = (-950, -500), 130  # what is thinner than lung, on average over a centimetre, is outside
SMALLEST_LUNG_ML = 100.0
HILUM_REACH_MM = 18.0  # a vessel this wide between lung on both sides still counts as in the lungs


def vessel_tree(hu: NDArray[np.int16], spacing_mm: float) -> Mask:
    """Voxels as dense as opacified blood inside the lungs or in the hila between them.

    Args:
        hu: (z, y, x), isotropic; the box around the lungs.
        spacing_mm: of all three axes.

    Returns:
        bool (z, y, x); empty where no lung is. Ribs and spine stay outside, for lung lies on one side of them only;
        where a mattress, as thin as lung, lies on the other, parts of them are in it.
    """
    return (hu > OPACIFIED_HU) & _around_lungs(hu, spacing_mm)


def _around_lungs(hu: NDArray[np.int16], spacing_mm: float) -> Mask:
    """The lungs, closed over everything up to `HILUM_REACH_MM` wide."""
    coarse_mm = COARSE_STEP * spacing_mm
    coarse = hu[::COARSE_STEP, ::COARSE_STEP, ::COARSE_STEP].astype(np.float32)
    mean_hu = ndimage.uniform_filter(coarse, 3)
    lung = ndimage.binary_opening((mean_hu > LUNG_HU[0]) & (mean_hu < LUNG_HU[1]))  # no film of skin beside air
    smallest = max(1, round(1000 * SMALLEST_LUNG_ML / coarse_mm**3))
    pieces = cc3d.dust(lung, threshold=smallest, connectivity=6).astype(bool)
    radius = HILUM_REACH_MM / coarse_mm
    padded = np.pad(pieces, int(np.ceil(radius)) + 1)
    near = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(near) > radius
    margin = int(np.ceil(radius)) + 1
    inner = closed[margin:-margin, margin:-margin, margin:-margin] | pieces
    fine = inner.repeat(COARSE_STEP, 0).repeat(COARSE_STEP, 1).repeat(COARSE_STEP, 2)
    return np.ascontiguousarray(fine[: hu.shape[0], : hu.shape[1], : hu.shape[2]])
