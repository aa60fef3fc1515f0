from __future__ import annotations

import json
from pathlib import Path

from imaging.findings import RESEARCH_USE_ONLY
from models.packages import default_package_directory, load_network, load_package
from tests.training.evaluation_records import record
from training.evaluate import summary
from training.model_card import model_card
from training.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "training/recipes/phantom-v3.toml"


def test_the_shipped_package_is_whole_small_and_made_by_the_shipped_recipe() -> None:
    package = load_package(default_package_directory())
    recipe = Recipe.read(RECIPE)
    assert package.name == recipe.name
    assert {name: spec.kind for name, spec in package.networks.items()} == {
        name: network.kind for name, network in recipe.networks.items()
    }
    for name, network in recipe.networks.items():
        assert dict(package.networks[name].parameters) == dict(network.parameters)
        load_network(package, name)
    assert sum(path.stat().st_size for path in package.directory.iterdir()) < 10e6


def test_the_model_card_states_the_figures_and_that_it_is_research_only() -> None:
    package = load_package(default_package_directory())
    card = (package.directory / "README.md").read_text(encoding="utf-8")
    figures = json.loads((package.directory / "figures.json").read_text(encoding="utf-8"))
    assert RESEARCH_USE_ONLY in card
    assert card == model_card(Recipe.read(RECIPE), figures, package.settings, with_anatomies=True)


def test_a_card_shows_one_column_for_each_kind_of_phantom() -> None:
    recipe = Recipe.read(RECIPE)
    figures = summary([record("1", (0.5, 2.0, 0.05), [(0.9, 1), (0.8, 2), (0.7, 0)], dice=0.8)])
    card = model_card(recipe, {"all": figures, "grown": figures}, recipe.settings, with_anatomies=False)
    assert "| sensitivity, 0.3-1 ml | 1 / 1 | 1 / 1 |" in card
    assert "none on real anatomies" in card
