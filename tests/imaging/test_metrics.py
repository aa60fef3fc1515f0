from __future__ import annotations

import numpy as np

from imaging.metrics import LesionMatch, match_lesions, voxel_dice


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
