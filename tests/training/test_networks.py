from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imaging.errors import ConfigurationError
from models.network_spec import TORCH_KINDS
from training.arguments import network_recipe, parser
from training.cases import TrainingCase
from training.forward import forward_outputs
from training.networks import make_task, network_spec
from training.recipe import NetworkRecipe, Recipe
from training.scans import segment_case

MakeCase = Callable[..., TrainingCase]
RECIPE = Path(__file__).parents[2] / "training/recipes/phantom-v3.toml"
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


def _asked_for(kind: str) -> NetworkRecipe:
    """What `train.py --model kind` makes of the shipped recipe, narrow."""
    options = parser().parse_args(["--model", kind, "--batch_size", "2", "--precision", "fp32"])
    recipe = network_recipe(Recipe.read(RECIPE.with_name("phantoms.toml")), options, kind, cases=2)
    parameters = {**recipe.parameters, "base_width": 4}
    return replace(
        recipe, parameters=parameters, options={**recipe.options, "patch_yx": [64, 64]}, validation_batches=1
    )


@pytest.mark.parametrize("kind", sorted(set(TORCH_KINDS) - {"aanet"}))
def test_every_2d_kind_trains_from_the_shipped_recipe_and_segments_slices_of_any_size(
    kind: str, make_case: MakeCase
) -> None:
    torch.manual_seed(0)
    recipe, case = _asked_for(kind), make_case()
    task = make_task(recipe, [case], [case])
    batch = task.source.batch(0)
    probability = torch.sigmoid(forward_outputs(task.network, batch.input)[-1]).mean().item()
    assert probability < 0.15, "it starts by expecting little"
    loss = task.loss(task.network, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in task.network.parameters())
    assert segment_case(task.network.eval(), recipe, case).lesions.shape == (40, 48, 72)


def test_a_recipe_without_anything_to_go_by_is_refused() -> None:
    options = parser().parse_args(["--model", "xnet"])
    with pytest.raises(ConfigurationError, match="has no network of kind 'xnet'"):
        network_recipe(Recipe.read(RECIPE), options, "xnet", cases=8)
