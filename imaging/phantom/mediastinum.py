"""Between the lungs, besides heart and great vessels: branches, walls, azygos, oesophagus, effusion, nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imaging.phantom.blood import Opacification
from imaging.phantom.grid import Grid, Points, mm
from imaging.phantom.painting import Occupancy, fill_ellipsoid, fill_tube
from imaging.phantom.spine import Spine

NODE_STATIONS_MM = ((42, 8, -22), (14, 0, 22), (0, 24, -2), (34, -22, 6), (-10, 20, -30), (-4, 28, 30))
WALL_HU = 45.0


def fill_mediastinum(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    fork: Points,
    spine: Spine,
    heart: tuple[Points, Points],
) -> None:
    """Paint what lies around heart and great vessels, before these are painted over it; in place, outside the lung.

    Args:
        fork: of the pulmonary trunk, zyx mm. `heart`: centre and semi-axes of its muscle.
    """
    _pericardium(rng, hu, grid, lung_share, heart)
    _oesophagus(rng, hu, grid, lung_share, fork, spine)
    _azygos(rng, hu, grid, lung_share, blood, fork, spine)
    _branches(rng, hu, grid, lung_share, blood, fork)
    _lower_cava(rng, hu, grid, lung_share, fork)
    _nodes(rng, hu, grid, lung_share, fork)


def _pericardium(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    heart: tuple[Points, Points],
) -> None:
    centre, semi = heart
    fill_ellipsoid(hu, grid, centre, semi + rng.uniform(0.5, 3.5), rng.uniform(-110, -60), lung_share)
    if rng.random() < 0.2:
        fill_ellipsoid(hu, grid, centre + mm(-2, 3, 0), semi + rng.uniform(3, 9), rng.uniform(3, 35), lung_share)


def _oesophagus(
    rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, lung_share: Occupancy, fork: Points, spine: Spine
) -> None:
    z = np.arange(fork[0] - 160, fork[0] + 130, 12.0)
    y, x = spine.centre_at(z)
    wander = rng.normal(0, 1.5, (2, len(z)))
    path = np.stack([z, y - spine.radius_mm.mean() - rng.uniform(8, 12) + wander[0], x + 7 + wander[1]], axis=1)
    radii = np.clip(rng.uniform(5.5, 8.5) + rng.normal(0, 0.6, len(z)), 4, 10)
    fill_tube(hu, grid, path, radii, WALL_HU, lung_share)
    kind = rng.random()
    if kind < 0.75:
        content = -900.0 if kind < 0.45 else rng.uniform(0, 60)
        first = int(rng.integers(0, len(z) // 2))
        seen = slice(first, first + int(rng.integers(4, len(z) - first)))
        fill_tube(hu, grid, path[seen], radii[seen] * rng.uniform(0.2, 0.6), content, lung_share)
    if rng.random() < 0.1:  # hiatal hernia
        fill_ellipsoid(hu, grid, path[5] + mm(0, -10, 4), rng.uniform(14, 28, 3), rng.uniform(10, 60), lung_share)


def _azygos(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    fork: Points,
    spine: Spine,
) -> None:
    z = np.arange(fork[0] - 170, fork[0] + 30, 14.0)
    y, x = spine.centre_at(z)
    column = np.stack([z, y - spine.radius_mm.mean() - 4.0, x - rng.uniform(1, 9)], axis=1)
    arch = fork + np.array([(38, 18, -30), (42, 2, -40)], float)
    path = np.concatenate([column, arch])
    radius = rng.uniform(2.2, 5.5)
    value = rng.choice([rng.uniform(40, 120), blood.aorta * rng.uniform(0.5, 0.9), blood.cava])
    fill_tube(hu, grid, path, np.linspace(0.6, 1.1, len(path)) * radius, float(value), lung_share)
    half = path[: len(z) // 2] + mm(0, 4, 12)  # the hemiazygos
    fill_tube(hu, grid, half, np.full(len(half), 0.5 * radius), float(value), lung_share)


def _branches(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    fork: Points,
) -> None:
    """Arteries of the aortic arch; the veins that form the superior cava, one dense with contrast, one without."""
    arteries = (
        (((46, -4, -8), (75, -8, -16), (130, -4, -30)), 5.8),
        (((50, 8, 2), (85, 2, 8), (130, -2, 16)), 3.6),
        (((50, 16, 8), (82, 14, 18), (130, 4, 42)), 4.6),
    )
    for course, radius in arteries:
        points = fork + np.array(course, float) + rng.normal(0, 1.5, (3, 3))
        fill_tube(hu, grid, points, np.full(3, radius + 1.0), WALL_HU, lung_share)
        fill_tube(hu, grid, points, np.full(3, radius) * rng.uniform(0.85, 1.15), blood.aorta, lung_share)
    injected = int(rng.integers(2))
    right = ((86, 2, -34), (112, -2, -40), (132, -6, -62), (138, -4, -100))
    left = ((78, -2, -35), (84, -18, -8), (100, -18, 26), (126, -10, 58), (136, -4, 100))
    for index, vein in enumerate((np.array(right, float), np.array(left, float))):
        points = fork + vein + rng.normal(0, 1.5, 3)
        value = blood.cava if index == injected else rng.uniform(35, 140)
        fill_tube(hu, grid, points, rng.uniform(5, 7.5) * np.ones(len(points)), value, lung_share)


def _lower_cava(
    rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, lung_share: Occupancy, fork: Points
) -> None:
    """Below the heart, as a rule without contrast yet, or with some that has flowed back."""
    path = fork + np.array([(-80, -4, -34), (-115, 8, -30), (-190, 14, -26)], float)
    value = rng.choice([rng.uniform(40, 120), rng.uniform(120, 350)])
    fill_tube(hu, grid, path, rng.uniform(9, 14) * np.array([1.1, 1.0, 0.9]), float(value), lung_share)


def _nodes(rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, lung_share: Occupancy, fork: Points) -> None:
    """Nodes at their usual stations, as bright as clot; the larger ones with fat in their hilum."""
    for station in NODE_STATIONS_MM:
        for _ in range(int(rng.poisson(1.2))):
            centre = fork + np.array(station) + rng.normal(0, 6, 3)
            semi = rng.uniform(1.8, 6.5) * rng.uniform(0.6, 1.5, 3)
            fill_ellipsoid(hu, grid, centre, semi, rng.uniform(40, 95), lung_share)
            if semi.min() > 3 and rng.random() < 0.4:
                fill_ellipsoid(hu, grid, centre + 0.3 * semi, 0.45 * semi, -70.0, lung_share)


def fill_diseased_aorta(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    course: tuple[Points, Points],
    age: float,
) -> None:
    """The aorta with its wall; in some with mural thrombus, a dissection's flap and false lumen, or calcified plaques.

    Args:
        course: (n, 3) points zyx mm and (n,) radii. `age`: 0..1, plaques and thrombus come with it.
    """
    points, radii = course
    fill_tube(hu, grid, points, radii + rng.uniform(1.0, 2.2), WALL_HU + 10, lung_share)
    aside = rng.normal(size=3) * np.array([0.3, 1, 1])
    aside /= np.linalg.norm(aside)
    fate = rng.random()
    if fate < 0.06 + 0.06 * age:  # mural thrombus: the lumen is narrower and lies aside
        narrow = rng.uniform(0.65, 0.88)
        fill_tube(hu, grid, points, radii, rng.uniform(35, 70), lung_share)
        points, radii = points + aside * ((1 - narrow) * radii)[:, None], radii * narrow
    fill_tube(hu, grid, points, radii, blood.aorta, lung_share)
    if fate > 0.94:  # dissection: a dark flap around a second, as a rule weaker, lumen
        narrow = rng.uniform(0.4, 0.65)
        false = points + aside * ((1 - narrow) * radii)[:, None]
        fill_tube(hu, grid, false, radii * narrow + 0.9, 70.0, lung_share)
        fill_tube(hu, grid, false, radii * narrow - 0.4, blood.aorta * rng.uniform(0.2, 1.0), lung_share)
    for _ in range(int(rng.poisson(14 * max(0.0, age - 0.35)))):
        node = int(rng.integers(len(points)))
        around = rng.normal(size=3) * np.array([0.3, 1, 1])
        around /= np.linalg.norm(around)
        centre = points[node] + around * radii[node] + mm(rng.uniform(-9, 9), 0, 0)
        fill_ellipsoid(hu, grid, centre, rng.uniform(0.7, 3.0, 3), rng.uniform(450, 1100), lung_share)


def fill_appendage(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    fork: Points,
) -> None:
    """Appendage of the left atrium: contrast comes late to its tip, which then looks like clot."""
    path = fork + np.array([(-22, 14, 24), (-16, 0, 38), (-14, -14, 42)], float) + rng.normal(0, 2, (3, 3))
    fill_tube(hu, grid, path, np.array([9.0, 8.0, 5.0]), blood.vein, lung_share)
    if rng.random() < 0.4:
        fill_tube(hu, grid, path[1:], np.array([5.0, 5.0]), blood.vein * rng.uniform(0.25, 0.7), lung_share)
