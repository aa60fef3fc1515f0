from __future__ import annotations

import cc3d
import numpy as np
import pytest

from imaging.components import components, drop_small_pieces


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 1.0])
@pytest.mark.parametrize("smallest", [1, 3, 40, 10**6])
def test_small_pieces_are_those_of_the_whole_mask(share: float, smallest: int) -> None:
    mask = np.zeros((20, 30, 25), dtype=bool)
    mask[4:15, 6:28, 3:20] = np.random.default_rng(2).random((11, 22, 17)) < share
    expected = cc3d.dust(mask, threshold=smallest, connectivity=26)
    drop_small_pieces(mask, smallest)
    np.testing.assert_array_equal(mask, expected)


def test_a_part_of_a_mask_can_be_given_and_corners_touch() -> None:
    whole = np.zeros((6, 6, 6), dtype=bool)
    whole[1, 1, 1] = whole[2, 2, 2] = whole[5, 5, 0] = whole[0, 0, 5] = True
    assert components(whole).max() == 3
    drop_small_pieces(whole[:, :, :5], 2)
    assert np.argwhere(whole).tolist() == [[0, 0, 5], [1, 1, 1], [2, 2, 2]], "what is not in the part stays"
