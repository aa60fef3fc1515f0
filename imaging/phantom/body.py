"""The body that lungs lie in: chest wall, ribs, spine, mediastinal fat, abdomen, air and the patient table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.bone import Bone, BonePainter, draw_bone
from imaging.phantom.cage import Cage, cage_of
from imaging.phantom.grid import Field, Field3, Grid, Points, smooth_noise
from imaging.phantom.painting import Occupancy
from imaging.phantom.skeleton import Skeleton, SkeletonPainter, covered_mm, draw_skeleton
from imaging.phantom.spine import Spine, SpinePainter, draw_spine

COARSE_MM = 3.0
AIR_HU = -1000.0


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """Fields on one coarse grid, the signed ones in mm and positive inside; course of the descending aorta (n, 3)."""

    skin: Field
    soft_tissue_hu: Field
    lung_hu: Field
    bone: Bone
    spine: Spine
    skeleton: Skeleton
    aorta_mm: Points


def build_body(rng: np.random.Generator, grid: Grid, lungs: Field) -> Body:
    """Arrange a body around the lungs; it may reach beyond `grid`, as bodies reach beyond the field of view."""
    coarse = _coarse_grid(grid, lungs)
    inside = np.stack(list(lungs.slices_on(coarse)))
    outline = cage_of(inside > 0, coarse)
    cage = outline.widened(0.0, 8.0)
    torso = outline.widened(rng.uniform(60, 110), 25.0)
    cage_mm, wall_mm = cage.outside_mm(), torso.outside_mm()
    muscle = rng.uniform(16, 28)
    fat = float(np.clip(rng.gamma(3.0, 6.0), 4, 45))
    bulge = smooth_noise(rng, coarse, 70.0)
    bone = draw_bone(rng)
    spine = draw_spine(rng, outline, inside > 0, bone.age)
    skeleton = draw_skeleton(rng, cage, torso, spine)
    flesh = ndimage.gaussian_filter(covered_mm(skeleton, coarse, 11.0), 2.0, truncate=2.5)
    muscle_mm = muscle + _erectors(coarse, spine) + 2 * bulge
    inner = np.minimum(wall_mm - muscle_mm, -flesh)
    skin = np.maximum(muscle_mm + fat + bulge - wall_mm, flesh + fat)
    breasts = rng.random() < 0.45
    if breasts:
        skin = np.maximum(skin, _breasts(rng, coarse, torso))
    diaphragm = _diaphragm(inside > 0, coarse)
    soft = _soft_tissue(rng, coarse, cage_mm, inner, diaphragm, glands=breasts)
    lung_hu = _lung_parenchyma(rng, coarse, inside > 0)
    return Body(
        Field(skin.astype(np.float32), coarse),
        Field(soft, coarse),
        Field(lung_hu, coarse),
        bone,
        spine,
        skeleton,
        aorta_mm=_descending_aorta(coarse, inside > 0, spine),
    )


def render_body(
    rng: np.random.Generator, grid: Grid, body: Body, lungs: Field
) -> tuple[NDArray[np.float32], Occupancy]:
    """HU (float32 zyx) of everything but vessels, airways and heart; and the share of each voxel that is lung."""
    hu = np.full(grid.shape, AIR_HU, np.float32)
    lung_share = np.zeros(grid.shape, np.uint8)
    fields = (body.skin, body.soft_tissue_hu, body.lung_hu, lungs)
    painter = BonePainter(body.bone, grid)
    skeleton, spine = SkeletonPainter.of(body.skeleton, painter), SpinePainter(body.spine, painter)
    per_mm = np.float32(1 / max(grid.spacing_mm[1], 0.5))
    table = _table(rng, grid, body)
    for k, (skin, soft, lung_hu, lung) in enumerate(zip(*(f.slices_on(grid) for f in fields), strict=True)):
        plane = hu[k]
        np.maximum(plane, table, out=plane)
        plane += np.clip(skin * per_mm + np.float32(0.5), 0, 1) * (soft - plane)
        skeleton.fill(plane, k)
        spine.fill(plane, k)
        share = np.clip(lung * per_mm + np.float32(0.5), 0, 1)
        plane += share * (lung_hu - plane)
        lung_share[k] = share * 255
    return hu, lung_share


def _coarse_grid(grid: Grid, lungs: Field) -> Grid:
    low, high = [], []
    for axis in range(3):
        own, view = lungs.grid.axis_mm(axis), grid.axis_mm(axis)
        low.append(float(min(own[0], view[0])))
        high.append(float(max(own[-1], view[-1])))
    shape = tuple(int(np.ceil((b - a) / COARSE_MM)) + 1 for a, b in zip(low, high, strict=True))
    return Grid((shape[0], shape[1], shape[2]), (COARSE_MM,) * 3, (low[0], low[1], low[2]))


def _erectors(grid: Grid, spine: Spine) -> Field3:
    """How much thicker, mm, the muscles beside the spinous processes make the back."""
    z, y, x = grid.open_mesh()
    y0, x0 = (v.astype(np.float32)[:, None, None] for v in spine.centre_at(z[:, 0, 0].astype(np.float64)))
    return np.asarray(13 * np.exp(-(((x - x0) / 45) ** 2)) / (1 + np.exp(-(y - y0) / 6)), dtype=np.float32)


def _breasts(rng: np.random.Generator, grid: Grid, torso: Cage) -> Field3:
    """Signed distance inside them, mm, positive inside."""
    z, y, x = grid.open_mesh()
    size = rng.uniform(38, 70)
    high = rng.uniform(-55, -10)
    values = np.full(grid.shape, -50.0, np.float32)
    for side in (-1, 1):
        centre = torso.points(side, np.array([np.deg2rad(rng.uniform(142, 152))]), np.array([high]), 0.35 * size)[0]
        far = np.sqrt(((z - centre[0]) / 1.1) ** 2 + (y - centre[1]) ** 2 + ((x - centre[2]) / 1.25) ** 2)
        np.maximum(values, size - far, out=values)
    return values


def _descending_aorta(grid: Grid, lung: NDArray[np.bool_], spine: Spine) -> Points:
    """Where there is most room between lung and spine, left of the middle, from top to bottom; (n, 3) zyx mm."""
    room = np.asarray(ndimage.distance_transform_edt(~lung, sampling=grid.spacing_mm))
    z, y, x = grid.open_mesh()
    course = [v.astype(np.float32)[:, None, None] for v in spine.centre_at(z[:, 0, 0].astype(np.float64))]
    y, x = y - course[0], x - course[1]
    room = np.minimum(np.minimum(room, np.hypot(x, y) - 19), 17)
    room = room - 0.08 * np.hypot(x - 22, y + 24)
    room[(y < -60) | (y > 5) | (x < 0) | (x > 50)] = -np.inf
    best = room.reshape(len(room), -1).argmax(axis=1)
    rows, columns = np.unravel_index(best, room.shape[1:])
    path = np.stack([grid.axis_mm(0), grid.axis_mm(1)[rows], grid.axis_mm(2)[columns]], axis=1).astype(np.float64)
    path[:, 1:] = ndimage.gaussian_filter1d(ndimage.median_filter(path[:, 1:], (9, 1)), 4, axis=0, mode="nearest")
    return path[::-6]


def _diaphragm(lung: NDArray[np.bool_], grid: Grid) -> Field3:
    """(y, x): height of the lungs' lower surface, mm; what lies below it is abdomen."""
    height = np.where(lung.any(axis=0), grid.axis_mm(0)[lung.argmax(axis=0)], np.inf)
    # A dome rises less than 80 mm; higher up a column of lung ends on the heart or at the hilum.
    known = height < np.quantile(height[np.isfinite(height)], 0.02) + 80
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(ndimage.gaussian_filter(height[tuple(nearest)], 6 / COARSE_MM), dtype=np.float32)


