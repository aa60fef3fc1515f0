from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.cases import CaseSpec, TrainingCase, make_cases, open_cases
from training.distributed import Place
from training.measure_ablation import (
    LAST_WEIGHTS,
    LUNG_BOX,
    METRICS,
    REFERENCE,
    WHOLE_SCAN,
    compared,
    lung_crop_variants,
    measure,
    variants,
    whole_scans,
)
from training.networks import make_task
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


def test_aanet_is_compared_with_the_published_design(tiny_recipe: Path, make_case: Callable[..., TrainingCase]) -> None:
    recipe = Recipe.read(tiny_recipe).networks["aanet"]
    recipe = replace(recipe, parameters={**recipe.parameters, "veins": True})
    tried = variants(recipe)
    sizes = {
        name: sum(value.numel() for value in make_task(one, [make_case()], [make_case()]).network.parameters())
        for name, one in tried.items()
    }
    ours, without_veins, overlap, published = sizes.values()
    assert without_veins < ours == overlap < published
    assert published == 14_906_098
    assert [one.options["bce_weight"] for one in tried.values()] == [0.5, 0.5, 0.0, 0.0]


def test_the_lung_crop_is_left_out_on_cases_that_hold_more(
    tiny_recipe: Path, make_case: Callable[..., TrainingCase], tmp_path: Path
) -> None:
    recipe = Recipe.read(tiny_recipe)
    assert [one.options.get("lung_crop", True) for one in lung_crop_variants(recipe.networks["unet"]).values()] == [
        True,
        False,
    ]
    assert list(lung_crop_variants(recipe.networks["unet"])) == [LUNG_BOX, WHOLE_SCAN]
    data = replace(recipe.data, folder=tmp_path / "cases", length_mm=90.0)
    spec = CaseSpec(7)
    make_cases(data, [spec])
    (whole,) = whole_scans(data, [spec])
    (box,) = open_cases(data, [spec])
    assert whole.hu.size > 1.3 * box.hu.size
    assert np.count_nonzero(whole.embolus) == np.count_nonzero(box.embolus)


def test_every_measure_leaves_its_three_figures(
    tiny: NetworkRecipe, make_case: Callable[..., TrainingCase], tmp_path: Path
) -> None:
    split = Split([make_case(), make_case((30, 30, 20))], [make_case((20, 12, 40))])
    place = Place(torch.device("cpu"))
    results = measure(variants(tiny), 1, split, tmp_path, Run(resume=True), place)
    assert len(results) == len(METRICS) * (1 + len(variants(tiny)))
    assert {result.name for result in results} == {LAST_WEIGHTS, *variants(tiny)}
    again = measure(variants(tiny), 1, split, tmp_path, Run(resume=True), place)
    assert [result.value for result in again] == [result.value for result in results]
