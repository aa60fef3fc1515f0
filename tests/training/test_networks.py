from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.cases import TrainingCase
from training.networks import make_task, network_spec
from training.recipe import NetworkRecipe, Recipe

MakeCase = Callable[..., TrainingCase]
RECIPE = Path(__file__).parents[2] / "training/recipes/phantom-v1.toml"
NARROW = {
    "aanet": {"n_filters": [8, 8, 8, 8], "en_blocks": [1, 1, 1, 1], "de_blocks": [1, 1, 1], "stem": 4, "aspp": 8},
    "unet3tiny": {"in_channels": 5, "out_channels": 1, "base_width": 4, "attention": True, "recurrent_residual": True},
    "attention_unet": {"in_channels": 5, "out_channels": 1, "base_width": 4},
    "roi": {},
}


def _narrow(name: str) -> NetworkRecipe:
    recipe = Recipe.read(RECIPE).networks[name]
    options = dict(recipe.options)
    if "patch_zyx" in options:
        options["patch_zyx"] = [32, 32, 32]
    if "patch_yx" in options:
        options["patch_yx"] = [32, 32]
    return replace(recipe, parameters=NARROW[name], options=options, batch=2, validation_batches=1)


@pytest.mark.parametrize("name", ["aanet", "unet3tiny", "attention_unet", "roi"])
def test_every_network_learns_a_fixed_batch(name: str, make_case: MakeCase) -> None:
    torch.manual_seed(0)
    task = make_task(_narrow(name), [make_case()], [make_case()])
    batch = task.source.batch(0)
    optimiser = torch.optim.AdamW(task.network.parameters(), lr=5e-3)
    losses = []
    for _ in range(15):
        loss = task.loss(task.network, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["aanet", "unet3tiny", "roi"])
def test_validation_scores_lie_between_0_and_1(name: str, make_case: MakeCase) -> None:
    task = make_task(_narrow(name), [make_case()], [make_case()])
    with torch.inference_mode():
        scores = task.validate(task.network.eval())
    assert scores
    shares = {key: score for key, score in scores.items() if key not in ("loss", "false_positives_per_crop")}
    assert all(0 <= score <= 1 for score in shares.values())


def test_a_package_describes_networks_as_the_recipe_builds_them() -> None:
    networks = Recipe.read(RECIPE).networks
    assert network_spec(networks["aanet"]).file.name == "aanet.safetensors"
    roi = network_spec(networks["roi"])
    assert roi.file.name == "lung-roi.weights"
    assert roi.config is not None
