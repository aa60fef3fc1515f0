"""How far a figure would move with other scans of the same kind: the percentile bootstrap over scans.

Lesions of one scan share its anatomy, contrast and noise, so scans are drawn, never lesions (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, ch. 13). A statistic here is a function of how often each scan counts, which makes
the plain figure, its resamples and paired differences the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = NDArray[np.float64]
Statistic = Callable[[Weights], Sequence[float]]

RESAMPLES = 1000
SEED = 20
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its confidence interval; nan where there was nothing to measure it on."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.value))


def estimates(
    statistic: Statistic,
    scans: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    confidence: float = CONFIDENCE,
) -> tuple[Estimate, ...]:
    """Values and percentile intervals of a statistic over `scans` scans.

    Args:
        statistic: weights (scans,), how often each scan counts, to values; nan: not defined for these weights. Such
            resamples are left out of the interval.
        seed: decides the resamples, so that two statistics with one seed and number of scans are paired.

    A difference of two methods on the same scans is the statistic `lambda w: one(w) - other(w)`.
    """
    plain = np.asarray(statistic(np.ones(scans)), dtype=np.float64)
    if scans == 0:
        return tuple(Estimate(float(value), float("nan"), float("nan")) for value in plain)
    drawn = np.random.default_rng(seed).multinomial(scans, np.full(scans, 1.0 / scans), size=resamples)
    resampled = np.stack([np.asarray(statistic(weights), dtype=np.float64) for weights in drawn.astype(np.float64)])
    tail = (1.0 - confidence) / 2.0
    return tuple(_estimate(value, column, tail) for value, column in zip(plain, resampled.T, strict=True))


def _estimate(value: float, resampled: Weights, tail: float) -> Estimate:
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or defined.size == 0:
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(defined, (tail, 1.0 - tail))
    return Estimate(float(value), float(low), float(high))


def weighted_mean(values: ArrayLike, weights: Weights, chosen: ArrayLike | None = None) -> float:
    """Mean of the finite `values`, of the `chosen` scans alone if given; nan where none of them has weight."""
    value = np.asarray(values, dtype=np.float64)
    counts = np.where(np.isfinite(value), weights, 0.0)
    if chosen is not None:
        counts = np.where(np.asarray(chosen, dtype=bool), counts, 0.0)
    total = float(counts.sum())
    return float((np.nan_to_num(value) * counts).sum()) / total if total else float("nan")
