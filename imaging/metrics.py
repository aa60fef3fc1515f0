"""How well a segmentation agrees with the truth. Every metric names its level: voxel, lesion, scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


def overlapping_pairs(truth_labelmap: NDArray[Any], predicted_labelmap: NDArray[Any]) -> tuple[tuple[int, int], ...]:
    """(truth, prediction) labels of two maps of one shape that share at least a tenth of the smaller one's voxels."""
    truth_sizes = np.bincount(truth_labelmap.ravel())
    predicted_sizes = np.bincount(predicted_labelmap.ravel())
    both = (truth_labelmap > 0) & (predicted_labelmap > 0)
    pairs, overlaps = np.unique(
        np.stack((truth_labelmap[both], predicted_labelmap[both])).astype(np.int64), axis=1, return_counts=True
    )
    return tuple(
        (int(truth), int(predicted))
        for (truth, predicted), overlap in zip(pairs.T, overlaps, strict=True)
        if overlap >= _MATCHING_OVERLAP * min(truth_sizes[truth], predicted_sizes[predicted])
    )


def match_lesions(truth_labelmap: NDArray[Any], predicted_labelmap: NDArray[Any]) -> LesionMatch:
    """Match two label maps of one shape by `overlapping_pairs`."""
    matching = overlapping_pairs(truth_labelmap, predicted_labelmap)
    truths = [int(label) for label in np.flatnonzero(np.bincount(truth_labelmap.ravel())) if label]
    predictions = [int(label) for label in np.flatnonzero(np.bincount(predicted_labelmap.ravel())) if label]
    hit_truths = {truth for truth, _ in matching}
    hit_predictions = {predicted for _, predicted in matching}
    return LesionMatch(
        found=tuple(label for label in truths if label in hit_truths),
        missed=tuple(label for label in truths if label not in hit_truths),
        false=tuple(label for label in predictions if label not in hit_predictions),
    )


def scan_auc(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve over scans: how often a scan with emboli scores above one without, ties half.

    Args:
        scores: (scans,), any monotone measure of suspicion.
        positive: (scans,) bool, whether the scan holds an embolus.
        weights: (scans,) how often each scan counts; None: once. nan where one of the two kinds has no weight.
    """
    score, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    weight = np.ones(score.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    pair_weights = weight[is_positive][:, None] * weight[~is_positive][None]
    difference = score[is_positive][:, None] - score[~is_positive][None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    total = float(pair_weights.sum())
    return float((pair_weights * wins).sum()) / total if total else float("nan")
