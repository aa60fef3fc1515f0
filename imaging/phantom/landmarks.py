"""Where the pulmonary trunk forks and the arteries enter the lungs: what the organs between the lungs go by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imaging.phantom.centreline import Centreline
from imaging.phantom.grid import Field, Points, mm


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """zyx positions in mm: fork of the pulmonary trunk, and where the arteries enter the lungs (right, left)."""

    fork_mm: Points
    hila_mm: tuple[Points, Points]
    hilum_nodes: tuple[int, int]


def find_landmarks(arteries: Centreline, lungs: Field) -> Landmarks:
    """Read them off the artery tree; a typical place where the tree does not show one (partial coverage)."""
    fork = mm(8, -12, 8)
    hila = [mm(-2, 4, -48), mm(8, 20, 48)]
    nodes = [-1, -1]
    if len(arteries.points_mm):
        in_lung = lungs.at(arteries.points_mm) > 0.5
        for side, sign in enumerate((-1, 1)):
            mine = np.flatnonzero(in_lung & (arteries.points_mm[:, 2] * sign > 15))
            if mine.size:
                nodes[side] = int(mine[np.argmax(arteries.radii_mm[mine])])
                hila[side] = arteries.points_mm[nodes[side]]
        if min(nodes) >= 0:
            right = set(arteries.upstream(nodes[0]))
            fork = arteries.points_mm[next(node for node in arteries.upstream(nodes[1]) if node in right)]
    return Landmarks(fork, (hila[0], hila[1]), (nodes[0], nodes[1]))
