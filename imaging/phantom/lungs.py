"""The shape of two lungs that nobody ever had: a rib cage, less mediastinum, heart, spine and diaphragm."""

from __future__ import annotations

import numpy as np

from imaging.phantom.grid import Field, Field3, Grid, smooth_noise

FIELD_SPACING_MM = 2.5


def grow_lungs(rng: np.random.Generator) -> Field:
    """A field that is positive inside the lungs, there about the distance to the pleura in mm."""
    height = rng.uniform(190, 245)
    half_width, half_depth = rng.uniform(120, 148), rng.uniform(80, 102)
    margin = 12.0
    size = np.array([height, 2 * half_depth, 2 * half_width]) + 2 * margin
    shape = tuple(int(n) for n in np.ceil(size / FIELD_SPACING_MM))
    grid = Grid.centred((shape[0], shape[1], shape[2]), (FIELD_SPACING_MM,) * 3, (0.0, 0.0, 0.0))
    z, y, x = grid.open_mesh()
    wobble = smooth_noise(rng, grid, 45.0)
    inside = _rib_cage(rng, z, y, x, height, half_depth, half_width)
    for organ in (
        _mediastinum(rng, z, y, x, half_depth),
        _heart(rng, z, y, x),
        _diaphragm(rng, z, y, x, height, half_depth, half_width),
    ):
        inside = np.minimum(inside, organ)
    return Field((inside + 1.5 * wobble).astype(np.float32), grid)


def _rib_cage(
    rng: np.random.Generator, z: Field3, y: Field3, x: Field3, height: float, half_depth: float, half_width: float
) -> Field3:
    up = np.clip((z + height / 2) / height, 0, 1)
    apex = np.clip((up - 0.3) / 0.7, 0, 1) ** rng.uniform(2.0, 2.8)
    scale = np.sqrt(np.clip(1.0 - apex, 1e-4, 1)) * (0.9 + 0.1 * np.clip(up / 0.3, 0, 1))
    power = rng.uniform(2.2, 2.7)
    radius = (np.abs(x / (half_width * scale)) ** power + np.abs(y / (half_depth * scale)) ** power) ** (1 / power)
    return np.asarray(np.minimum((1 - radius) * half_depth * scale, height / 2 - np.abs(z)))


def _mediastinum(rng: np.random.Generator, z: Field3, y: Field3, x: Field3, half_depth: float) -> Field3:
    middle = rng.uniform(24, 32)
    hilum = np.exp(-(((z - 5) / 40) ** 2))
    half = 7 + middle * np.exp(-(((y - 8) / 38) ** 2)) * (0.8 + 0.2 * hilum)
    plane = np.abs(x) - half
    spine = np.hypot(x, y - (half_depth - 18)) - rng.uniform(26, 31)
    aorta = np.hypot(x - 24, y - (half_depth - 45)) - rng.uniform(13, 18) + np.where(z > 45, 12, 0)
    # No lung is left in the cleft between spine and aorta.
    cleft = np.hypot(x - 11, y - (half_depth - 33)) - 12 + np.where(z > 45, 12, 0)
    return np.asarray(np.minimum(np.minimum(plane, spine), np.minimum(aorta, cleft)))


def _heart(rng: np.random.Generator, z: Field3, y: Field3, x: Field3) -> Field3:
    semi = rng.uniform((48, 44, 54), (58, 54, 68))
    radius = np.sqrt(((z + 58) / semi[0]) ** 2 + ((y + 24) / semi[1]) ** 2 + ((x - 16) / semi[2]) ** 2)
    return np.asarray((radius - 1) * float(semi.min()))


def _diaphragm(
    rng: np.random.Generator, z: Field3, y: Field3, x: Field3, height: float, half_depth: float, half_width: float
) -> Field3:
    dome = np.where(x < 0, rng.uniform(45, 72), rng.uniform(38, 62))
    across = ((np.abs(x) - 0.45 * half_width) / (0.62 * half_width)) ** 2
    along = ((y + 0.2 * half_depth) / (0.95 * half_depth)) ** 2
    return np.asarray((z + height / 2 - dome * np.clip(1 - across - along, -0.3, 1)) * 0.75)
