"""The vertebral column: bodies, discs, arches with their processes and facet joints, and the canal they enclose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imaging.phantom.bone import BonePainter
from imaging.phantom.cage import POSTERIOR, Cage
from imaging.phantom.grid import Field3, Grid, Points

LEVELS = 19  # from C6 to L5 and beyond, so that every view is filled
CANAL_BEHIND_MM = 20.5
FIRST_RIB_LEVEL = 2


@dataclass(frozen=True, slots=True, eq=False)
class Spine:
    """Level by level from the top, and the course of the vertebral bodies' centres.

    Attributes:
        centre_z_mm, height_mm, radius_mm: (LEVELS,) of the bodies; `pitch_mm` includes the disc below.
        course_mm: (n, 3) zyx, z rising.
        tilt: slope of the end plates, dz/dy.
        osteophyte_mm, osteophyte_rad: (LEVELS,) how far and in which direction the rims are drawn out.
        disc_hu: (LEVELS,) of the disc below each body.
        spinous_slope: how steeply the spinous processes fall.
    """

    centre_z_mm: Points
    pitch_mm: Points
    height_mm: Points
    radius_mm: Points
    course_mm: Points
    tilt: float
    osteophyte_mm: Points
    osteophyte_rad: Points
    disc_hu: Points
    sclerosis_hu: Points
    spinous_slope: float
    canal_mm: float
    canal_hu: float

    def centre_at(self, z_mm: NDArray[np.float64]) -> tuple[Points, Points]:
        """y and x of the bodies' centres at the given heights, mm."""
        z, y, x = self.course_mm.T
        return np.asarray(np.interp(z_mm, z, y)), np.asarray(np.interp(z_mm, z, x))


def draw_spine(rng: np.random.Generator, cage: Cage, lung: NDArray[np.bool_], age: float) -> Spine:
    """A spine that follows the back of the lungs and lies midway between them."""
    z = cage.grid.axis_mm(0).astype(np.float64)
    back = cage.widened(0.0, 30.0).reach_mm(POSTERIOR, z)
    # Toward the neck the lungs recede faster than the spine bends forward.
    y = back.max() - 30 * np.tanh((back.max() - back) / 38) - rng.uniform(24, 29)
    seen = np.flatnonzero(lung.any(axis=(1, 2)))
    top, bottom = z[seen[-1]], z[seen[0]]
    stature = float(np.clip((top - bottom) / 235, 0.85, 1.12))
    pitch = np.linspace(19.5, 31.0, LEVELS) * stature * rng.uniform(0.95, 1.05)
    edges = top + rng.uniform(38, 55) - np.r_[0, np.cumsum(pitch)]
    worn = np.where(rng.random(LEVELS) < 0.15 + 0.7 * age, rng.uniform(0.3, 1.0, LEVELS), 0.0)
    disc = rng.uniform(3.0, 4.5) + 0.12 * (pitch - 20) - 1.2 * worn
    radius = np.linspace(12.5, 20.5, LEVELS) * stature * rng.uniform(0.92, 1.08)
    disc_hu = rng.uniform(60, 110) + rng.normal(0, 8, LEVELS)
    disc_hu = np.where(rng.random(LEVELS) < 0.12 * age, rng.choice([-150.0, 220.0], LEVELS), disc_hu)
    return Spine(
        centre_z_mm=edges[:-1] - pitch / 2,
        pitch_mm=pitch,
        height_mm=pitch - disc,
        radius_mm=radius,
        course_mm=np.stack([z, y, _between_lungs(cage.grid, lung, z, y)], axis=1),
        tilt=rng.uniform(-0.12, 0.12),
        osteophyte_mm=worn * rng.uniform(1, 6, LEVELS),
        osteophyte_rad=rng.uniform(0.6, 2.6, LEVELS) * rng.choice([-1, 1], LEVELS),
        disc_hu=disc_hu,
        sclerosis_hu=worn * rng.uniform(0, 350, LEVELS),
        spinous_slope=rng.uniform(0.5, 1.1),
        canal_mm=rng.uniform(7.5, 9.5),
        canal_hu=rng.uniform(20, 50),
    )


