from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.cases import TrainingCase
from training.distributed import Place
from training.measure_ablation import LAST_WEIGHTS, METRICS, REFERENCE, compared, measure, variants
from training.recipe import NetworkRecipe, Recipe
from training.scans import CaseScore
from training.train import Run, Split


def _score(emboli: int, found: int, false: int, dice: float) -> CaseScore:
    return CaseScore("a", emboli, found, false, 0, 0, 0, dice, None)


@pytest.fixture
def tiny(tiny_recipe: Path) -> NetworkRecipe:
    recipe = Recipe.read(tiny_recipe).networks["unet"]
    return replace(recipe, steps=2, validate_every=2, warmup_steps=1, checkpoint_every=2)


def test_differences_are_worked_out_case_by_case() -> None:
    ours = [_score(2, 2, 1, 0.8), _score(2, 1, 0, 0.6)]
    theirs = [_score(2, 1, 3, 0.7), _score(2, 1, 1, 0.4)]
    values = {metric: value.value for metric, value in compared(ours, theirs)}
    assert values == pytest.approx({
        "lesion sensitivity, difference": 0.25,
        "false positives per scan, difference": -1.5,
        "voxel Dice, difference": 0.15,
    })  # fmt: skip
    assert dict(compared(ours, None))["lesion sensitivity"].value == 0.75


def test_every_training_differs_from_the_recipe_in_one_thing(tiny: NetworkRecipe) -> None:
    for name, variant in variants(tiny).items():
        if name != REFERENCE:
            assert (variant.loss != tiny.loss) != (variant.options != tiny.options), name


def test_every_measure_leaves_its_three_figures(
    tiny: NetworkRecipe, make_case: Callable[..., TrainingCase], tmp_path: Path
) -> None:
    split = Split([make_case(), make_case((30, 30, 20))], [make_case((20, 12, 40))])
    place = Place(torch.device("cpu"))
    results = measure(tiny, 1, split, tmp_path, Run(resume=True), place)
    assert len(results) == len(METRICS) * (1 + len(variants(tiny)))
    assert {result.name for result in results} == {LAST_WEIGHTS, *variants(tiny)}
    again = measure(tiny, 1, split, tmp_path, Run(resume=True), place)
    assert [result.value for result in again] == [result.value for result in results]
