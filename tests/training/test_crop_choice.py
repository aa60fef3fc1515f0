from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from training.cases import LUNG, UNKNOWN_VESSELS, TrainingCase
from training.crop_choice import CropChoice, embolus_crops_at, lung_bounds

MakeCase = Callable[..., TrainingCase]


@pytest.fixture
def many_large_one_small(make_case: MakeCase) -> TrainingCase:
    """Nine emboli of 1000 voxels, of which 400 are kept as points, and one of 27."""
    case = make_case(None)
    embolus = np.zeros((40, 48, 72), np.uint8)
    for label in range(1, 10):
        z, y, x = (label - 1) // 5 * 12, (label - 1) % 5 // 2 * 12, (label - 1) % 5 % 2 * 30
        embolus[z : z + 10, y : y + 10, x : x + 10] = label
    embolus[34:37, 40:43, 60:63] = 10
    points = [np.argwhere(embolus == label)[:400] for label in range(1, 11)]
    return replace(case, embolus=embolus, embolus_points=np.concatenate(points).astype(np.int16))


def _share_on_the_small_one(choice: CropChoice, case: TrainingCase) -> float:
    rng = np.random.default_rng(0)
    places = [choice.embolus(rng) for _ in range(600)]
    return float(np.mean([case.embolus[tuple(place.centre)] == 10 for place in places]))


def test_small_emboli_are_drawn_as_often_as_large_ones(many_large_one_small: TrainingCase) -> None:
    choice = CropChoice([many_large_one_small], balanced_sizes=True, lung_crop=False)
    assert abs(_share_on_the_small_one(choice, many_large_one_small) - 0.5) < 0.06


def test_without_balance_a_small_embolus_is_drawn_by_its_voxels(many_large_one_small: TrainingCase) -> None:
    choice = CropChoice([many_large_one_small], balanced_sizes=False, lung_crop=False)
    assert _share_on_the_small_one(choice, many_large_one_small) < 0.03


def test_cases_without_emboli_do_not_dilute_the_crops_on_emboli(make_case: MakeCase) -> None:
    choice = CropChoice([make_case(None), make_case(), make_case(None)], balanced_sizes=True, lung_crop=True)
    rng = np.random.default_rng(0)
    assert {choice.embolus(rng).case for _ in range(20)} == {1}


def test_crops_stay_in_the_box_of_the_lungs(make_case: MakeCase) -> None:
    case = make_case(None)
    anatomy = np.zeros((80, 80, 80), np.uint8)
    anatomy[30:40, 30:50, 30:50] = LUNG
    everywhere = np.argwhere(np.ones((80, 80, 80), bool))[::97].astype(np.int16)
    large = replace(case, hu=np.zeros((80, 80, 80), np.int16), anatomy=anatomy, other_points=everywhere)
    bounds = lung_bounds(large)
    assert bounds.low.tolist() == pytest.approx([15, 15, 15], abs=3)
    assert bounds.high.tolist() == pytest.approx([55, 65, 65], abs=3)
    rng = np.random.default_rng(0)
    inside = CropChoice([large], balanced_sizes=True, lung_crop=True)
    assert all(((p := inside.other(rng).centre) >= 12).all() and (p < 68).all() for _ in range(200))
    anywhere = CropChoice([large], balanced_sizes=True, lung_crop=False)
    assert any((anywhere.other(rng).centre >= 70).any() for _ in range(200))
    assert bounds.start_inside(np.array([0, 70, 70]), (16, 16, 16)).tolist() == [
        bounds.low[0],
        bounds.high[1] - 16,
        bounds.high[2] - 16,
    ]


def test_the_lungs_of_a_case_with_unknown_vessels_bound_it_too(make_case: MakeCase) -> None:
    anatomy = np.full((80, 80, 80), UNKNOWN_VESSELS, np.uint8)
    anatomy[30:40, 30:50, 30:50] |= LUNG
    bounds = lung_bounds(replace(make_case(None), hu=np.zeros((80, 80, 80), np.int16), anatomy=anatomy))
    assert bounds.low[0] > 10
    assert bounds.high[2] < 70


@pytest.mark.parametrize(("size", "share"), [(1, 0.5), (2, 0.5), (4, 0.3), (3, 1.0), (2, 0.0)])
def test_the_share_of_crops_on_emboli_is_exact_in_the_long_run(size: int, share: float) -> None:
    counts = [embolus_crops_at(step, size, share) for step in range(1000)]
    assert sum(counts) == round(1000 * size * share)
    assert max(counts) - min(counts) <= 1
    assert max(counts) <= size
