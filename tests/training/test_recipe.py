from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from training.cases import held_out_specs, training_specs
from training.recipe import Recipe, TextureRecipe

RECIPE = Path(__file__).parents[2] / "training/recipes/phantom-v3.toml"


def test_the_shipped_recipe_reads_and_describes_every_network() -> None:
    recipe = Recipe.read(RECIPE)
    assert set(recipe.networks) == {"roi", "unet3tiny", "attention_unet", "aanet"}
    assert recipe.networks["aanet"].parameters["stem"] == 8
    assert recipe.networks["aanet"].warmup_steps == 100
    assert "patch_zyx" in recipe.networks["aanet"].options
    assert recipe.networks["aanet"].texture == TextureRecipe(1000, 1.5e-3, 0.25, 4, (96, 96, 96))
    assert recipe.networks["roi"].texture is None


@pytest.mark.parametrize("text", ["name = 'x'", "name = ", "name = 'x'\n[data]\ncolour = 'red'"])
def test_a_recipe_that_lacks_something_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        Recipe.read(path)


def test_held_out_anatomies_are_never_trained_on(tmp_path: Path) -> None:
    data = Recipe.read(RECIPE).data
    for name in ("001", "002", "006", "e0032", "e0042"):
        (tmp_path / f"{name}.nii.gz").touch()
    trained_on = {spec.anatomy.name for spec in training_specs(data, tmp_path) if spec.anatomy}
    tested_on = {spec.anatomy.name for spec in held_out_specs(data, tmp_path, 20) if spec.anatomy}
    assert trained_on == {"002.nii.gz", "e0032.nii.gz"}
    assert "001.nii.gz" in tested_on
    assert not trained_on & tested_on


def test_training_and_test_seeds_do_not_meet() -> None:
    data = Recipe.read(RECIPE).data
    trained_on = {spec.seed for spec in training_specs(data, None)}
    assert len(trained_on) == data.grown_cases + data.anatomy_cases
    assert not trained_on & {spec.seed for spec in held_out_specs(data, None, 50)}


def test_a_folder_without_label_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no label maps"):
        training_specs(Recipe.read(RECIPE).data, tmp_path)
