"""How much of each label every slice of a label map shows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_areas(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Voxels by slice and label, (z, highest label + 1); column 0, the background, is not counted.

    One pass over the label map, and another over the slices that have labels: most have none.
    """
    highest = [int(plane.max(initial=0)) for plane in labels]
    areas = np.zeros((len(labels), max(highest, default=0) + 1), dtype=np.int64)
    for plane, row, most in zip(labels, areas, highest, strict=True):
        if most:
            row[: most + 1] = np.bincount(plane[plane > 0], minlength=most + 1)
    return areas
