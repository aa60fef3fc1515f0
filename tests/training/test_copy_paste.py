from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from training.cases import ARTERY, LUNG, UNKNOWN_VESSELS, Block, TrainingCase
from training.copy_paste import ClotSource, cut_out, pasted
from training.sampling import CropOptions, SliceSource

MakeCase = Callable[..., TrainingCase]
LUMEN_HU, CLOT_HU, TISSUE_HU, NOISE_HU = 320, 55, 40, 10


def _vessel(shape: tuple[int, int, int], axis: int, middle: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """A straight vessel along an axis through `middle` of the two others."""
    across = [other for other in range(3) if other != axis]
    grid = np.indices(shape)
    first, second = grid[across[0]] - middle[0], grid[across[1]] - middle[1]
    return np.asarray(first**2 + second**2 <= radius**2)


def _crop(artery: NDArray[np.bool_], seed: int = 0) -> Block:
    hu = np.where(artery, LUMEN_HU, TISSUE_HU) + np.random.default_rng(seed).normal(0, NOISE_HU, artery.shape)
    anatomy = np.where(artery, ARTERY, LUNG).astype(np.uint8)
    return Block(hu.astype(np.int16), anatomy, np.zeros(artery.shape, bool))


@pytest.fixture
def donor(make_case: MakeCase) -> TrainingCase:
    """A clot 20 mm long in the middle of an artery of radius 5 along x."""
    artery = _vessel((40, 48, 72), 2, (20, 24), 5)
    crop = _crop(artery)
    clot = _vessel((40, 48, 72), 2, (20, 24), 3.2)
    clot[..., :26] = clot[..., 46:] = False
    crop.hu[clot] += np.int16(CLOT_HU - LUMEN_HU)
    return replace(
        make_case(None),
        hu=crop.hu,
        anatomy=crop.anatomy,
        embolus=clot.astype(np.uint8),
        embolus_points=np.argwhere(clot).astype(np.int16)[::2],
    )


def test_a_clot_is_cut_out_with_its_profile_direction_and_calibre(donor: TrainingCase) -> None:
    clot = cut_out(donor, donor.embolus_points)
    assert clot.mask.sum() == donor.embolus.sum()
    assert clot.hu == pytest.approx(CLOT_HU, abs=5)
    assert abs(clot.axis[2]) > 0.99
    assert clot.artery_radius == pytest.approx(5, abs=1.1)
    inside, lumen = clot.fill[clot.mask], clot.fill[~clot.mask]
    assert np.median(inside) > 0.85
    assert np.median(lumen) == 0


def test_a_copied_clot_lies_in_the_lumen_along_the_vessel_at_clot_density(donor: TrainingCase) -> None:
    crop = _crop(_vessel((48, 48, 48), 0, (24, 24), 5), seed=1)
    clots = ClotSource([donor], (48, 48, 48))
    for seed in range(5):
        changed = pasted(crop, clots, np.random.default_rng(seed))
        new = changed.embolus
        assert new.sum() > 0.5 * donor.embolus.sum()
        assert bool((changed.anatomy[new] == ARTERY).all())
        extent = np.ptp(np.argwhere(new), axis=0) + 1
        assert extent[0] > 1.5 * max(extent[1:]), "it lay along x and lies along z now"
        assert np.median(changed.hu[new]) == pytest.approx(CLOT_HU, abs=30)
        outside = crop.anatomy != ARTERY
        np.testing.assert_array_equal(changed.hu[outside], crop.hu[outside])
        rim = (crop.anatomy == ARTERY) & ~new
        assert np.median(changed.hu[rim]) == pytest.approx(LUMEN_HU, abs=10), "contrast flows past it"
        assert not crop.embolus.any(), "the crop it was made from is as it was"


def test_a_copied_clot_keeps_the_noise_of_its_new_place(donor: TrainingCase) -> None:
    artery = _vessel((48, 48, 48), 0, (24, 24), 5)
    clots = ClotSource([donor], (48, 48, 48))
    changes = []
    for noise_seed in (1, 2):
        crop = _crop(artery, noise_seed)
        changed = pasted(crop, clots, np.random.default_rng(0))
        changes.append((changed.hu.astype(int) - crop.hu)[changed.embolus])
    np.testing.assert_allclose(changes[0], changes[1], atol=4)


def test_a_clot_goes_only_into_an_artery_of_its_calibre(donor: TrainingCase) -> None:
    clots = ClotSource([donor], (48, 48, 48))
    thin = _vessel((48, 48, 48), 0, (12, 12), 2)
    crop = _crop(thin)
    assert pasted(crop, clots, np.random.default_rng(0)) is crop
    both = _crop(thin | _vessel((48, 48, 48), 0, (32, 32), 5))
    for seed in range(5):
        changed = pasted(both, clots, np.random.default_rng(seed))
        assert changed.embolus.any()
        assert not changed.embolus[thin].any()


def test_nothing_is_copied_where_vessels_are_unknown(donor: TrainingCase) -> None:
    unknown = replace(donor, anatomy=np.full(donor.anatomy.shape, UNKNOWN_VESSELS, np.uint8))
    assert ClotSource([unknown], (48, 48, 48)).emboli == []
    crop = _crop(_vessel((48, 48, 48), 0, (24, 24), 5))._replace(anatomy=np.full((48, 48, 48), 128, np.uint8))
    assert pasted(crop, ClotSource([donor], (48, 48, 48)), np.random.default_rng(0)) is crop


def test_a_clot_too_long_for_a_crop_is_not_copied(donor: TrainingCase) -> None:
    assert ClotSource([donor], (24, 24, 24)).emboli == []


def test_slices_of_a_2d_network_show_copied_emboli(donor: TrainingCase) -> None:
    artery = _vessel((40, 48, 72), 1, (20, 36), 5)
    crop = _crop(artery)
    points = np.argwhere(artery)[::50].astype(np.int16)
    receiver = replace(
        donor,
        hu=crop.hu,
        anatomy=crop.anatomy,
        embolus=np.zeros((40, 48, 72), np.uint8),
        embolus_points=points[:0],
        other_points=points,
    )
    cases = [replace(donor, other_points=np.zeros((1, 3), np.int16)), receiver]
    shown = {}
    for share in (0.0, 1.0):
        source = SliceSource(cases, (40, 40), 2, 0.0, seed=0, options=CropOptions(copy_paste_share=share))
        shown[share] = np.mean([bool(target.any()) for step in range(10) for target in source.batch(step).target])
    assert shown[0.0] == 0
    assert shown[1.0] > 0.6
