from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from imaging.errors import InputError
from imaging.volume import CtVolume
from training.insertion import insert_into_ct

RAS = np.array([[0.0, 0.0, -1.5, 90.0], [0.0, -1.5, 0.0, 80.0], [2.0, 0.0, 0.0, -60.0], [0.0, 0.0, 0.0, 1.0]])
"""Columns and rows run the other way round than in the canonical orientation."""


def _chest(lumen_hu: float) -> tuple[CtVolume, NDArray[np.bool_]]:
    """A tapering artery of 9 to 5 mm radius in fat, noise of 15 HU."""
    z, y, x = np.ogrid[:80, :60, :60]
    artery = np.broadcast_to((y - 30) ** 2 + (x - 24) ** 2 < (6 - z / 30) ** 2, (80, 60, 60)).copy()
    noise = np.random.default_rng(0).normal(0, 15, artery.shape)
    return CtVolume(np.rint(np.where(artery, lumen_hu, -80) + noise).astype(np.int16), RAS), artery


def test_clots_are_as_dense_as_clot_and_keep_the_noise_of_the_scan() -> None:
    volume, artery = _chest(350)
    made = insert_into_ct(volume, artery, emboli=2, seed=3, min_embolus_ml=0.4)
    assert np.array_equal(made.volume.affine_lps, volume.affine_lps)
    for label in (1, 2):
        clot = made.embolus_labelmap == label
        assert clot.sum() * volume.voxel_volume_mm3 / 1000 >= 0.4
        assert not (clot & ~artery).any()
        assert 20 < np.percentile(made.volume.hu[clot], 20) < 120
    noise = np.random.default_rng(0).normal(0, 15, artery.shape)
    smooth = made.volume.hu - noise
    middle = np.argwhere(made.embolus_labelmap == 1).mean(axis=0).astype(int)
    around = smooth[tuple(slice(m - 1, m + 2) for m in middle)]
    assert around.std() < 60, "what is left after the scan's own noise is smooth"


def test_nothing_changes_away_from_the_clots() -> None:
    volume, artery = _chest(350)
    made = insert_into_ct(volume, artery, emboli=1, seed=1)
    changed = np.argwhere(made.volume.hu != volume.hu)
    clot = np.argwhere(made.embolus_labelmap > 0)
    reach = np.ceil(6 / np.array(volume.spacing_zyx_mm))
    assert (changed >= clot.min(axis=0) - reach).all()
    assert (changed <= clot.max(axis=0) + reach).all()


def test_the_same_seed_gives_the_same_scan() -> None:
    volume, artery = _chest(350)
    one, other = (insert_into_ct(volume, artery, emboli=2, seed=5) for _ in range(2))
    assert np.array_equal(one.volume.hu, other.volume.hu)
    assert np.array_equal(one.embolus_labelmap, other.embolus_labelmap)


def test_an_artery_without_contrast_is_refused() -> None:
    volume, artery = _chest(60)
    with pytest.raises(InputError, match="brighter than clot"):
        insert_into_ct(volume, artery, emboli=1, seed=1)


def test_more_than_there_is_room_for_is_refused() -> None:
    volume, artery = _chest(350)
    with pytest.raises(InputError, match="no room"):
        insert_into_ct(volume, artery, emboli=60, seed=1, min_embolus_ml=1.0)
