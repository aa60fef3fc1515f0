"""Emboli put into a real contrast CT: texture, noise and neighbours are the patient's, only the clots are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from imaging.errors import InputError
from imaging.geometry import to_canonical
from imaging.phantom.centreline import find_centreline
from imaging.phantom.emboli import Embolus, insert_emboli
from imaging.phantom.grid import Grid
from imaging.volume import CtVolume, Hu, Labelmap, Mask

POINT_SPREAD_MM = 0.6  # SD of the blur between a clot's edge and the image
SURROUNDINGS_MM = 6.0  # the lumen whose HU a clot takes the place of lies within this distance
LEAST_CONTRAST_HU = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class CtWithEmboli:
    """The CT with clots in it, and one value per embolus (uint16 zyx) on its grid."""

    volume: CtVolume
    embolus_labelmap: Labelmap


def insert_into_ct(
    volume: CtVolume, artery: Mask, *, emboli: int, seed: int, min_embolus_ml: float = 0.0
) -> CtWithEmboli:
    """Emboli of the phantoms' kinds along a given artery. A clot lowers the HU by what the lumen around it has more
    than clot, so that the noise of the scan stays in it.

    Args:
        artery: bool (z, y, x) on the volume's grid: the lumen of the pulmonary arteries.
        emboli: how many.
        min_embolus_ml: no embolus is smaller than this (ml).

    Raises:
        InputError: no room for so many or so large ones, or an artery without contrast.
    """
    canonical, order = to_canonical(volume)
    lumen = np.ascontiguousarray(to_canonical(CtVolume(artery.astype(np.int16), volume.affine_lps))[0].hu > 0)
    grid = Grid(canonical.shape_zyx, canonical.spacing_zyx_mm, (0.0, 0.0, 0.0))
    clots, labelmap = insert_emboli(
        np.random.default_rng(seed),
        emboli,
        grid,
        lumen.astype(np.uint8) * np.uint8(255),
        lumen,
        find_centreline(lumen, grid),
        min_embolus_ml,
        all_must_fit=True,
    )
    hu = canonical.hu.copy()
    for clot in clots:
        _darken(hu, canonical.hu, lumen, labelmap, clot, grid)
    return CtWithEmboli(
        CtVolume(np.ascontiguousarray(order.undo(hu)), volume.affine_lps),
        np.ascontiguousarray(order.undo(labelmap)),
    )


def _darken(hu: Hu, before: Hu, lumen: Mask, labelmap: Labelmap, clot: Embolus, grid: Grid) -> None:
    """Changes `hu` where the clot is; `before` is the CT without any."""
    margin = [int(np.ceil(SURROUNDINGS_MM / step)) for step in grid.spacing_mm]
    wide = tuple(slice(max(0, box.start - m), box.stop + m) for box, m in zip(clot.box, margin, strict=True))
    inside = tuple(slice(box.start - w.start, box.stop - w.start) for box, w in zip(clot.box, wide, strict=True))
    share = np.zeros(lumen[wide].shape, np.float32)
    share[inside] = clot.occupancy / np.float32(255)
    share = ndimage.gaussian_filter(share, [POINT_SPREAD_MM / step for step in grid.spacing_mm])
    # Its wall shares voxels with what lies around.
    blood = ndimage.binary_erosion(lumen[wide]) & (labelmap[wide] == 0)
    if not blood.any():
        blood = lumen[wide]
    contrast_hu = float(np.median(before[wide][blood])) - clot.hu
    if contrast_hu < LEAST_CONTRAST_HU:
        raise InputError(
            f"the artery is only {contrast_hu:.0f} HU brighter than clot",
            code="insertion.no_contrast",
            remedy="take a scan with contrast in the pulmonary arteries, and check the artery's mask",
        )
    hu[wide] = np.rint(hu[wide] - share * np.float32(contrast_hu)).astype(np.int16)
