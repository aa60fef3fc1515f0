"""Trachea, main bronchi, and the bronchus that runs beside each larger artery."""

from __future__ import annotations

import numpy as np

from imaging.phantom.centreline import Centreline
from imaging.phantom.grid import Field, Grid, Points, mm
from imaging.phantom.landmarks import Landmarks
from imaging.phantom.painting import Occupancy, paint_tube


def paint_airways(
    rng: np.random.Generator, grid: Grid, arteries: Centreline, lungs: Field, landmarks: Landmarks
) -> tuple[Occupancy, Occupancy]:
    """Lumen and wall (uint8 shares on `grid`): trachea, main bronchi, and a bronchus beside each larger artery."""
    lumen, wall = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    carina = landmarks.fork_mm + mm(rng.uniform(16, 24), rng.uniform(20, 28), -6)
    carina[2] *= 0.5
    trachea = np.stack([carina + mm(140, -18, 2), carina + mm(60, -8, 2), carina])
    beside = _beside(arteries.points_mm, arteries)
    mains = []
    for hilum, node, tilt in zip(landmarks.hila_mm, landmarks.hilum_nodes, (-10.0, -16.0), strict=True):
        goal = beside[node] if node >= 0 else hilum + mm(-10, 6, 0)
        mains.append(np.stack([carina, carina + 0.45 * (goal - carina) + mm(tilt * 0.4, 4, 0), goal]))
    for path, radii in (
        (trachea, np.array([8.5, 8.5, 8.0])),
        (mains[0], np.array([7.5, 6.5, 5.0])),
        (mains[1], np.array([7.0, 6.0, 4.5])),
    ):
        paint_tube(lumen, grid, path, radii)
        paint_tube(wall, grid, path, radii + 1.4)
    if not len(arteries.points_mm):
        return lumen, wall
    in_lung = lungs.at(arteries.points_mm) > 0.5
    share = rng.uniform(0.6, 0.95)
    for branch in arteries.branches:
        keep = branch[in_lung[branch] & (arteries.radii_mm[branch] > 1.4)][::3]
        if len(keep) < 3:
            continue
        radii = np.clip(share * arteries.radii_mm[keep], 0.8, 4.5)
        if rng.random() > 0.06:  # the others are plugged with mucus
            paint_tube(lumen, grid, beside[keep], radii)
        paint_tube(wall, grid, beside[keep], radii + np.clip(0.25 * radii, 0.45, 1.2))
    return lumen, wall


def _beside(points: Points, arteries: Centreline) -> Points:
    """For each centreline point a place beside the artery, at the side of the bronchus: medial and posterior."""
    if not len(points):
        return points
    along = points - points[np.maximum(arteries.parents, 0)]
    along = _averaged(along, arteries)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    toward = np.stack([np.full(len(points), 0.15), np.full(len(points), 0.7), -0.7 * np.sign(points[:, 2])], axis=1)
    aside = toward - (toward * along).sum(axis=1, keepdims=True) * along
    aside /= np.maximum(np.linalg.norm(aside, axis=1, keepdims=True), 1e-6)
    return np.asarray(points + aside * (1.75 * arteries.radii_mm + 1.2)[:, None])


def _averaged(values: Points, arteries: Centreline) -> Points:
    """Each point's value averaged with those of the next 12 toward the root."""
    total, here = values.copy(), np.arange(len(values))
    for _ in range(12):
        here = np.maximum(arteries.parents[here], 0)
        total += values[here]
    return total / 13
