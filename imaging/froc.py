"""Free-response ROC: how many emboli are found at how many false candidates per scan.

The rules are the CAD-PE challenge's (Gonzalez et al., arXiv 2003.13440): a candidate is a point with a score; inside a
lesion it hits, elsewhere it is a false positive; further hits on the same lesion count neither way. A tolerance widens
the lesions; those that run together become one, so there are fewer lesions at 5 mm than at 0 mm, and sensitivities at
different tolerances have different denominators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

from imaging.bootstrap import Weights

Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class ScanCandidates:
    """What was suspected in one scan.

    Attributes:
        scores: one for each candidate.
        hits: for each candidate the labels of the lesions it hits; none: a false positive. A point hits at most one
            lesion, a mask may cover several.
        lesions: labels of the lesions that count. A hit on another one is neither found nor false: a curve over small
            emboli must not blame candidates that found large ones.
    """

    scores: tuple[float, ...]
    hits: tuple[tuple[int, ...], ...]
    lesions: tuple[int, ...]


class Froc:
    """The curve of a sample of scans, for any weighting of them.

    Every lesion contributes one event at the best score among its hits, every false candidate one at its own score;
    a threshold takes in all events at or above it.
    """

    def __init__(self, scans: Sequence[ScanCandidates]) -> None:
        events = [(score, index, found) for index, scan in enumerate(scans) for score, found in _events(scan)]
        events.sort(key=lambda event: -event[0])
        score = np.array([event[0] for event in events], dtype=np.float64)
        self._scan = np.array([event[1] for event in events], dtype=np.intp)
        self._found = np.array([event[2] for event in events], dtype=bool)
        self._last_of_tie = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])
        self._lesions = np.array([len(scan.lesions) for scan in scans], dtype=np.float64)
        self.thresholds = score[self._last_of_tie]
        self.scans = len(scans)

    @property
    def lesions(self) -> int:
        return int(self._lesions.sum())

    def curve(self, weights: Weights | None = None) -> Curve:
        """(threshold, false positives per scan, sensitivity), falling thresholds; sensitivity nan without lesions.

        Args:
            weights: (scans,) how often each scan counts; None: once.
        """
        weight = np.ones(self.scans) if weights is None else weights
        counts = weight[self._scan]
        false = np.cumsum(np.where(self._found, 0.0, counts))[self._last_of_tie]
        found = np.cumsum(np.where(self._found, counts, 0.0))[self._last_of_tie]
        scans, lesions = float(weight.sum()), float((weight * self._lesions).sum())
        per_scan = false / scans if scans else np.full_like(false, np.nan)
        return self.thresholds, per_scan, found / lesions if lesions else np.full_like(found, np.nan)

    def sensitivity_at(self, false_positives_per_scan: Sequence[float], weights: Weights | None = None) -> list[float]:
        """Sensitivity at the lowest threshold that keeps to each rate; nothing is interpolated between thresholds.

        nan without lesions; 0 where the first threshold already exceeds the rate.
        """
        weight = np.ones(self.scans) if weights is None else weights
        if not (weight * self._lesions).sum():
            return [float("nan")] * len(false_positives_per_scan)
        _, per_scan, sensitivity = self.curve(weight)
        # a rate that is met exactly is met, whatever the last bit of the division says
        reached = np.searchsorted(per_scan, np.asarray(false_positives_per_scan) * (1 + 1e-9), side="right")
        return [float(sensitivity[count - 1]) if count else 0.0 for count in reached]

    def operating_point(self, threshold: float, weights: Weights | None = None) -> tuple[float, float]:
        """(false positives per scan, sensitivity) of what scores `threshold` or more."""
        thresholds, per_scan, sensitivity = self.curve(weights)
        count = int(np.count_nonzero(thresholds >= threshold))
        if count:
            return float(per_scan[count - 1]), float(sensitivity[count - 1])
        weight = np.ones(self.scans) if weights is None else weights
        return 0.0, 0.0 if (weight * self._lesions).sum() else float("nan")


def _events(scan: ScanCandidates) -> Iterable[tuple[float, bool]]:
    best: dict[int, float] = {}
    for score, hits in zip(scan.scores, scan.hits, strict=True):
        if not hits:
            yield score, False
        for label in hits:
            best[label] = max(score, best.get(label, score))
    for label in scan.lesions:
        if label in best:
            yield best[label], True


def lesions_within(
    labelmap: NDArray[Any], spacing_zyx_mm: tuple[float, float, float], tolerance_mm: float
) -> NDArray[np.uint32]:
    """The lesions a candidate point is compared with.

    Args:
        labelmap: (z, y, x), one value per lesion, 0 background.
        tolerance_mm: 0: the labels as they are. Else all lesions together are dilated with a ball of this radius
            (voxel centres no farther than it from a lesion's) and labelled anew, 26 neighbours.
    """
    if tolerance_mm <= 0:
        return labelmap.astype(np.uint32)
    wide = np.zeros(labelmap.shape, dtype=bool)
    margin = [int(np.ceil(tolerance_mm / step)) for step in spacing_zyx_mm]
    for box in find_objects(labelmap):
        if box is None:
            continue
        around = tuple(slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margin, strict=True))
        distance_mm = distance_transform_edt(labelmap[around] == 0, sampling=spacing_zyx_mm)
        wide[around] |= distance_mm <= tolerance_mm + 1e-6
    return np.asarray(cc3d.connected_components(wide, connectivity=26, out_dtype=np.uint32), dtype=np.uint32)


def labels_at(labelmap: NDArray[Any], index_zyx: NDArray[np.float64]) -> list[int]:
    """The label at each (n, 3) voxel index, rounded to the nearest voxel; 0 outside the map."""
    nearest = np.rint(index_zyx).astype(int).reshape(-1, 3)
    inside = np.all((nearest >= 0) & (nearest < labelmap.shape), axis=1)
    return [int(labelmap[tuple(voxel)]) if is_inside else 0 for voxel, is_inside in zip(nearest, inside, strict=True)]
