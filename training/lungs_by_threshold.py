"""Both lungs by thresholds, for scans whose lungs nobody has marked: good enough for a box around them.

Lung is what is lighter than -400 HU and has body in front and behind, so that it may be cut off at the side by a narrow
field of view while air around the patient and in the table stays out. Body is the largest piece denser than -200 HU.
The smaller of two lungs is known by at least a quarter of the larger one's volume, which gas in stomach or bowel rarely
has; slices that hold only the trachea by their little area. Airways count as lung; vessels and consolidation do not.
"""

from __future__ import annotations

from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from imaging.errors import InputError

LUNG_BELOW_HU = -400
BODY_ABOVE_HU = -200
SMALLEST_SHARE = 0.25
SMALLEST_AREA_MM2 = 1000
SMALLEST_VOLUME_MM3 = 200_000


def find_lungs(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Mask of both lungs in HU on the 1 mm canonical grid, whole field of view; axes (z, y, x).

    Raises:
        InputError: no air-filled space of 200 ml inside the body.
    """
    pieces, sizes = _pieces(hu > BODY_ABOVE_HU)
    body = pieces == sizes.argmax() if sizes.any() else np.zeros(hu.shape, dtype=bool)
    in_front = np.maximum.accumulate(body, axis=1)
    behind = np.maximum.accumulate(body[:, ::-1], axis=1)[:, ::-1]
    spaces, sizes = _pieces((hu < LUNG_BELOW_HU) & in_front & behind)
    if sizes.max() < SMALLEST_VOLUME_MM3:
        raise InputError(
            f"no lung was found: the largest air-filled space inside the body has {sizes.max() / 1000:.0f} ml",
            code="training.no_lung",
            remedy="give a lung mask for this scan",
        )
    lung: NDArray[np.bool_] = (sizes >= SMALLEST_SHARE * sizes.max())[spaces]
    lung[lung.sum(axis=(1, 2)) < SMALLEST_AREA_MM2] = False
    return lung


def _pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Connected pieces (by faces) numbered from 1, and the voxels of each number, none for 0."""
    pieces = cc3d.connected_components(mask, connectivity=6, out_dtype=np.uint32)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces, sizes
