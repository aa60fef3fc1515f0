"""Where a vessel tree's middle runs, found from its mask: the way the emboli, bronchi and lymph nodes are placed.

The tree is grown as in TEASAR (Sato et al., Pacific Graphics 2000): cheapest paths from the root, the cost falling
with the distance to the wall, taken from the farthest voxel inward and joined where they meet an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra

from imaging.phantom.grid import Grid, Points
from imaging.phantom.painting import occupied_box
from imaging.volume import Mask


@dataclass(frozen=True, slots=True, eq=False)
class Centreline:
    """A rooted tree of points.

    Attributes:
        points_mm: (n, 3) zyx.
        radii_mm: (n,) distance to the wall.
        parents: (n,) index of the next point toward the root; -1 at the root. A parent comes before its children.
        branches: index arrays, each from the point on the older branch where it starts to its tip.
    """

    points_mm: Points
    radii_mm: NDArray[np.float64]
    parents: NDArray[np.intp]
    branches: tuple[NDArray[np.intp], ...]

    def upstream(self, node: int) -> list[int]:
        """The points from `node` to the root, both included."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(int(self.parents[path[-1]]))
        return path


def find_centreline(mask: Mask, grid: Grid, *, resolution_mm: float = 1.3, shortest_mm: float = 6.0) -> Centreline:
    """Centreline of the largest component of `mask`; an empty tree where the mask is empty.

    Args:
        mask: bool zyx on `grid`.
        resolution_mm: the mask is first pooled to about this spacing (maximum of each block, so no branch is cut).
        shortest_mm: side branches shorter than this plus the radius of their stem are noise of the surface.
    """
    box = occupied_box(mask)
    if box is None:
        empty = np.zeros(0, np.intp)
        return Centreline(np.zeros((0, 3)), np.zeros(0), empty, ())
    factors = [max(1, round(resolution_mm / s)) for s in grid.spacing_mm]
    pooled = np.pad(_pool(mask[box], factors), 1)
    pooled = np.asarray(cc3d.largest_k(pooled, k=1, connectivity=26)).astype(bool)
    spacing = np.asarray(grid.spacing_mm) * factors
    depth = ndimage.distance_transform_edt(pooled, sampling=spacing).astype(np.float32) - np.float32(spacing.min() / 2)
    voxels = np.argwhere(pooled)
    inside = depth[pooled]
    number = np.full(pooled.shape, -1, np.int32)
    number[pooled] = np.arange(len(voxels))
    root = int(np.argmax(inside))
    graph = _graph(voxels, number, inside, spacing)
    cost, before = dijkstra(graph, directed=False, indices=root, return_predecessors=True)
    first = np.asarray(grid.origin_mm) + [b.start * s for b, s in zip(box, grid.spacing_mm, strict=True)]
    offset = first + (np.asarray(factors) - 1) / 2 * grid.spacing_mm - spacing
    return _trace(voxels * spacing + offset, voxels, inside, cost, before, number, spacing, root, shortest_mm)


def _pool(mask: Mask, factors: list[int]) -> Mask:
    padding = [(0, -n % f) for n, f in zip(mask.shape, factors, strict=True)]
    padded = np.pad(mask, padding)
    z, y, x = (n // f for n, f in zip(padded.shape, factors, strict=True))
    return np.asarray(padded.reshape(z, factors[0], y, factors[1], x, factors[2]).any(axis=(1, 3, 5)))


def _graph(
    voxels: NDArray[np.intp], number: NDArray[np.int32], depth: NDArray[np.float32], spacing: NDArray[np.float64]
) -> sparse.csr_matrix:
    steps = [s for s in np.ndindex(3, 3, 3) if s > (1, 1, 1)]
    rows, columns, costs = [], [], []
    cost_here = 1.0 / (depth + 0.5) ** 2
    for step in np.asarray(steps) - 1:
        neighbour = number[tuple((voxels + step).T)]
        here = np.flatnonzero(neighbour >= 0)
        there = neighbour[here]
        rows.append(here)
        columns.append(there)
        costs.append((cost_here[here] + cost_here[there]) * float(np.linalg.norm(step * spacing)))
    n = len(voxels)
    return sparse.csr_matrix((np.concatenate(costs), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n))


def _trace(
    points: Points,
    voxels: NDArray[np.intp],
    depth: NDArray[np.float32],
    cost: NDArray[np.float64],
    before: NDArray[np.int32],
    number: NDArray[np.int32],
    spacing: NDArray[np.float64],
    root: int,
    shortest_mm: float,
) -> Centreline:
    covered = np.zeros(number.shape, bool)
    node_of = np.full(len(points), -1, np.intp)
    node_of[root] = 0
    order, parents, branches = [root], [-1], []
    for tip in np.argsort(-np.where(np.isfinite(cost), cost, -1)):
        if covered[tuple(voxels[tip])]:
            continue
        path = [int(tip)]
        while node_of[path[-1]] < 0:
            path.append(int(before[path[-1]]))
        path.reverse()
        length = float(np.linalg.norm(np.diff(points[path], axis=0), axis=1).sum())
        if length >= shortest_mm + depth[path[0]]:
            branch = [int(node_of[path[0]])]
            for voxel in path[1:]:
                node_of[voxel] = len(order)
                parents.append(branch[-1])
                branch.append(len(order))
                order.append(voxel)
            branches.append(np.asarray(branch, np.intp))
        for voxel in path:
            reach = np.ceil((1.3 * depth[voxel] + 2.0) / spacing).astype(int)
            low = np.maximum(voxels[voxel] - reach, 0)
            high = voxels[voxel] + reach + 1
            covered[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return Centreline(
        points[order].astype(np.float64),
        np.maximum(depth[order].astype(np.float64), 0.4),
        np.asarray(parents, np.intp),
        tuple(branches),
    )
