"""The organs that everything else is arranged around: two lungs, pulmonary arteries and veins, real or grown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.errors import InputError
from imaging.phantom.grid import Field, Field3, Grid
from imaging.phantom.lungs import grow_lungs
from imaging.phantom.painting import Occupancy, occupied_box, paint_tube
from imaging.phantom.vessel_tree import grow_arteries, grow_veins

LUNG_LABELS = (1, 4, 5)
ARTERY_LABELS = (2, 4)
VEIN_LABELS = (3, 5)


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """Lungs and vessels of a patient as a label map.

    Attributes:
        labelmap: uint8 zyx; 0 background, 1 lung, 2 artery outside the lung, 3 vein outside it, 4 artery inside,
            5 vein inside. Arteries are the full lumen, clot included.
        affine_lps: 4x4, (z, y, x, 1) index -> LPS mm; any order and direction of the axes, no oblique ones.
    """

    labelmap: NDArray[np.uint8]
    affine_lps: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.labelmap.ndim != 3 or self.labelmap.dtype != np.uint8:
            raise InputError(f"anatomy must be uint8 with 3 axes, got {self.labelmap.dtype}, {self.labelmap.ndim} axes")
        if not np.isin(self.labelmap, ARTERY_LABELS).any() or not (self.labelmap == 1).any():
            raise InputError("anatomy needs lung (1) and artery (2, 4) voxels", remedy="check its label values")


@dataclass(frozen=True, slots=True, eq=False)
class Organs:
    """Lungs (a field, positive inside), and how much of each voxel of the grid is artery and vein (uint8, 0..255)."""

    lungs: Field
    artery: Occupancy
    vein: Occupancy


def grown_organs(rng: np.random.Generator, grid: Grid) -> Organs:
    """Organs of nobody: lungs from a formula, trees grown into them."""
    lungs = grow_lungs(rng)
    arteries = grow_arteries(rng, lungs)
    veins = grow_veins(rng, lungs, arteries)
    artery, vein = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    for occupancy, tubes in ((artery, arteries), (vein, veins)):
        for tube in tubes:
            paint_tube(occupancy, grid, tube.points_mm, tube.radii_mm)
    np.minimum(vein, 255 - artery, out=vein)
    return Organs(lungs, artery, vein)


def organs_of(anatomy: Anatomy, rng: np.random.Generator, grid: Grid) -> Organs:
    """A patient's organs on `grid`, stretched by some per cent along each axis."""
    labels, spacing = _canonical(anatomy)
    stretched = spacing * rng.uniform(0.93, 1.07, 3)
    lung = np.isin(labels, LUNG_LABELS)
    box = occupied_box(lung)
    if box is None:
        raise InputError("anatomy has no lung")
    centre = np.array([(b.start + b.stop - 1) / 2 for b in box]) * stretched
    own_grid = _grid(labels.shape, stretched, -centre)
    lungs = _halved(lung, own_grid)
    artery = _vessel(np.isin(labels, ARTERY_LABELS), own_grid, grid)
    vein = _vessel(np.isin(labels, VEIN_LABELS), own_grid, grid)
    np.minimum(vein, 255 - artery, out=vein)
    return Organs(lungs, artery, vein)


def _grid(shape: tuple[int, ...], spacing: NDArray[np.float64], origin: NDArray[np.float64]) -> Grid:
    z, y, x = shape
    sz, sy, sx = (float(v) for v in spacing)
    oz, oy, ox = (float(v) for v in origin)
    return Grid((z, y, x), (sz, sy, sx), (oz, oy, ox))


def _canonical(anatomy: Anatomy) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Axes turned and flipped to superior, posterior, left; a border of background all around."""
    steps = anatomy.affine_lps[:3, :3]
    order = [int(np.argmax(np.abs(steps[world]))) for world in (2, 1, 0)]
    if sorted(order) != [0, 1, 2]:
        raise InputError(f"anatomy has oblique axes: {steps.tolist()}", remedy="resample it along the patient's axes")
    labels = anatomy.labelmap.transpose(order)
    flips = tuple(a for a, world in enumerate((2, 1, 0)) if steps[world, order[a]] < 0)
    return np.pad(np.flip(labels, flips), 4), np.linalg.norm(steps, axis=0)[order]


def _halved(mask: NDArray[np.bool_], own_grid: Grid) -> Field:
    """The mask at half its resolution as a field in about mm, 0 at the surface, for distances up to 2 mm."""
    z, y, x = (n // 2 * 2 for n in mask.shape)
    pooled = mask[:z, :y, :x].reshape(z // 2, 2, y // 2, 2, x // 2, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    spacing = np.asarray(own_grid.spacing_mm)
    values = (ndimage.gaussian_filter(pooled, 0.6) - np.float32(0.5)) * np.float32(4)
    return Field(values, _grid(values.shape, 2 * spacing, np.asarray(own_grid.origin_mm) + spacing / 2))


def _vessel(mask: NDArray[np.bool_], own_grid: Grid, grid: Grid) -> Occupancy:
    occupancy = np.zeros(grid.shape, np.uint8)
    box = occupied_box(mask)
    if box is None:
        return occupancy
    box = tuple(slice(max(b.start - 3, 0), b.stop + 3) for b in box)  # type: ignore[assignment]
    smooth: Field3 = ndimage.gaussian_filter(mask[box].astype(np.float32), 0.5, truncate=3)
    origin = np.asarray(own_grid.origin_mm) + [b.start * s for b, s in zip(box, own_grid.spacing_mm, strict=True)]
    field = Field(smooth, _grid(smooth.shape, np.asarray(own_grid.spacing_mm), origin))
    for k, plane in enumerate(field.slices_on(grid)):
        occupancy[k] = np.clip((plane - np.float32(0.45)) * np.float32(1.8 * 255) + 127.5, 0, 255)
    return occupancy
