"""Where emboli lodge and what they look like: casts along the artery, smaller than it or plugging it.

Sizes and shares follow expert masks of real emboli: clot to artery radius .45-.89 (median .63), three to four times
longer than wide, .05-20 ml, central or lobar in about half of the cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.errors import InputError
from imaging.phantom.centreline import Centreline
from imaging.phantom.grid import Grid, Points
from imaging.phantom.painting import Box, Occupancy, paint_tube
from imaging.volume import Labelmap, Mask

LEVEL_RADII_MM = ((6.0, 11.0), (4.0, 6.0), (2.0, 4.0), (1.3, 2.0))  # central, lobar, segmental, subsegmental
LEVEL_SHARES = (0.25, 0.27, 0.36, 0.12)
SMALLEST_EMBOLUS_ML = 0.03
TRIES = 60


@dataclass(frozen=True, slots=True, eq=False)
class Embolus:
    """A clot: how much of each voxel of `box` it fills (uint8, 0..255), and its HU."""

    box: Box
    occupancy: Occupancy
    hu: float


def insert_emboli(
    rng: np.random.Generator,
    count: int,
    grid: Grid,
    artery: Occupancy,
    artery_mask: Mask,
    centreline: Centreline,
    smallest_ml: float,
    *,
    all_must_fit: bool,
) -> tuple[list[Embolus], Labelmap]:
    """Place `count` emboli, or as many as there is room for; the label map (uint16 zyx) numbers them from 1.

    Raises:
        InputError: `all_must_fit`, and the arteries in the grid have no room for so many, or for one so large.
    """
    labelmap = np.zeros(grid.shape, np.uint16)
    emboli: list[Embolus] = []
    for label in range(1, count + 1):
        for attempt in range(TRIES):
            embolus = _embolus(rng, grid, artery, centreline, smallest_ml, grow=1 + attempt / 12)
            if embolus is None:
                continue
            there = labelmap[embolus.box]
            fills = (embolus.occupancy > 127) & artery_mask[embolus.box]
            # A margin keeps two emboli from touching, so that each stays one lesion.
            if (there[ndimage.binary_dilation(fills, iterations=2)] != 0).any():
                continue
            if fills.sum() * grid.voxel_ml >= max(smallest_ml, SMALLEST_EMBOLUS_ML):
                there[fills] = label
                emboli.append(embolus)
                break
        else:
            if not all_must_fit:
                break
            raise InputError(
                f"no room for embolus {label} of {count} of at least {smallest_ml} ml",
                code="phantom.no_room",
                remedy="ask for fewer or smaller emboli, or a larger volume",
            )
    return emboli, labelmap


def _embolus(
    rng: np.random.Generator, grid: Grid, artery: Occupancy, centreline: Centreline, smallest_ml: float, grow: float
) -> Embolus | None:
    shares = np.asarray(LEVEL_SHARES) * (1.0 if smallest_ml < 0.3 else np.array([4, 3, 0.5, 0]))
    low, high = LEVEL_RADII_MM[int(rng.choice(4, p=shares / shares.sum()))]
    seeds = np.flatnonzero((centreline.radii_mm >= low) & (centreline.radii_mm < high))
    if seeds.size == 0:
        return None
    tip = int(rng.choice(seeds))
    radius = float(centreline.radii_mm[tip])
    occlusive = rng.random() < 0.25
    ratio = rng.uniform(1.1, 1.4) if occlusive else rng.uniform(0.5, 0.92)
    wanted_ml = max(float(np.exp(rng.normal(0.0, 1.2))), 1.3 * smallest_ml)
    area = np.pi * (min(ratio, 1.0) * radius) ** 2
    length = float(np.clip(wanted_ml * 1000 / area * grow, 3.0 * radius, min(24.0 * radius, 90.0)))
    paths = [_piece(centreline, centreline.upstream(tip), length)]
    if rng.random() < (0.35 if radius > 3 else 0.15):
        paths += _across_the_fork(rng, centreline, paths[0], length)
    paths = [path for path in paths if len(path) >= 3]
    if not paths:
        return None
    return _cast(rng, grid, artery, centreline, paths, ratio, occlusive)


def _piece(centreline: Centreline, path: list[int], length_mm: float) -> list[int]:
    steps = np.linalg.norm(np.diff(centreline.points_mm[path], axis=0), axis=1)
    return path[: int(np.searchsorted(np.cumsum(steps), length_mm)) + 1]


def _across_the_fork(
    rng: np.random.Generator, centreline: Centreline, path: list[int], length_mm: float
) -> list[list[int]]:
    """A second leg in another branch that leaves the clot's path: the saddle over a bifurcation."""
    inner = set(path[2:-1])
    legs = [branch for branch in centreline.branches if int(branch[0]) in inner]
    if not legs:
        return []
    widest = sorted(legs, key=lambda branch: -float(centreline.radii_mm[branch[:8]].mean()))[:2]
    leg = widest[int(rng.integers(len(widest)))]
    return [_piece(centreline, [int(node) for node in leg], length_mm * rng.uniform(0.3, 0.7))]


def _cast(
    rng: np.random.Generator,
    grid: Grid,
    artery: Occupancy,
    centreline: Centreline,
    paths: list[list[int]],
    ratio: float,
    occlusive: bool,
) -> Embolus | None:
    nodes = np.concatenate(paths)
    reach = float(centreline.radii_mm[nodes].max()) * 1.5 + 2
    points = centreline.points_mm[nodes]
    box = grid.box_around(points.min(axis=0) - reach, points.max(axis=0) + reach)
    if box is None:
        return None
    crop = grid.crop(box)
    occupancy = np.zeros(crop.shape, np.uint8)
    aside = rng.normal(size=3)
    aside /= np.linalg.norm(aside)
    eccentricity = 0.0 if occlusive else rng.uniform(0.0, 0.9)
    for path in paths:
        curve, calibre = _evened(centreline.points_mm[path], centreline.radii_mm[path])
        lumps = 1 + 0.18 * ndimage.gaussian_filter1d(rng.standard_normal(len(curve) + 8), 1.5)[4:-4] * 2
        # A lumen wider than where the clot came from cannot be filled by it: its calibre follows a typical one.
        typical = np.minimum(calibre, 1.25 * np.median(calibre))
        radii = np.clip(typical * ratio * lumps, 0.6, None)
        shift = np.clip(calibre - radii, 0, None) * eccentricity
        paint_tube(occupancy, crop, curve + shift[:, None] * aside, radii)
    # The lumen ends the clot, wall to wall where it plugs the artery.
    np.minimum(occupancy, artery[box], out=occupancy)
    return Embolus(box, occupancy, float(np.clip(rng.normal(56, 16), 28, 95)))


def _evened(points: Points, radii: NDArray[np.float64]) -> tuple[Points, NDArray[np.float64]]:
    """Every third point of a smoothed path: voxel steps taken out."""
    sigma = 1.5
    smooth = ndimage.gaussian_filter1d(points, sigma, axis=0, mode="nearest")
    calibre = ndimage.gaussian_filter1d(radii, sigma, mode="nearest")
    keep = np.unique(np.r_[np.arange(0, len(points), 3), len(points) - 1])
    return smooth[keep], calibre[keep]
