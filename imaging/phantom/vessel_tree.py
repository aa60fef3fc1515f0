"""How the pulmonary arteries and veins grow in two lungs.

The central vessels follow a template. From each hilum a tree divides: the points that it must supply are split in
two again and again, each child runs toward the middle of its half, and its radius follows from the number of points
that it supplies, as Murray's law has it (r^k adds up at a fork; k = 2.3..3 in pulmonary arteries).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from imaging.phantom.grid import Field, Points, mm

MURRAY_EXPONENT = 2.65
PLEURA_MARGIN_MM = 7.0


@dataclass(frozen=True, slots=True, eq=False)
class Tube:
    """A vessel piece: (n, 3) points zyx in mm and (n,) radii in mm."""

    points_mm: Points
    radii_mm: NDArray[np.float64]


def grow_arteries(rng: np.random.Generator, lungs: Field) -> list[Tube]:
    """Trunk, right and left main artery and both trees: some hundred branches from about 13 mm to about 1 mm."""
    jitter = rng.normal(0, 2.0, 3)
    trunk = np.array([(-30, -48, 14), (-12, -38, 16), (4, -24, 15), (10, -12, 10)], float) + jitter
    trunk_radius = rng.uniform(11.5, 15.0)
    fork = trunk[-1]
    right = np.array([fork, fork + mm(-2, 6, -22), (2, -2, -38), (-2, 4, -50)], float)
    left = np.array([fork, fork + mm(6, 12, 16), (18, 10, 38), (8, 22, 50)], float)
    right[2:] += rng.normal(0, 2.5, 3)
    left[2:] += rng.normal(0, 2.5, 3)
    tubes = [_smooth(trunk, np.linspace(trunk_radius, 0.92 * trunk_radius, 4))]
    for main, side in ((right, -1), (left, 1)):
        targets = _targets(rng, lungs, side, int(rng.integers(230, 330)))
        radius = rng.uniform(0.9, 1.2)
        calibre = np.linspace(0.72 * trunk_radius, radius * len(targets) ** (1 / MURRAY_EXPONENT), 4)
        tubes.append(_smooth(main, calibre))
        tubes += _grow(rng, main[-1], main[-1] - main[-2], targets, radius, lungs)
    return tubes


def grow_veins(rng: np.random.Generator, lungs: Field, arteries: list[Tube]) -> list[Tube]:
    """Left atrium, four pulmonary veins and their trees, whose tips keep away from the arteries' branches."""
    artery_points = cKDTree(np.concatenate([tube.points_mm for tube in arteries]))
    atrium = np.array([-26, 14, 6], float) + rng.normal(0, 2.5, 3)
    half = rng.uniform(14, 22)
    chamber = atrium + np.array([(-4, 0, -half), (2, -2, 0), (-2, 0, half)])
    tubes = [Tube(chamber, rng.uniform(15, 19) * np.array([0.8, 1, 0.85]))]
    for side in (-1, 1):
        targets = _targets(rng, lungs, side, int(rng.integers(200, 280)), artery_points)
        height = targets[:, 0] - 0.5 * targets[:, 1]
        upper = height > np.quantile(height, rng.uniform(0.4, 0.55))
        for mine, ostium, hilum in (
            (upper, atrium + mm(8, -8, side * half), mm(-2, -14, side * 49)),
            (~upper, atrium + mm(-10, 8, side * half), mm(-34, 20, side * 46)),
        ):
            radius = rng.uniform(0.85, 1.1)
            hilum = hilum + rng.normal(0, 3, 3)
            middle = (ostium + hilum) / 2 + rng.normal(0, 2, 3)
            end_radius = radius * int(mine.sum()) ** (1 / MURRAY_EXPONENT)
            tubes.append(_smooth(np.stack([atrium, ostium, middle, hilum]), np.array([9, 8, 6.5, end_radius])))
            tubes += _grow(rng, hilum, hilum - middle, targets[mine], radius, lungs)
    return tubes


