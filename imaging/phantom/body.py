"""The body that lungs lie in: chest wall, ribs, spine, mediastinal fat, abdomen, air and the patient table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.grid import Field, Field3, Grid, Points, smooth_noise
from imaging.phantom.painting import Occupancy

COARSE_MM = 3.0
AIR_HU = -1000.0
DIRECTIONS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """Fields on one coarse grid, the signed ones in mm and positive inside; course of the descending aorta (n, 3)."""

    skin: Field
    bone: Field
    soft_tissue_hu: Field
    lung_hu: Field
    marrow_hu: float
    cortex_hu: float
    aorta_mm: Points


def build_body(rng: np.random.Generator, grid: Grid, lungs: Field) -> Body:
    """Arrange a body around the lungs; it may reach beyond `grid`, as bodies reach beyond the field of view."""
    coarse = _coarse_grid(grid, lungs)
    inside = np.stack(list(lungs.slices_on(coarse)))
    support = _support(inside > 0, coarse)
    cage_mm = _outside_hull(coarse, ndimage.gaussian_filter1d(support, 8 / COARSE_MM, axis=1, mode="nearest"))
    window = int(rng.uniform(60, 110) / COARSE_MM)
    torso = ndimage.maximum_filter1d(support, window, axis=1, mode="nearest")
    wall_mm = _outside_hull(coarse, ndimage.gaussian_filter1d(torso, 25 / COARSE_MM, axis=1, mode="nearest"))
    del torso
    muscle = rng.uniform(14, 24)
    fat = float(np.clip(rng.gamma(3.0, 6.0), 4, 45))
    bulge = smooth_noise(rng, coarse, 70.0)
    skin = muscle + fat + 3 * bulge - wall_mm
    spine_y = float(np.median(support[DIRECTIONS // 4])) - rng.uniform(16, 22)
    bone = _bones(rng, coarse, cage_mm, spine_y, support)
    diaphragm = _diaphragm(inside > 0, coarse)
    soft = _soft_tissue(rng, coarse, cage_mm, wall_mm - muscle - 2 * bulge, diaphragm)
    lung_hu = _lung_parenchyma(rng, coarse, inside > 0)
    return Body(
        Field(skin.astype(np.float32), coarse),
        Field(bone, coarse),
        Field(soft, coarse),
        Field(lung_hu, coarse),
        marrow_hu=rng.uniform(130, 260),
        cortex_hu=rng.uniform(400, 700),
        aorta_mm=_descending_aorta(coarse, inside > 0, spine_y),
    )


def render_body(
    rng: np.random.Generator, grid: Grid, body: Body, lungs: Field
) -> tuple[NDArray[np.float32], Occupancy]:
    """HU (float32 zyx) of everything but vessels, airways and heart; and the share of each voxel that is lung."""
    hu = np.full(grid.shape, AIR_HU, np.float32)
    lung_share = np.zeros(grid.shape, np.uint8)
    fields = (body.skin, body.bone, body.soft_tissue_hu, body.lung_hu, lungs)
    per_mm = np.float32(1 / max(grid.spacing_mm[1], 0.5))
    table = _table(rng, grid, body)
    for k, (skin, bone, soft, lung_hu, lung) in enumerate(zip(*(f.slices_on(grid) for f in fields), strict=True)):
        plane = hu[k]
        np.maximum(plane, table, out=plane)
        plane += np.clip(skin * per_mm + np.float32(0.5), 0, 1) * (soft - plane)
        cortex = np.clip(np.float32(1.2) - bone * np.float32(0.5), 0, 1)
        bone_hu = body.marrow_hu + cortex * np.float32(body.cortex_hu - body.marrow_hu)
        plane += np.clip(bone * per_mm + np.float32(0.5), 0, 1) * (bone_hu - plane)
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


def _angles() -> tuple[Field3, Field3]:
    angle = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def _support(mask: NDArray[np.bool_], grid: Grid) -> Field3:
    """(direction, z): how far the lungs reach in each direction of the axial plane, mm; level where there is none."""
    sine, cosine = _angles()
    support = np.full((DIRECTIONS, grid.shape[0]), np.nan, np.float32)
    y_mm, x_mm = grid.axis_mm(1), grid.axis_mm(2)
    for k, plane in enumerate(mask):
        y, x = np.nonzero(plane)
        if y.size:
            support[:, k] = (sine[:, None] * y_mm[y] + cosine[:, None] * x_mm[x]).max(axis=1)
    known = np.flatnonzero(~np.isnan(support[0]))
    for row in support:
        row[:] = np.interp(np.arange(len(row)), known, row[known])
    # The chest does not narrow where only the slivers behind the diaphragm are left of the lungs.
    return np.asarray(np.maximum.accumulate(support[:, ::-1], axis=1)[:, ::-1])


def _outside_hull(grid: Grid, support: Field3) -> Field3:
    """Distance outside the convex shape that a support function describes, mm; negative inside."""
    sine, cosine = _angles()
    _, y, x = grid.open_mesh()
    distance = np.full(grid.shape, -np.inf, np.float32)
    for k in range(DIRECTIONS):
        np.maximum(distance, (sine[k] * y + cosine[k] * x) - support[k][:, None, None], out=distance)
    return distance


def _bones(rng: np.random.Generator, grid: Grid, cage_mm: Field3, spine_y: float, support: Field3) -> Field3:
    z, y, x = grid.open_mesh()
    pitch, slope = rng.uniform(22, 28), rng.uniform(0.35, 0.6)
    phase = ((z - slope * y) / pitch + rng.uniform()) % 1
    ribs = np.minimum(3.6 - np.abs(cage_mm - 5.0), 0.26 * pitch - np.abs(phase - 0.5) * pitch)
    ribs = np.minimum(ribs, np.maximum(np.abs(x) - 28, y))
    body = 16 - np.hypot(x / 1.1, y - spine_y)
    disc = np.abs((z / rng.uniform(21, 25)) % 1 - 0.5) * 22 - 2.5
    body = np.minimum(body, disc)
    arch = 4.5 - np.abs(np.hypot(x, y - spine_y - 22) - 12)
    arch = np.minimum(arch, y - spine_y - 12)
    spinous = np.minimum(3.5 - np.abs(x), 11 - np.abs(y - spine_y - 40)) + 0 * z
    transverse = np.minimum(np.minimum(4 - np.abs(y - spine_y - 22), 34 - np.abs(x)), 6 - np.abs(phase - 0.5) * pitch)
    front = support[3 * DIRECTIONS // 4][:, None, None] * -1.0
    sternum = 6 - np.hypot(x / 3, y - front + 6) + np.where(z < -60, -20, 0)
    bones = ribs
    for part in (body, arch, spinous, transverse, sternum):
        bones = np.maximum(bones, part)
    return np.asarray(bones, dtype=np.float32)


def _descending_aorta(grid: Grid, lung: NDArray[np.bool_], spine_y: float) -> Points:
    """Where there is most room between lung and spine, left of the middle, from top to bottom; (n, 3) zyx mm."""
    room = np.asarray(ndimage.distance_transform_edt(~lung, sampling=grid.spacing_mm))
    _, y, x = grid.open_mesh()
    room = np.minimum(np.minimum(room, np.hypot(x, y - spine_y) - 17), 17)
    room = room - 0.08 * np.hypot(x - 22, y - spine_y + 24)
    room[:, (y[0, :, 0] < spine_y - 60) | (y[0, :, 0] > spine_y + 5)] = -np.inf
    room[:, :, (x[0, 0] < 0) | (x[0, 0] > 50)] = -np.inf
    best = room.reshape(len(room), -1).argmax(axis=1)
    rows, columns = np.unravel_index(best, room.shape[1:])
    course = np.stack([grid.axis_mm(0), grid.axis_mm(1)[rows], grid.axis_mm(2)[columns]], axis=1).astype(np.float64)
    course[:, 1:] = ndimage.gaussian_filter1d(ndimage.median_filter(course[:, 1:], (9, 1)), 4, axis=0, mode="nearest")
    return course[::-6]


def _diaphragm(lung: NDArray[np.bool_], grid: Grid) -> Field3:
    """(y, x): height of the lungs' lower surface, mm; what lies below it is abdomen."""
    height = np.where(lung.any(axis=0), grid.axis_mm(0)[lung.argmax(axis=0)], np.inf)
    # A dome rises less than 80 mm; higher up a column of lung ends on the heart or at the hilum.
    known = height < np.quantile(height[np.isfinite(height)], 0.02) + 80
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return np.asarray(ndimage.gaussian_filter(height[tuple(nearest)], 6 / COARSE_MM), dtype=np.float32)


