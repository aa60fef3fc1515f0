"""How contrast medium fills the vessels: how bright each is, how evenly, and what parts it from its neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.anatomy import Organs
from imaging.phantom.grid import Field, Field3, Grid, smooth_noise
from imaging.phantom.painting import Occupancy, blend, occupied_box
from imaging.volume import Mask

FILLED = 115  # of 255: a voxel belongs to a vessel from a little under half


@dataclass(frozen=True, slots=True)
class Opacification:
    """HU of the blood at the time of the scan, by where it is."""

    artery: float
    vein: float
    aorta: float
    cava: float
    muscle: float


def draw_opacification(rng: np.random.Generator) -> Opacification:
    """Contrast timing and dose vary: from a poorly filled to a very bright artery, the left heart earlier or later."""
    artery = float(np.clip(rng.normal(350, 85), 200, 560))
    later = rng.uniform(0.4, 1.15) if rng.random() < 0.85 else rng.uniform(0.13, 0.4)
    return Opacification(
        artery=artery,
        vein=artery * float(np.clip(later + rng.uniform(0.0, 0.15), 0.25, 1.15)),
        aorta=artery * later,
        cava=artery * rng.uniform(1.1, 2.8),
        muscle=rng.uniform(65, 115),
    )


def wall_vessels(hu: NDArray[np.float32], grid: Grid, organs: Organs, lung: Mask) -> None:
    """A millimetre of wall and fat planes around the vessels outside the lung, so that neighbours do not merge."""
    for share in (organs.vein, organs.artery):
        box = occupied_box((share > FILLED) & ~lung)
        if box is None:
            continue
        wide = ndimage.grey_dilation(share[box], size=[1 + 2 * max(1, round(1.2 / s)) for s in grid.spacing_mm])
        wide[lung[box]] = 0
        blend(hu[box], wide, 35.0)


def mixing(rng: np.random.Generator, grid: Grid, interruption: float, fall: tuple[float, float]) -> Field:
    """Factors near 1 for the blood's HU: contrast mixes unevenly, and with the chance `interruption` some blood
    lacks a share of it, drawn from the range `fall`.

    Nothing here has an edge: a fall takes centimetres, which is how a reader tells it from a clot.
    """
    coarse = Grid(
        tuple(int(n * s / 8) + 2 for n, s in zip(grid.shape, grid.spacing_mm, strict=True)),  # type: ignore[arg-type]
        (8.0, 8.0, 8.0),
        grid.origin_mm,
    )
    factor = 1 + rng.uniform(0.01, 0.06) * smooth_noise(rng, coarse, 20.0)
    if rng.random() < interruption:
        where = smooth_noise(rng, coarse, 70.0)
        factor = factor * (1 - rng.uniform(*fall) / (1 + np.exp(-3 * (where - 0.8))))
    return Field(factor.astype(np.float32), coarse)


def fill_with_blood(hu: NDArray[np.float32], share: Occupancy, value: float, factors: Iterable[Field3]) -> None:
    """Fill a vessel slice by slice; `factors` holds one (y, x) array per slice."""
    for k, factor in enumerate(factors):
        blend(hu[k : k + 1], share[k : k + 1], (factor * np.float32(value))[None])