def _between_lungs(grid: Grid, lung: NDArray[np.bool_], z: Points, y: Points) -> Points:
    """x midway between the lungs at the spine, smoothed along z; the middle where a lung does not reach it."""
    x_mm = grid.axis_mm(2)
    middle = np.zeros(len(z))
    for k in range(len(z)):
        row = round((y[k] - grid.origin_mm[1]) / grid.spacing_mm[1])
        here = x_mm[lung[k, min(max(row, 0), grid.shape[1] - 1)]]
        right, left = here[here < 0], here[here > 0]
        if right.size and left.size:
            middle[k] = np.clip((right.max() + left.min()) / 2, -12, 12)
    kernel = np.exp(-(np.linspace(-2, 2, 31) ** 2))
    padded = np.pad(middle, 15, mode="edge")
    return np.asarray(np.convolve(padded, kernel / kernel.sum(), mode="valid"))


@dataclass(frozen=True, slots=True, eq=False)
class SpinePainter:
    spine: Spine
    painter: BonePainter

    def fill(self, plane: Field3, k: int) -> None:
        """Discs, canal and bone of slice `k`, into `plane` (y, x) HU, in place."""
        spine, grid = self.spine, self.painter.grid
        z = float(grid.axis_mm(0)[k])
        y0, x0 = (float(v[0]) for v in spine.centre_at(np.array([z])))
        box = grid.box_around(np.array([z - 0.1, y0 - 30, x0 - 48]), np.array([z + 0.1, y0 + 76, x0 + 48]))
        if box is None:
            return
        v = (grid.axis_mm(1)[box[1]] - np.float32(y0))[:, None]
        u = (grid.axis_mm(2)[box[2]] - np.float32(x0))[None, :]
        level, w = self._level(z + spine.tilt * v)
        radius, half = spine.radius_mm[level].astype(np.float32), (spine.height_mm[level] / 2).astype(np.float32)
        body, rim = self._body(u, v, w, level, radius, half)
        view = plane[box[1], box[2]]
        self._soft(view, u, v, w, level, rim)
        arch, denser = self._arch(u, v, z)
        worn = spine.sclerosis_hu[level].astype(np.float32) * np.exp(-np.maximum(half - np.abs(w), 0) / 3)
        depth = np.maximum(body, arch)
        rows, columns = np.nonzero(depth > -grid.spacing_mm[1])
        extra = np.where(arch > body, denser, worn + 0 * u)[rows, columns]
        # The shell of a vertebral body is thinner than that of its arch.
        shell = np.where(arch > body, np.float32(1.0), np.float32(0.6))[rows, columns]
        self.painter.fill(
            plane,
            k,
            rows + box[1].start,
            columns + box[2].start,
            depth[rows, columns],
            np.asarray(extra, np.float32),
            shell,
        )

    def _level(self, z: NDArray[np.floating]) -> tuple[NDArray[np.intp], Field3]:
        """Which vertebra each height belongs to, and the height above its middle."""
        spine = self.spine
        edges = (spine.centre_z_mm + spine.pitch_mm / 2)[::-1]
        level = np.clip(LEVELS - 1 - np.searchsorted(edges, z), 0, LEVELS - 1)
        return level, (z - spine.centre_z_mm[level]).astype(np.float32)

    def _body(
        self, u: Field3, v: Field3, w: Field3, level: NDArray[np.intp], radius: Field3, half: Field3
    ) -> tuple[Field3, Field3]:
        """Depth in the body, and in the column of body and disc."""
        spine = self.spine
        far = np.hypot(u / np.float32(1.15), v)
        at_rim = np.exp(-(((np.abs(w) - half) / 3) ** 2))
        toward = np.cos(np.arctan2(u, -v) - spine.osteophyte_rad[level]).astype(np.float32)
        spur = spine.osteophyte_mm[level].astype(np.float32) * np.clip(toward, 0, 1) ** 3
        waist = np.float32(1.6) * (1 - at_rim)
        rim = np.minimum(radius - waist + spur * at_rim - far, np.float32(0.76) * radius - v)
        dished = np.float32(1.3) * np.clip(1 - (far / radius) ** 2, 0, 1)
        return np.minimum(rim, half - dished - np.abs(w)), np.minimum(radius + spur - far, 0.78 * radius - v)

    def _soft(self, view: Field3, u: Field3, v: Field3, w: Field3, level: NDArray[np.intp], column: Field3) -> None:
        """Discs between the bodies, then the canal: cord and fluid within epidural fat."""
        spine, pitch = self.spine, np.float32(self.painter.grid.spacing_mm[1])
        annulus = np.float32(25) * np.exp(-np.abs(column) / 3)
        disc = spine.disc_hu[level].astype(np.float32) + annulus
        view += np.clip(column / pitch + np.float32(0.5), 0, 1) * (disc - view)
        far = np.hypot(u / np.float32(1.15), v - np.float32(CANAL_BEHIND_MM))
        canal = np.float32(spine.canal_mm) - far
        inside = np.where(canal < 1.2, np.float32(-45), np.float32(spine.canal_hu) + 12 * (far < 4))
        view += np.clip(canal / pitch + np.float32(0.5), 0, 1) * (inside - view)

    def _arch(self, u: Field3, v: Field3, z: float) -> tuple[Field3, Field3]:
        """Depth in pedicles, laminae and processes, and how much denser than marrow they are."""
        spine = self.spine
        back = v - np.float32(CANAL_BEHIND_MM)
        side = np.abs(u)
        level, w = self._level(z + spine.tilt * v)
        half = (spine.height_mm[level] / 2).astype(np.float32)
        high = w - np.float32(0.35) * half
        pedicle = np.float32(4.2) - np.hypot(side - np.float32(spine.canal_mm + 4.5), high * np.float32(0.6))
        pedicle = np.minimum(np.minimum(pedicle, back + 15), 6 - back)
        along = np.clip((side - 11) / 22, 0, 1)
        transverse = 4.8 - np.sqrt((back - 2 - 9 * along) ** 2 + (0.75 * high) ** 2 + np.clip(side - 33, 0, None) ** 2)
        transverse = np.minimum(transverse, side - 9)
        joint, above = self._level(z + spine.tilt * v - 0.5 * spine.pitch_mm[level])
        worn = (spine.osteophyte_mm[joint] * 0.35).astype(np.float32)
        facet = 4.6 + worn - np.sqrt((side - spine.canal_mm - 5.5) ** 2 + (back - 2.5) ** 2 + (0.5 * above) ** 2)
        facet = np.minimum(facet, np.abs(back - 2.5 + 0.25 * (side - 14)) - 0.7)
        falling, low = self._level(z + spine.tilt * v + spine.spinous_slope * np.clip(back, 0, None))
        tall = (spine.height_mm[falling] / 2).astype(np.float32)
        ring = 2.8 - np.abs(np.hypot(u / np.float32(1.15), back) - np.float32(spine.canal_mm + 2.6))
        lamina = np.minimum(np.minimum(ring, back + 1), 0.85 * tall - np.abs(low))
        spinous = np.minimum(3.2 + 0.03 * back - side, 0.55 * tall - np.abs(low))
        spinous = np.minimum(np.minimum(spinous, back - spine.canal_mm - 1), 31 - back)
        depth = np.maximum.reduce([pedicle, transverse, facet, lamina, spinous])
        depth = np.minimum(depth, np.hypot(u / np.float32(1.15), back) - np.float32(spine.canal_mm))
        denser = np.where(facet >= depth, 120 + spine.sclerosis_hu[joint], 40).astype(np.float32)
        return np.asarray(depth, dtype=np.float32), denser
