"""The connected pieces of a mask: 26 neighbours, looked for only around what is set."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray

from imaging.geometry import Box
from imaging.volume import Mask


def components(mask: Mask) -> NDArray[np.uint32]:
    """The number of each voxel's piece from 1 on, 0 outside."""
    labelled = cc3d.connected_components(mask, connectivity=26, out_dtype=np.uint32, binary_image=True)
    return np.asarray(labelled, dtype=np.uint32)


def drop_small_pieces(mask: Mask, smallest: int) -> None:
    """Unset, in place, the pieces of fewer than `smallest` voxels."""
    around = Box.around(mask)
    if around is None:
        return
    inside = mask[around.slices]
    of_voxels = components(inside)[inside]
    inside[inside] = (np.bincount(of_voxels) >= smallest)[of_voxels]
