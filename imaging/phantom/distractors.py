"""What looks like an embolus and is none: lymph nodes beside the arteries, nodules in the lung."""

from __future__ import annotations

import numpy as np

from imaging.phantom.centreline import Centreline
from imaging.phantom.grid import Field, Grid
from imaging.phantom.painting import Occupancy, paint_ellipsoid


def paint_lymph_nodes(rng: np.random.Generator, grid: Grid, arteries: Centreline) -> Occupancy:
    """Nodes as bright as clot, but outside the artery's wall: what a network must not take for an embolus."""
    nodes = np.zeros(grid.shape, np.uint8)
    stems = np.flatnonzero((arteries.radii_mm > 2.5) & (arteries.radii_mm < 10))
    if stems.size == 0:
        return nodes
    for stem in rng.choice(stems, int(rng.integers(2, 12))):
        semi = rng.uniform(2.0, 6.5) * rng.uniform(0.7, 1.4, 3)
        aside = rng.normal(size=3)
        aside /= np.linalg.norm(aside)
        paint_ellipsoid(nodes, grid, arteries.points_mm[stem] + aside * (arteries.radii_mm[stem] + semi.min()), semi)
    return nodes


def paint_nodules(rng: np.random.Generator, grid: Grid, lungs: Field) -> Occupancy:
    """Round opacities in the lung of some patients."""
    nodules = np.zeros(grid.shape, np.uint8)
    if rng.random() > 0.3:
        return nodules
    places = np.argwhere(lungs.values > 1.0)
    for place in places[rng.integers(0, len(places), int(rng.integers(1, 5)))]:
        centre = place * np.asarray(lungs.grid.spacing_mm) + lungs.grid.origin_mm
        paint_ellipsoid(nodules, grid, centre, rng.uniform(2, 11) * rng.uniform(0.8, 1.25, 3))
    return nodules
