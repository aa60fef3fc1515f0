"""One crop made of several smaller ones: more small emboli in a batch without more voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from training.cases import Block

Shape = tuple[int, int, int]


def tile_edges(shape_zyx: Shape, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """Where a crop is cut into halves or quarters, for each axis (0, middle, end) or (0, end).

    One axis or two are cut, never one of less than 8 voxels: the three slices that a 2D network sees stay together.
    """
    wide = [axis for axis in range(3) if shape_zyx[axis] >= 8]
    cut = set(rng.permutation(wide)[: rng.integers(1, 3)].tolist())
    return tuple((0, n // 2, n) if axis in cut else (0, n) for axis, n in enumerate(shape_zyx))


def concatenated(edges: Sequence[Sequence[int]], draw: Callable[[Shape], Block]) -> Block:
    """The crop whose tiles are what `draw` gives for their shapes; labels lie where their voxels do."""
    shape = tuple(int(along[-1]) for along in edges)
    crop = Block(np.empty(shape, np.int16), np.empty(shape, np.uint8), np.empty(shape, bool))
    for corner in product(*(range(len(along) - 1) for along in edges)):
        spans = [(along[at], along[at + 1]) for along, at in zip(edges, corner, strict=True)]
        z, y, x = (stop - start for start, stop in spans)
        tile, drawn = crop.part(tuple(slice(start, stop) for start, stop in spans)), draw((z, y, x))
        tile.hu[:], tile.anatomy[:], tile.embolus[:] = drawn
    return crop
