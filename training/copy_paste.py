"""Emboli copied from one artery into another of the same calibre: more clots than anybody outlined.

What is copied is the clot's shape and how much of each voxel it takes; where it is put, the artery keeps its own wall,
its own noise and, beside the clot, its own contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.cases import ARTERY, Block, TrainingCase
from training.crop_choice import points_of_each_embolus

Vector = NDArray[np.float64]

MARGIN_VOXELS = 8  # around a copied clot: its artery and some lumen
FEWEST_VOXELS = 8
LARGEST_SHARE = 0.7  # of the crop's longest edge: larger clots are not copied
CALIBRE_TOLERANCE = 1.3
KEPT_SHARE = 0.5  # of the clot must fit into the new lumen
PROFILE_SIGMA = 0.7  # the copied noise is smoothed away: the target has its own
LEAST_CONTRAST_HU = 60.0  # between lumen and clot for a profile to be read
DONORS, SITES = 4, 3  # tried before a crop is left as it is
WALL_VOXELS = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Clot:
    """An embolus cut out of its artery; arrays (z, y, x) of one shape, 1 mm voxels.

    Attributes:
        mask: its voxels.
        fill: 0 where there is lumen, 1 where there is clot, above 1 where it is darker than most of it.
        hu: of the clot where it fills a voxel.
        centre, axis: (3,) where its middle lies, and the direction it is longest in.
        artery_radius: of the largest sphere in its artery, voxels.
    """

    mask: NDArray[np.bool_]
    fill: NDArray[np.float32]
    hu: float
    centre: Vector
    axis: Vector
    artery_radius: float


class ClotSource:
    """The emboli of some cases that may be copied: those whose artery is known and that fit into a crop."""

    def __init__(self, cases: Sequence[TrainingCase], crop_zyx: Sequence[int]) -> None:
        self.cases = cases
        self.largest = LARGEST_SHARE * max(crop_zyx)
        self.emboli = [
            (number, points)
            for number, case in enumerate(cases)
            for points in points_of_each_embolus(case)
            if len(points) >= FEWEST_VOXELS
            and np.ptp(points, axis=0).max() < self.largest
            and case.anatomy[tuple(points[0])] == ARTERY
        ]

    def draw(self, rng: np.random.Generator) -> Clot:
        """Any of the emboli, each as likely as the next; not to be asked where there are none."""
        number, points = self.emboli[int(rng.integers(len(self.emboli)))]
        return cut_out(self.cases[number], points)


def cut_out(case: TrainingCase, points: NDArray[np.int16]) -> Clot:
    """The embolus that has the voxels `points` (n, 3)."""
    low = np.maximum(points.min(axis=0) - MARGIN_VOXELS, 0)
    high = np.minimum(points.max(axis=0) + MARGIN_VOXELS + 1, case.hu.shape)
    box = tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    embolus, artery, hu = case.embolus[box], case.anatomy[box] == ARTERY, case.hu[box].astype(np.float32)
    mask = np.asarray(embolus == case.embolus[tuple(points[0])])
    depth = ndimage.distance_transform_edt(artery)
    voxels = np.argwhere(mask)
    clot_hu = float(np.median(hu[mask]))
    return Clot(
        mask=mask,
        fill=_fill(hu, mask, artery & (embolus == 0) & (depth > 1), clot_hu),
        hu=clot_hu,
        centre=voxels.mean(axis=0),
        axis=_long_axis(voxels),
        artery_radius=float(depth[mask].max()),
    )


def _fill(
    hu: NDArray[np.float32], mask: NDArray[np.bool_], lumen: NDArray[np.bool_], clot_hu: float
) -> NDArray[np.float32]:
    """How much of each voxel is clot: by HU between the lumen beside it and itself, or by the mask where no lumen is
    left or nothing is opacified."""
    lumen_hu = float(np.median(hu[lumen])) if lumen.any() else clot_hu
    if lumen_hu - clot_hu < LEAST_CONTRAST_HU:
        return np.asarray(ndimage.gaussian_filter(mask.astype(np.float32), PROFILE_SIGMA))
    profile = np.clip((lumen_hu - hu) / (lumen_hu - clot_hu), 0, 1.5)
    profile[~ndimage.binary_dilation(mask)] = 0  # its rim shares voxels with the lumen
    inside = ndimage.gaussian_filter(mask.astype(np.float32), PROFILE_SIGMA)
    within = ndimage.gaussian_filter(profile * mask, PROFILE_SIGMA) / np.maximum(inside, 0.01)
    return np.asarray(np.where(mask, within, ndimage.gaussian_filter(profile, PROFILE_SIGMA)), dtype=np.float32)


def pasted(crop: Block, clots: ClotSource, rng: np.random.Generator) -> Block:
    """The crop with one more embolus in it, or as it is where no artery suits the emboli drawn."""
    artery = crop.anatomy == ARTERY
    if not clots.emboli or np.count_nonzero(artery) < FEWEST_VOXELS:
        return crop
    depth = ndimage.distance_transform_edt(artery)
    middle = (depth == ndimage.maximum_filter(depth, 3)) & artery & ~crop.embolus
    for _ in range(DONORS):
        clot = clots.draw(rng)
        calibre = depth / clot.artery_radius
        sites = np.argwhere(middle & (calibre < CALIBRE_TOLERANCE) & (calibre > 1 / CALIBRE_TOLERANCE))
        for site in sites[rng.permutation(len(sites))[:SITES]]:
            if (changed := _paste_at(crop, clot, site, artery, depth, rng)) is not None:
                return changed
    return crop


def _paste_at(
    crop: Block,
    clot: Clot,
    site: NDArray[np.intp],
    artery: NDArray[np.bool_],
    depth: NDArray[np.float64],
    rng: np.random.Generator,
) -> Block | None:
    reach = int(np.ceil(np.linalg.norm(clot.mask.shape) / 2))
    low, high = np.maximum(site - reach, 0), np.minimum(site + reach + 1, crop.hu.shape)
    box = tuple(slice(int(start), int(stop)) for start, stop in zip(low, high, strict=True))
    near = np.argwhere(artery[box]) + low
    near = near[np.linalg.norm(near - site, axis=1) <= 2.5 * clot.artery_radius + 2]
    to_clot = _turn_between(clot.axis, _long_axis(near), rng).T
    offset = clot.centre - to_clot @ (site - low)
    shape = tuple(int(n) for n in high - low)
    mask = ndimage.affine_transform(clot.mask.astype(np.float32), to_clot, offset, shape, order=1) > 0.5
    mask &= artery[box] & ~crop.embolus[box]
    lumen = artery[box] & ~crop.embolus[box] & ~mask & (depth[box] > 1)
    if np.count_nonzero(mask) < max(FEWEST_VOXELS, KEPT_SHARE * np.count_nonzero(clot.mask)) or not lumen.any():
        return None
    fill = ndimage.affine_transform(clot.fill, to_clot, offset, shape, order=1) * artery[box]
    hu, old = crop.hu.copy(), crop.hu[box].astype(np.float32)
    new = old + fill * np.clip(depth[box] / WALL_VOXELS, 0, 1) * (clot.hu - float(np.median(old[lumen])))
    at_wall = depth[box] < WALL_VOXELS  # what is wall already must not become darker than clot or than it was
    new[at_wall] = np.maximum(new, np.minimum(old, clot.hu))[at_wall]
    hu[box] = np.rint(new)
    embolus = crop.embolus.copy()
    embolus[box] |= mask
    return crop._replace(hu=hu, embolus=embolus)


def _long_axis(points: NDArray[np.intp]) -> Vector:
    """The unit direction in which points (n, 3) spread most."""
    spread = np.cov((points - points.mean(axis=0)).T) if len(points) > 1 else np.eye(3)
    return np.asarray(np.linalg.eigh(spread)[1][:, -1])


def _turn_between(one: Vector, other: Vector, rng: np.random.Generator) -> Vector:
    """A rotation that lays `one` along `other`, either way round, turned about it by any angle."""
    return _frame(other * rng.choice((-1.0, 1.0)), rng.uniform(0, 2 * np.pi)) @ _frame(one, 0.0).T


def _frame(axis: Vector, angle: float) -> Vector:
    """A right-handed frame whose first column is `axis`, the others turned about it by `angle`, radians."""
    across = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    across /= np.linalg.norm(across)
    second = np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)
    return np.stack([axis, second, np.cross(axis, second)], axis=1)