def _soft_tissue(
    rng: np.random.Generator, grid: Grid, cage_mm: Field3, outside_muscle_mm: Field3, diaphragm: Field3, *, glands: bool
) -> Field3:
    fine, broad = smooth_noise(rng, grid, 9.0), smooth_noise(rng, grid, 30.0)
    z, y, x = grid.open_mesh()
    fat_hu = rng.uniform(-115, -90)
    hu = 52 + 10 * fine
    hu = np.where(fine + 0.5 * broad > rng.uniform(1.3, 2.2), fat_hu + 30, hu)
    # Muscles lie in layers; fat parts them, here more, there less.
    layer = (cage_mm + 5 * broad - rng.uniform(8, 12)) / rng.uniform(9, 14)
    seam = np.clip(1.0 - np.abs(layer - np.rint(layer)) * 4.5, 0, 1) * np.clip(0.75 + 0.6 * fine, 0, 1)
    seam *= np.clip((45 - cage_mm) / 15, 0, 1)
    hu = hu + seam * rng.uniform(0.3, 1.0) * (cage_mm > 6) * (fat_hu - hu)
    # Mediastinum: fat with strands of tissue; how much of each differs between patients.
    mediastinum = fat_hu + 25 + 130 / (1 + np.exp(-3 * (fine + 0.6 * broad - rng.uniform(-0.2, 0.9))))
    hu = hu + np.clip(0.5 - cage_mm / COARSE_MM, 0, 1) * (mediastinum - hu)
    liver, spleen = rng.uniform(55, 110), rng.uniform(60, 120)
    stomach = rng.choice([30.0, -80.0, 60.0])
    edge = 12 * broad
    belly = np.where(x < 25 + edge, liver, np.where(y > 20 + edge, spleen, stomach)) + 4 * broad
    belly = np.where((np.abs(x - 25 - edge) < 4) | ((x > 25 + edge) & (np.abs(y - 20 - edge) < 4)), fat_hu + 20, belly)
    belly = ndimage.gaussian_filter(belly, 0.6)
    hu = np.where((cage_mm < -1) & (z < diaphragm - 2 + 3 * broad), belly, hu)
    if glands:
        gland = (y < -40) & (np.abs(x) > 25) & (outside_muscle_mm > 8)
        fat_hu = fat_hu + gland * np.clip(3 * (fine + broad - 1), 0, 1) * 130
    # A ramp one voxel wide: an edge that jumps would show the coarse grid as stairs.
    hu = hu + np.clip(outside_muscle_mm / COARSE_MM + 0.5, 0, 1) * (fat_hu + 4 * fine - hu)
    return np.asarray(hu, dtype=np.float32)


