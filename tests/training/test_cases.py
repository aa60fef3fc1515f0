from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.errors import ConfigurationError
from training.cases import ARTERY, CaseSpec, TrainingCase, make_cases, open_cases
from training.recipe import DataRecipe, Recipe

RECIPE = Path(__file__).parents[2] / "training/recipes/phantom-v3.toml"


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    """The shipped recipe's data, acquired with voxels of several millimetres to be quick."""
    return replace(
        Recipe.read(RECIPE).data,
        folder=tmp_path_factory.mktemp("cases"),
        spacing_z_mm=(3.0, 3.01),
        spacing_yx_mm=(2.5, 2.51),
        emboli_per_case=(2, 3),
    )


@pytest.fixture(scope="module")
def case(coarse: DataRecipe) -> TrainingCase:
    make_cases(coarse, [CaseSpec(5)])
    (case,) = open_cases(coarse, [CaseSpec(5)])
    return case


def test_points_lie_where_they_say(case: TrainingCase) -> None:
    assert len(case.embolus_points) > 0
    assert bool((case.embolus[tuple(case.embolus_points.T)] > 0).all())
    assert bool((case.embolus[tuple(case.other_points.T)] == 0).all())


def test_a_case_is_on_the_millimetre_grid_with_emboli_inside_arteries(case: TrainingCase) -> None:
    assert case.hu.dtype == np.int16
    assert case.hu.shape == case.anatomy.shape == case.embolus.shape
    assert min(case.hu.shape) > 130, "a pair of lungs and its margin, in mm"
    clot = np.asarray(case.embolus) > 0
    assert bool((np.asarray(case.anatomy)[clot] == ARTERY).all())


def test_roi_boxes_surround_both_lungs(case: TrainingCase) -> None:
    with_lung = case.roi_boxes[case.roi_boxes[:, 2] > 0]
    assert len(with_lung) > 10
    widest = with_lung[with_lung[:, 2].argmax()]
    assert 0.4 < widest[2] < 1.0
    assert abs(widest[0] - 0.5) < 0.1
    assert case.roi_slices.shape[1:] == (192, 192)


def test_a_case_that_is_there_is_not_made_again(coarse: DataRecipe, case: TrainingCase) -> None:
    before = (coarse.folder / case.name / "hu.npy").stat().st_mtime_ns
    make_cases(coarse, [CaseSpec(5)])
    assert (coarse.folder / case.name / "hu.npy").stat().st_mtime_ns == before
    assert not [path for path in coarse.folder.iterdir() if path.name.startswith(".")]


def test_a_missing_case_is_named(coarse: DataRecipe) -> None:
    with pytest.raises(ConfigurationError, match="77-grown"):
        open_cases(coarse, [CaseSpec(77)])
