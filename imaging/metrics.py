"""How well a segmentation agrees with the truth. Every metric names its level: voxel, lesion, scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Two lesions are the same one when this share of the smaller lies in the other: touching at a corner is no hit.
_MATCHING_OVERLAP = 0.1


@dataclass(frozen=True, slots=True)
class LesionMatch:
    """Labels of the truth that were found and missed, and of predictions that match no truth."""

    found: tuple[int, ...]
    missed: tuple[int, ...]
    false: tuple[int, ...]


def voxel_dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    """2|A∩B| / (|A|+|B|) over non-zero voxels; 1.0 where both are empty."""
    a, b = one != 0, other != 0
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 1.0 if total == 0 else 2.0 * int(np.count_nonzero(a & b)) / total


def match_lesions(truth_labelmap: NDArray[Any], predicted_labelmap: NDArray[Any]) -> LesionMatch:
    """Match two label maps of one shape: a pair shares at least a tenth of the smaller one's voxels."""
    truth_sizes = np.bincount(truth_labelmap.ravel())
    predicted_sizes = np.bincount(predicted_labelmap.ravel())
    both = (truth_labelmap > 0) & (predicted_labelmap > 0)
    pairs, overlaps = np.unique(
        np.stack((truth_labelmap[both], predicted_labelmap[both])).astype(np.int64), axis=1, return_counts=True
    )
    matching = [
        (int(truth), int(predicted))
        for (truth, predicted), overlap in zip(pairs.T, overlaps, strict=True)
        if overlap >= _MATCHING_OVERLAP * min(truth_sizes[truth], predicted_sizes[predicted])
    ]
    truths = [int(label) for label in np.flatnonzero(truth_sizes) if label]
    predictions = [int(label) for label in np.flatnonzero(predicted_sizes) if label]
    hit_truths = {truth for truth, _ in matching}
    hit_predictions = {predicted for _, predicted in matching}
    return LesionMatch(
        found=tuple(label for label in truths if label in hit_truths),
        missed=tuple(label for label in truths if label not in hit_truths),
        false=tuple(label for label in predictions if label not in hit_predictions),
    )
