from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imaging.errors import ConfigurationError
from imaging.phantom import make_phantom
from services.dicom.ct_nifti_writer import write_ct_nifti
from training.cases import LUNG, UNKNOWN_VESSELS, TrainingCase
from training.networks import make_task
from training.phantoms import nearest_labels, whole_working_grid
from training.recipe import NetworkRecipe, Recipe, TextureRecipe
from training.sampling import Batch
from training.texture import Mixed, again_with_texture, texture_cases, train_on_texture
from training.texture_cases import make_texture_cases, trained_artery
from training.train import Run, Split, save_weights

MakeCase = Callable[..., TrainingCase]


class _Numbers:
    def __init__(self, first: int) -> None:
        self.first = first

    def batch(self, step: int) -> Batch:
        values = torch.full((2, 1), float(self.first + step))
        return Batch(values, values)


def test_batches_hold_crops_of_both_sources() -> None:
    assert Mixed(_Numbers(0), _Numbers(10)).batch(3).input[:, 0].tolist() == [3, 3, 13, 13]


@pytest.fixture
def tiny(tiny_recipe: Path) -> NetworkRecipe:
    recipe = Recipe.read(tiny_recipe).networks["unet"]
    return replace(recipe, batch=2, steps=2, warmup_steps=1, checkpoint_every=2, texture=TextureRecipe(2, 1e-3, 0.5))


def test_it_goes_on_from_the_first_training(tiny: NetworkRecipe, make_case: MakeCase, tmp_path: Path) -> None:
    split = Split([make_case(), make_case((30, 30, 20))], [make_case((20, 12, 40))])
    torch.manual_seed(5)
    network = make_task(tiny, split.train, split.validation).network
    first = {name: value.clone() for name, value in network.state_dict().items()}
    save_weights(first, tmp_path / "weights.safetensors")
    file = train_on_texture(tiny, tmp_path, split, [make_case((12, 36, 50))], Run())
    assert file == tmp_path / "texture/weights.safetensors"
    after = load_file(file)
    moved = [float((after[name] - value).abs().max()) for name, value in first.items() if name.endswith("weight")]
    assert 0 < max(moved) < 0.05, "two small steps away"


def test_its_crops_may_be_more_and_larger(tiny: NetworkRecipe) -> None:
    assert again_with_texture(tiny, TextureRecipe(2, 1e-3, 0.5)).batch == tiny.batch
    wider = again_with_texture(tiny, TextureRecipe(2, 1e-3, 0.5, batch=4, patch=(48, 64)))
    assert wider.batch == 4
    assert wider.options == {**tiny.options, "patch_yx": (48, 64)}


def test_without_a_first_training_or_real_cases_it_says_what_is_missing(
    tiny: NetworkRecipe, make_case: MakeCase, tmp_path: Path
) -> None:
    split = Split([make_case()], [make_case()])
    with pytest.raises(ConfigurationError, match="is not there"):
        train_on_texture(tiny, tmp_path, split, [make_case()], Run())
    with pytest.raises(ConfigurationError, match=r"no \[texture\]"):
        train_on_texture(replace(tiny, texture=None), tmp_path, split, [make_case()], Run())
    with pytest.raises(ConfigurationError, match="no cases of real CT"):
        texture_cases(tmp_path / "nothing")


@pytest.mark.timeout(200)
def test_cases_of_a_ct_hold_inserted_emboli_and_know_no_vessels(tiny_recipe: Path, tmp_path: Path) -> None:
    phantom = make_phantom(31, shape_zyx=(80, 160, 160), spacing_zyx_mm=(3.0, 2.1, 2.1), emboli=0)
    (tmp_path / "real").mkdir()
    write_ct_nifti(phantom.volume, tmp_path / "real/chest.nii.gz")
    (tmp_path / "real/another.nii.gz").write_bytes(b"not asked for, not read")
    recipe = Recipe.read(tiny_recipe)
    data = replace(recipe.data, texture_folder=tmp_path / "cases", texture_scans=("chest",), texture_variants=2)
    artery = nearest_labels(phantom.artery, whole_working_grid(phantom.volume))
    folders = make_texture_cases(replace(recipe, data=data), tmp_path / "real", lambda hu: artery)
    assert [folder.name for folder in folders] == ["chest-0", "chest-1"]
    one, other = texture_cases(data.texture_folder)
    assert one.embolus.max() >= 1
    assert not np.array_equal(one.embolus, other.embolus)
    assert set(np.unique(one.anatomy)) == {UNKNOWN_VESSELS, UNKNOWN_VESSELS + LUNG}
    again = make_texture_cases(
        replace(recipe, data=data), tmp_path / "real", lambda hu: pytest.fail("what is there is not made again")
    )
    assert again == folders
    unknown = replace(recipe, data=replace(data, texture_scans=("chest", "thorax")))
    with pytest.raises(ConfigurationError, match="thorax"):
        make_texture_cases(unknown, tmp_path / "real", lambda hu: artery)


def test_an_artery_needs_a_trained_network(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not there"):
        trained_artery(Recipe.read(tiny_recipe), tmp_path)