def _targets(rng: np.random.Generator, lungs: Field, side: int, count: int, avoid: cKDTree | None = None) -> Points:
    """Points inside one lung (side -1 right, +1 left), spread more evenly than chance."""
    z, y, x = np.nonzero(lungs.values[:, :, :] > PLEURA_MARGIN_MM)
    points = np.stack([z, y, x], axis=1) * lungs.grid.spacing_mm + lungs.grid.origin_mm
    points = points[points[:, 2] * side > 0]
    points = points[rng.permutation(len(points))[: 12 * count]]
    points = points + rng.uniform(-1.2, 1.2, points.shape)
    if avoid is not None:
        far = np.argsort(-avoid.query(points)[0])
        points = points[np.sort(far[: 6 * count])]
    chosen = np.zeros(len(points), bool)
    nearest = np.full(len(points), np.inf)
    current = 0
    for _ in range(min(count, len(points))):
        chosen[current] = True
        nearest = np.minimum(nearest, ((points - points[current]) ** 2).sum(axis=1))
        candidates = rng.integers(0, len(points), 40)
        current = int(candidates[np.argmax(nearest[candidates])])
    return points[chosen]


def _grow(
    rng: np.random.Generator, start: Points, direction: Points, targets: Points, leaf_radius: float, lungs: Field
) -> list[Tube]:
    tubes: list[Tube] = []
    stem_radius = leaf_radius * len(targets) ** (1 / MURRAY_EXPONENT)
    waiting = [(start, direction / np.linalg.norm(direction), targets, stem_radius)]
    while waiting:
        here, heading, mine, radius = waiting.pop()
        for part in _split(rng, mine, here):
            goal = part.mean(axis=0)
            reach = 1.0 if len(part) == 1 else rng.uniform(0.3, 0.5) if len(part) > 6 else rng.uniform(0.4, 0.6)
            end = here + reach * (goal - here)
            if lungs.at(end[None])[0] < 3.0 and len(part) < 40:
                end = _into(lungs, end, goal)
            tip_radius = max(leaf_radius * len(part) ** (1 / MURRAY_EXPONENT), 0.7)
            tube = _bend(rng, here, heading, end, min(radius, 1.15 * tip_radius), tip_radius)
            tubes.append(tube)
            if len(part) > 1:
                last = tube.points_mm[-1] - tube.points_mm[-2]
                waiting.append((end, last / max(float(np.linalg.norm(last)), 1e-6), part, tip_radius))
    return tubes


def _into(lungs: Field, point: Points, goal: Points) -> Points:
    """The first place on the way to `goal` that lies in the lung."""
    steps = point + np.linspace(0, 1, 12)[:, None] * (goal - point)
    good = np.flatnonzero(lungs.at(steps) >= 3.0)
    return steps[good[0]] if good.size else goal


def _split(rng: np.random.Generator, points: Points, here: Points) -> list[Points]:
    if len(points) <= 2:
        return [points[i : i + 1] for i in range(len(points))]
    spread = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(spread, full_matrices=False)
    axis = axes[0] + rng.normal(0, 0.25) * axes[1]
    along = spread @ axis
    low = along <= np.quantile(along, rng.uniform(0.28, 0.72))
    if low.all() or not low.any():
        low = np.arange(len(points)) < len(points) // 2
    return [points[low], points[~low]]


def _bend(rng: np.random.Generator, start: Points, heading: Points, end: Points, r0: float, r1: float) -> Tube:
    """A gentle curve that leaves along `heading`."""
    length = float(np.linalg.norm(end - start))
    control = start + heading * 0.35 * length + rng.normal(0, 0.05 * length, 3)
    pieces = int(np.clip(length / 5, 2, 6))
    t = np.linspace(0, 1, pieces + 1)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    return Tube(curve, np.linspace(r0, r1, pieces + 1))


def _smooth(points: Points, radii: NDArray[np.float64]) -> Tube:
    """Catmull-Rom curve through the points."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    t = np.linspace(0, 1, 5)[:-1, None]
    curve = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        curve.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    curve.append(points[-1:])
    position = np.linspace(0, len(points) - 1, 4 * (len(points) - 1) + 1)
    return Tube(np.concatenate(curve), np.interp(position, np.arange(len(points)), radii))