def _lung_parenchyma(rng: np.random.Generator, grid: Grid, lung: NDArray[np.bool_]) -> Field3:
    z, y, x = grid.open_mesh()
    hu = rng.normal(-850, 25) + rng.uniform(0.1, 0.5) * y
    hu = hu + rng.uniform(6, 14) * smooth_noise(rng, grid, 6.0) + rng.uniform(8, 25) * smooth_noise(rng, grid, 35.0)
    # Vessels too small to be grown show as a fine mottle, more bright than dark.
    hu = hu + rng.uniform(5, 22) * (np.exp(0.7 * rng.standard_normal(grid.shape, dtype=np.float32)) - 1.28)
    shade = smooth_noise(rng, grid, 25.0)
    places = np.argwhere(lung[::4, ::4, ::4]) * 4
    if rng.random() < 0.3 and len(places):  # consolidation or ground glass
        for _ in range(int(rng.integers(1, 4))):
            centre = places[rng.integers(len(places))] * COARSE_MM + np.asarray(grid.origin_mm)
            size = rng.uniform(12, 40)
            blob = 1 - np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) / size + 0.35 * shade
            density = rng.choice([-650.0, -450.0, 35.0, 50.0, 95.0])  # the last: atelectasis, which takes up contrast
            hu = hu + np.clip(3 * blob, 0, 1) * (density - hu)
    if rng.random() < 0.2 and len(places):  # pleural effusion: fluid with a level, in one or both sides
        sides = rng.choice([-1, 1, 0])
        level = np.quantile(places[:, 1], rng.uniform(0.72, 0.95)) * COARSE_MM + grid.origin_mm[1]
        fluid = np.clip((y + 0.35 * (-z) + 6 * shade - level - 15) / 4, 0, 1) * np.where(x * sides >= 0, 1, 0)
        hu = hu + fluid * (rng.uniform(2, 25) - hu)
        rim = np.clip((y + 0.35 * (-z) + 6 * shade - level + 5) / 20, 0, 1) * np.where(x * sides >= 0, 1, 0)
        hu = hu + (rim > 0) * (fluid < 1) * rim**2 * 0.8 * (rng.uniform(20, 110) - hu)
    return np.asarray(hu, dtype=np.float32)


def _table(rng: np.random.Generator, grid: Grid, body: Body) -> Field3:
    """(y, x): HU of a carbon couch under the back."""
    y, x = grid.axis_mm(1)[:, None], grid.axis_mm(2)[None, :]
    middle = body.skin.grid.shape[0] // 2
    column = body.skin.values[middle][:, body.skin.grid.shape[2] // 2]
    back = body.skin.grid.axis_mm(1)[np.flatnonzero(column > 0).max(initial=0)]
    top = back + 4 - rng.uniform(4e-4, 9e-4) * x**2
    shell = np.minimum(np.abs(y - top), np.abs(y - top - 30)) < 1.5
    foam = (y > top) & (y < top + 30)
    return np.where(shell, rng.uniform(-350, 120), np.where(foam, -930.0, AIR_HU)).astype(np.float32)
