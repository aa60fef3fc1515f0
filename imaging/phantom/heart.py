"""Heart, aorta and superior vena cava, arranged around the fork of the pulmonary trunk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imaging.phantom.blood import Opacification
from imaging.phantom.body import Body
from imaging.phantom.centreline import Centreline
from imaging.phantom.grid import Field, Grid, Points, mm
from imaging.phantom.mediastinum import fill_appendage, fill_diseased_aorta, fill_mediastinum
from imaging.phantom.painting import Occupancy, fill_ellipsoid, fill_tube

Chambers = dict[str, tuple[Points, Points]]


def fill_heart_and_great_vessels(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    chambers: Chambers,
    fork: Points,
    body: Body,
) -> None:
    """Paint heart, aorta and superior vena cava with what surrounds them into `hu`, where there is no lung.

    Args:
        lung_share: uint8 zyx, how much of each voxel is lung.
        fork: of the pulmonary trunk, zyx mm.
        body: knows the spine, the course of the descending aorta beside it, and the patient's age.
    """
    fill_mediastinum(rng, hu, grid, lung_share, blood, fork, body.spine, chambers["muscle"])
    values = {
        "muscle": blood.muscle,
        "right_atrium": blood.artery * rng.uniform(0.8, 1.3),
        "right_ventricle": blood.artery * rng.uniform(0.95, 1.05),
        "left_ventricle": blood.aorta,
    }
    for name, (centre, semi) in chambers.items():
        fill_ellipsoid(hu, grid, centre, semi, values[name], lung_share)
    _inflow(rng, hu, grid, lung_share, blood, chambers)
    fill_appendage(rng, hu, grid, lung_share, blood, fork)
    course = _aorta(rng, fork, body.aorta_mm)
    fill_diseased_aorta(rng, hu, grid, lung_share, blood, course, body.bone.age)
    cava = superior_vena_cava(fork)
    radii = rng.uniform(6.5, 9.5) * np.ones(4)
    fill_tube(hu, grid, cava, radii, blood.cava, lung_share)
    if rng.random() < 0.5:  # contrast runs along one side, blood without it along the other
        plain = cava + mm(0, *rng.uniform(-4, 4, 2))
        fill_tube(hu, grid, plain, 0.5 * radii, blood.cava * rng.uniform(0.2, 0.7), lung_share)


def _inflow(
    rng: np.random.Generator,
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    chambers: Chambers,
) -> None:
    """Blood without contrast in the right atrium, and papillary muscles and trabeculae in the ventricles."""
    centre, semi = chambers["right_atrium"]
    for _ in range(int(rng.integers(0, 4))):
        place = centre + semi * rng.uniform((-0.7, -0.4, -0.4), (0.1, 0.4, 0.4))
        fill_ellipsoid(
            hu, grid, place, semi * rng.uniform(0.12, 0.4, 3), blood.artery * rng.uniform(0.35, 0.8), lung_share
        )
    for name in ("right_ventricle", "left_ventricle"):
        centre, semi = chambers[name]
        for _ in range(int(rng.integers(2, 9))):
            out = rng.normal(size=3)
            place = centre + 0.85 * semi * out / np.linalg.norm(out)
            inward = place + 0.4 * (centre - place) + rng.normal(0, 4, 3)
            fill_tube(hu, grid, np.stack([place, inward]), rng.uniform(1.2, 4.5, 2), blood.muscle, lung_share)


def join_trunk_to_ventricle(
    hu: NDArray[np.float32],
    grid: Grid,
    lung_share: Occupancy,
    blood: Opacification,
    arteries: Centreline,
    lungs: Field,
    chambers: Chambers,
) -> None:
    """Without the outflow tract the wall at the trunk's lower end would lie in bright blood as a clot does."""
    outflow = _outflow_tract(arteries, lungs, chambers["right_ventricle"][0])
    if outflow is not None:
        fill_tube(hu, grid, *outflow, blood.artery, lung_share)


def heart_chambers(rng: np.random.Generator, fork: Points, lungs: Field) -> Chambers:
    """Centre and semi-axes (zyx, mm) of each chamber and of the muscle around them."""
    shift = rng.normal(0, 3, 3)
    height = lungs.grid.shape[0] * lungs.grid.spacing_mm[0]
    size = rng.uniform(0.9, 1.1) * float(np.clip(height / 245, 0.75, 1.05))
    places = {
        "muscle": ((-64, -18, 10), (50, 48, 62)),
        "right_atrium": ((-58, -14, -36), (30, 26, 22)),
        "right_ventricle": ((-64, -36, 4), (30, 22, 36)),
        "left_ventricle": ((-70, -8, 42), (34, 22, 22)),
    }
    middle = fork + shift
    return {name: (middle + size * np.array(c), size * np.array(s, float)) for name, (c, s) in places.items()}


def _aorta(rng: np.random.Generator, fork: Points, descending: Points) -> tuple[Points, NDArray[np.float64]]:
    """Points and radii from the root over the arch and along the descending course to the bottom."""
    radius = rng.uniform(12.0, 17.0)
    arch = [(-48, -8, -8), (-25, -14, -22), (0, -14, -27), (28, -10, -24), (46, 2, -10), (50, 18, 6)]
    path = np.concatenate([fork + np.array(arch, float), descending[descending[:, 0] < fork[0] + 36]])
    taper = np.interp(np.arange(len(path)), [0, 6, len(path)], [1.1, 0.86, 0.72])
    return path, radius * taper


def _outflow_tract(arteries: Centreline, lungs: Field, ventricle: Points) -> tuple[Points, NDArray[np.float64]] | None:
    """From the lower end of the pulmonary trunk into the right ventricle; None where no trunk is in view."""
    if not len(arteries.points_mm):
        return None
    wide = np.flatnonzero((arteries.radii_mm > 8) & (lungs.at(arteries.points_mm) < 0))
    if not wide.size:
        return None
    base = wide[np.argmin(arteries.points_mm[wide, 0] + arteries.points_mm[wide, 1])]
    return np.stack([arteries.points_mm[base], ventricle]), np.array([0.9, 1.1]) * arteries.radii_mm[base]


def superior_vena_cava(fork: Points) -> Points:
    """Its course into the right atrium, (4, 3) zyx mm."""
    return np.asarray(fork + np.array([(90, 2, -34), (50, -4, -40), (10, -4, -44), (-35, -8, -44)], float))
