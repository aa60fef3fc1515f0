"""Ribs with their cartilage, breast bone and shoulder girdle, as depths below the bones' surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from imaging.phantom.bone import BonePainter
from imaging.phantom.cage import ANTERIOR, Cage
from imaging.phantom.grid import Field3, Grid, Points, mm
from imaging.phantom.painting import Occupancy
from imaging.phantom.spine import CANAL_BEHIND_MM, FIRST_RIB_LEVEL, Spine

STEPS_PER_MM = 25.0
SURFACE = 25  # stored value of a voxel on the surface; 0 is a millimetre and more outside
RIB_OUTSIDE_MM = 5.5
RIBS = 12
CARTILAGE_HU = 85.0


@dataclass(frozen=True, slots=True, eq=False)
class Rod:
    """A bone drawn out along a line: (n, 3) points, (n,) radii; `flat_zyx` divides distances along each axis."""

    points_mm: Points
    radii_mm: Points
    flat_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """All bones but the vertebrae; `shoulders` are the rods that skin has to cover."""

    bones: list[Rod]
    cartilage: list[Rod]
    shoulders: list[Rod]


def draw_skeleton(rng: np.random.Generator, cage: Cage, torso: Cage, spine: Spine) -> Skeleton:
    """Arrange the bones around the lungs.

    Args:
        cage: outline of the lungs; `torso`: that of the trunk's inner wall, which bridges the apices.
    """
    breast, notch = _sternum(rng, cage, spine)
    bones, cartilage = list(breast), []
    for side in (-1, 1):
        for rib in range(RIBS):
            bone, gristle = _rib(rng, cage, spine, side, rib, notch)
            bones.append(bone)
            cartilage += gristle
    shoulders: list[Rod] = []
    for side in (-1, 1):
        shoulders += _shoulder(rng, torso, side, notch)
    return Skeleton(bones + shoulders, cartilage, shoulders)


def _sternum(rng: np.random.Generator, cage: Cage, spine: Spine) -> tuple[list[Rod], Points]:
    """Manubrium, body and xiphoid; and the place of the notch above them."""
    upper = float(spine.centre_z_mm[FIRST_RIB_LEVEL + 2]) + rng.uniform(-8, 8)
    front = cage.widened(0.0, 12.0)
    thick = rng.uniform(5.0, 6.5)
    rods = []
    for start, length, half_width in ((0.0, 45.0, 26.0), (49.0, 95.0, 17.0), (147.0, 22.0, 7.0)):
        z = upper - start - np.linspace(0, length, 9)
        points = np.stack([z, -front.reach_mm(ANTERIOR, z) - 9.0, np.zeros(9)], axis=1)
        rods.append(Rod(points, np.full(9, thick), (1.0, 1.0, half_width / thick)))
    return rods, rods[0].points_mm[0]


def _rib(
    rng: np.random.Generator, cage: Cage, spine: Spine, side: int, rib: int, notch: Points
) -> tuple[Rod, list[Rod]]:
    """From the joint with the vertebra over the transverse process round the chest; and its cartilage."""
    level = FIRST_RIB_LEVEL + rib
    centre, radius = float(spine.centre_z_mm[level]), float(spine.radius_mm[level])
    head = centre + 0.45 * float(spine.pitch_mm[level])
    y0, x0 = (float(v[0]) for v in spine.centre_at(np.array([centre])))
    start = [
        mm(head, y0 + 0.5 * radius, x0 + side * (1.0 * radius + 2)),
        mm(head - 2, y0 + CANAL_BEHIND_MM - 6, x0 + side * 24),
        mm(head - 5, y0 + CANAL_BEHIND_MM + 4, x0 + side * 35),
    ]
    reach = np.interp(rib, [0, 1, 3, 6, 8, 9, 10, 11], [125, 138, 142, 138, 118, 105, 78, 55]) + rng.normal(0, 3)
    fall = np.interp(rib, [0, 1, 6, 9, 11], [26, 38, 82, 78, 45]) + rng.normal(0, 3)
    angle = np.deg2rad(np.linspace(42, max(reach, 50), 34))
    along = np.linspace(0.15, 1, 34)
    around = cage.points(side, angle, head - 6 - fall * along**1.15, RIB_OUTSIDE_MM)
    path = _smoothed(np.concatenate([np.stack(start), around]), 48)
    calibre = np.interp(np.linspace(0, 1, 48), [0, 0.06, 0.12, 0.2, 1], [4.2, 3.4, 4.4, 4.2, 3.7]) * rng.uniform(
        0.9, 1.1
    )
    bone = Rod(path, calibre, (1.55 if rib else 1.1, 1.0, 1.0))
    if rib > 9:
        return bone, []
    tip = path[-1]
    meets = min(rib, 7) * 17.0 + 12
    goal = mm(float(notch[0]) - meets, 0.0, side * (24.0 if rib == 0 else 17.0 + max(rib - 6, 0) * 16))
    front = cage.points(side, np.deg2rad(np.array([155.0, 172.0])), np.array([goal[0], goal[0]]), RIB_OUTSIDE_MM)
    goal[1] = front[1, 1] if rib < 7 else front[0, 1]
    between = (tip + goal) / 2 + mm(-9.0 if rib > 2 else 0.0, -4.0, 0.0)
    gristle = _smoothed(np.stack([tip, between, goal]), 14)
    return bone, [Rod(gristle, np.full(14, 4.4), (1.4, 1.0, 1.0))]


def _shoulder(rng: np.random.Generator, torso: Cage, side: int, notch: Points) -> list[Rod]:
    """Clavicle, scapula and, in some, the head of the humerus."""
    top = float(notch[0]) + rng.uniform(18, 40)
    reach = float(torso.reach_mm(0 if side > 0 else torso.support.shape[0] // 2, np.array([top]))[0])
    wide = max(reach + rng.uniform(22, 40), 150.0)
    joint = mm(top, rng.uniform(0, 22), side * wide)
    medial = notch + mm(4, 2, side * 17)
    bend = medial + 0.35 * (joint - medial) + mm(0, -10, 0)
    clavicle = Rod(_smoothed(np.stack([medial, bend, joint + mm(4, -4, -8 * side)]), 16), np.linspace(7.0, 4.8, 16))
    rods = [clavicle, *_scapula(rng, torso, side, joint)]
    if rng.random() < 0.6:
        head = joint + mm(rng.uniform(-22, 12), -2, side * 24)
        shaft = head + (mm(rng.uniform(40, 90), -20, side * 45) if rng.random() < 0.7 else mm(-230, 14, side * 26))
        rods.append(Rod(np.stack([head, head + 0.25 * (shaft - head), shaft]), np.array([22.0, 15.0, 11.0])))
    return rods


def _scapula(rng: np.random.Generator, torso: Cage, side: int, joint: Points) -> list[Rod]:
    """Blade, thick borders, spine and acromion: the blade as flat rods one above the other."""
    height = rng.uniform(115, 145)
    away = rng.uniform(14, 19)
    rods = []
    turn = rng.uniform(-6, 14)
    heights = joint[0] + 14 - np.arange(0, height, 3.0)
    medial_line, lateral_line = [], []
    for z in heights:
        down = (joint[0] + 14 - z) / height
        medial, outer = 36 + 6 * down, float(np.interp(down, [0, 0.25, 1], [74, 70, 54]))
        inner = torso.points(side, np.deg2rad(turn + np.linspace(medial, outer, 7)), np.full(7, z), away)
        neck = np.clip(1 - abs(down - 0.18) / 0.2, 0, 1)
        inner[-1] += neck * 0.8 * (joint + mm(-14, 4, -14 * side) - inner[-1]) * np.array([0, 1, 1])
        inner[1:-1] = (inner[:-2] + 2 * inner[1:-1] + inner[2:]) / 4
        medial_line.append(inner[0])
        lateral_line.append(inner[-1])
        rods.append(Rod(inner, np.array([2.2, 1.5, 1.2, 1.2, 1.5, 2.2, 3.0]), (2.2, 1.0, 1.0)))
    lateral = np.stack(lateral_line)
    rods.append(Rod(lateral[2::3], np.linspace(6.5, 4.0, len(lateral[2::3]))))
    rods.append(Rod(np.stack(medial_line)[::3], np.full(len(medial_line[::3]), 2.6)))
    glenoid = joint + mm(-12, 4, -10 * side)
    rods.append(Rod(np.stack([lateral[5], glenoid]), np.array([7.0, 11.0])))
    root = np.asarray(medial_line[10]) + mm(0, 3, 0)
    crest = _smoothed(np.stack([root, (root + joint) / 2 + mm(4, 14, 0), joint + mm(8, 8, 2 * side)]), 12)
    rods.append(Rod(crest, np.linspace(3.0, 6.5, 12), (0.8, 1.0, 1.0)))
    rods.append(Rod(np.stack([glenoid, glenoid + mm(10, -24, -4 * side)]), np.array([6.0, 4.5])))
    return rods


def _smoothed(points: Points, count: int) -> Points:
    """Evenly spaced points along a rounded-off polyline."""
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    even = np.linspace(0, length[-1], count)
    path = np.stack([np.interp(even, length, points[:, a]) for a in range(3)], axis=1)
    smooth = ndimage.gaussian_filter1d(path, count / 24, axis=0, mode="nearest")
    smooth[[0, -1]] = path[[0, -1]]
    return np.asarray(smooth)


def paint_depths(rods: list[Rod], grid: Grid) -> Occupancy:
    """uint8 zyx: how deep below the surface of the nearest rod each voxel lies (see `depths_mm`)."""
    depths = np.zeros(grid.shape, np.uint8)
    for rod in rods:
        for piece in zip(rod.points_mm[:-1], rod.points_mm[1:], rod.radii_mm[:-1], rod.radii_mm[1:], strict=True):
            _paint_piece(depths, grid, np.asarray(rod.flat_zyx), *piece)
    return depths


def depths_mm(stored: Occupancy) -> Field3:
    """Millimetres below the surface from what `paint_depths` stores; negative outside."""
    return (stored.astype(np.float32) - np.float32(SURFACE)) * np.float32(1 / STEPS_PER_MM)


def _paint_piece(depths: Occupancy, grid: Grid, flat: Points, start: Points, end: Points, r0: float, r1: float) -> None:
    reach = (max(r0, r1) + 1.0) * flat
    box = grid.box_around(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
    if box is None:
        return
    z, y, x = (
        (axis - np.float32(o)) * np.float32(1 / f) for axis, o, f in zip(grid.open_mesh(box), start, flat, strict=True)
    )
    dz, dy, dx = (np.float32(v) for v in (end - start) / flat)
    along = (z * dz + y * dy + x * dx) * np.float32(1.0 / max(float(dz * dz + dy * dy + dx * dx), 1e-9))
    np.clip(along, 0, 1, out=along)
    far = np.sqrt((z - along * dz) ** 2 + (y - along * dy) ** 2 + (x - along * dx) ** 2)
    inside = (np.float32(r0) + along * np.float32(r1 - r0) - far) * np.float32(STEPS_PER_MM) + np.float32(SURFACE)
    np.clip(inside, 0, 255, out=inside)
    np.maximum(depths[box], inside.astype(np.uint8), out=depths[box])


@dataclass(frozen=True, slots=True, eq=False)
class SkeletonPainter:
    """Ribs, cartilage, breast bone and shoulders on a grid, ready to be filled in slice by slice."""

    painter: BonePainter
    bones: Occupancy
    cartilage: Occupancy

    @classmethod
    def of(cls, skeleton: Skeleton, painter: BonePainter) -> SkeletonPainter:
        return cls(painter, paint_depths(skeleton.bones, painter.grid), paint_depths(skeleton.cartilage, painter.grid))

    def fill(self, plane: Field3, k: int) -> None:
        """Cartilage, then bone of slice `k`, into `plane` (y, x) HU, in place."""
        pitch = np.float32(max(self.painter.grid.spacing_mm[1], 0.5))
        rows, columns = np.nonzero(self.cartilage[k] != 0)
        if rows.size:
            depth = depths_mm(self.cartilage[k][rows, columns])
            bone = self.painter.bone
            # Old cartilage calcifies from its surface, in patches.
            patch = bone.fat[k % len(bone.fat), rows % len(bone.fat), columns % len(bone.fat)] < 0.5
            chalk = np.clip(1.4 - np.abs(depth - 0.8), 0, 1) * patch * np.float32(max(0.0, bone.age - 0.35) * 700)
            value = np.float32(CARTILAGE_HU) + chalk
            here = plane[rows, columns]
            plane[rows, columns] = here + np.clip(depth / pitch + np.float32(0.5), 0, 1) * (value - here)
        rows, columns = np.nonzero(self.bones[k] != 0)
        if rows.size:
            self.painter.fill(plane, k, rows, columns, depths_mm(self.bones[k][rows, columns]))


def covered_mm(skeleton: Skeleton, grid: Grid, cover_mm: float) -> Field3:
    """Signed distance inside the flesh over the shoulders' bones, positive inside, for coarse grids."""
    values = np.full(grid.shape, -50.0, np.float32)
    for rod in skeleton.shoulders:
        for start, end, r0, r1 in zip(
            rod.points_mm[:-1:2], rod.points_mm[1::2], rod.radii_mm[:-1:2], rod.radii_mm[1::2], strict=False
        ):
            radius = 2.6 * max(r0, r1) + cover_mm
            box = grid.box_around(np.minimum(start, end) - radius - 12, np.maximum(start, end) + radius + 12)
            if box is None:
                continue
            mesh = grid.open_mesh(box)
            step = (end - start).astype(np.float32)
            offset = [axis - np.float32(o) for axis, o in zip(mesh, start, strict=True)]
            along = np.clip(sum(o * s for o, s in zip(offset, step, strict=True)) / max(float(step @ step), 1e-6), 0, 1)
            far = np.sqrt(sum((o - along * s) ** 2 for o, s in zip(offset, step, strict=True)))
            np.maximum(values[box], radius - far, out=values[box])
    return values
