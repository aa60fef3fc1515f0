from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from imaging.metrics import LesionMatch, match_lesions, overlapping_pairs, scan_auc, voxel_dice


def test_dice_by_hand() -> None:
    one, other = np.zeros((2, 4), dtype=int), np.zeros((2, 4), dtype=int)
    one[0, :3] = 1
    other[0, 1:] = 7
    assert voxel_dice(one, other) == 2 * 2 / 6
    assert voxel_dice(np.zeros(3), np.zeros(3)) == 1.0


def test_lesions_match_by_overlap_not_by_touch() -> None:
    truth, predicted = np.zeros((1, 60), dtype=np.uint16), np.zeros((1, 60), dtype=np.uint16)
    truth[0, 0:20] = 1  # found by prediction 1
    truth[0, 30:50] = 2  # grazed by prediction 2: one voxel of twenty
    predicted[0, 5:15] = 1
    predicted[0, 49:] = 2
    predicted[0, 22:25] = 3
    assert match_lesions(truth, predicted) == LesionMatch(found=(1,), missed=(2,), false=(2, 3))


def test_one_prediction_may_cover_two_lesions() -> None:
    truth = np.array([[1, 1, 0, 2, 2]])
    assert match_lesions(truth, np.ones((1, 5), dtype=int)) == LesionMatch(found=(1, 2), missed=(), false=())


def test_pairs_name_which_prediction_covers_which_lesion() -> None:
    truth = np.array([[1, 1, 0, 2, 2, 0, 3]])
    predicted = np.array([[4, 4, 4, 4, 4, 5, 0]])
    assert overlapping_pairs(truth, predicted) == ((1, 4), (2, 4))


@pytest.mark.parametrize("seed", range(5))
def test_scan_auc_is_the_mann_whitney_statistic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = np.arange(40) % 3 == 0
    scores = np.round(rng.normal(positive * 0.8, 1.0), 1)  # rounded: ties
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert scan_auc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()))


def test_scan_auc_counts_a_scan_as_often_as_its_weight_says() -> None:
    scores, positive = [0.1, 0.4, 0.35, 0.8], [False, False, True, True]
    twice = scan_auc([0.1, 0.4, 0.4, 0.35, 0.8], [False, False, False, True, True])
    assert scan_auc(scores, positive, [1, 2, 1, 1]) == pytest.approx(twice)


def test_scan_auc_needs_both_kinds_of_scan() -> None:
    assert np.isnan(scan_auc([0.2, 0.9], [True, True]))
