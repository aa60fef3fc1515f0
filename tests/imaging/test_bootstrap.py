from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from imaging.bootstrap import Statistic, Weights, estimates, weighted_mean


def _mean_of(values: ArrayLike) -> Statistic:
    return lambda weights: [weighted_mean(values, weights)]


def test_the_value_is_the_plain_statistic_and_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(10.0)
    (first,) = estimates(_mean_of(values), 10)
    (again,) = estimates(_mean_of(values), 10)
    assert first == again
    assert first.value == 4.5
    assert first.low < 4.5 < first.high


def test_the_interval_of_a_mean_is_the_central_limit_theorems() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    (found,) = estimates(_mean_of(values), 400, resamples=4000)
    half = stats.norm.ppf(0.975) * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_about_95_of_100_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for seed in range(300):
        values = rng.exponential(1.0, 60)
        (found,) = estimates(_mean_of(values), 60, resamples=300, seed=seed)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 300 <= 0.98  # a skewed population of 60 covers a little less than the nominal 0.95


def test_a_paired_difference_is_narrower_than_two_separate_intervals() -> None:
    rng = np.random.default_rng(5)
    scan = rng.normal(0.0, 1.0, 80)
    one, other = scan + 0.1, scan + rng.normal(0.0, 0.05, 80)

    def difference(weights: Weights) -> list[float]:
        return [weighted_mean(one, weights) - weighted_mean(other, weights)]

    (paired,) = estimates(difference, 80)
    (alone,) = estimates(_mean_of(one), 80)
    assert paired.low > 0.05
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_what_cannot_be_measured_is_nan_and_resamples_without_it_are_left_out() -> None:
    absent, rare = estimates(lambda w: [math.nan, weighted_mean([2.0, 4.0], w, [True, False])], 2)
    assert not absent.known
    assert math.isnan(absent.low)
    assert (rare.value, rare.low, rare.high) == (2.0, 2.0, 2.0)
    (none,) = estimates(_mean_of([]), 0)
    assert not none.known