def _soft_tissue(
    rng: np.random.Generator, grid: Grid, cage_mm: Field3, outside_muscle_mm: Field3, diaphragm: Field3
) -> Field3:
    fine, broad = smooth_noise(rng, grid, 9.0), smooth_noise(rng, grid, 30.0)
    z, y, x = grid.open_mesh()
    fat_hu = rng.uniform(-115, -90)
    hu = 52 + 10 * fine
    hu = np.where(fine + 0.5 * broad > rng.uniform(1.1, 2.0), fat_hu + 30, hu)
    # Mediastinum: fat with strands of tissue; how much of each differs between patients.
    mediastinum = fat_hu + 25 + 130 / (1 + np.exp(-3 * (fine + 0.6 * broad - rng.uniform(-0.2, 0.9))))
    hu = np.where(cage_mm < 0, mediastinum, hu)
    liver, spleen = rng.uniform(55, 110), rng.uniform(60, 120)
    stomach = rng.choice([30.0, -80.0, 60.0])
    edge = 12 * broad
    belly = np.where(x < 25 + edge, liver, np.where(y > 20 + edge, spleen, stomach)) + 4 * broad
    belly = np.where((np.abs(x - 25 - edge) < 4) | ((x > 25 + edge) & (np.abs(y - 20 - edge) < 4)), fat_hu + 20, belly)
    belly = ndimage.gaussian_filter(belly, 0.6)
    hu = np.where((cage_mm < -1) & (z < diaphragm - 2 + 3 * broad), belly, hu)
    hu = np.where(outside_muscle_mm > 0, fat_hu + 4 * fine, hu)
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
            density = rng.choice([-650.0, -450.0, 35.0, 50.0])
            hu = hu + np.clip(3 * blob, 0, 1) * (density - hu)
    if rng.random() < 0.2 and len(places):  # pleural effusion: fluid with a level, in one or both sides
        sides = rng.choice([-1, 1, 0])
        level = np.quantile(places[:, 1], rng.uniform(0.72, 0.95)) * COARSE_MM + grid.origin_mm[1]
        fluid = np.clip((y + 0.35 * (-z) + 6 * shade - level - 15) / 4, 0, 1) * np.where(x * sides >= 0, 1, 0)
        hu = hu + fluid * (rng.uniform(2, 25) - hu)
        rim = np.clip((y + 0.35 * (-z) + 6 * shade - level + 5) / 20, 0, 1) * np.where(x * sides >= 0, 1, 0)
        hu = hu + (rim > 0) * (fluid < 1) * rim**2 * 0.8 * (20 - hu)
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
