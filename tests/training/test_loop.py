from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imaging.errors import ConfigurationError
from training.ema import WeightAverage
from training.forward import forward_logits
from training.loop import fit, learning_rate
from training.recipe import NetworkRecipe
from training.sampling import Batch


def a_recipe(**changes: object) -> NetworkRecipe:
    values: dict[str, object] = {
        "name": "tiny", "kind": "tiny", "parameters": {}, "config": None, "batch": 2, "steps": 12,
        "learning_rate": 1e-2, "warmup_steps": 3, "weight_decay": 1e-4, "clip_norm": 1.0, "ema_decay": 0.9,
        "log_every": 4, "checkpoint_every": 5, "validate_every": 6, "validation_batches": 1, "batch_seed": 1,
        "options": {},
    }  # fmt: skip
    return NetworkRecipe(**(values | changes))  # type: ignore[arg-type]


class _StepNoise:
    """A batch that depends on the step alone."""

    def batch(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(2, 1, 8, 8, generator=generator)
        return Batch(image, (image > 0).float())


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))


def _loss(network: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(forward_logits(network, batch.input), batch.target)


def test_resumed_training_gives_the_same_weights_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = fit(_network(), _StepNoise(), _loss, a_recipe(), tmp_path / "whole")
    fit(_network(), _StepNoise(), _loss, a_recipe(), tmp_path / "cut", stop_after=7)
    resumed = fit(_network(), _StepNoise(), _loss, a_recipe(), tmp_path / "cut", resume=True)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_resuming_with_another_recipe_is_refused(tmp_path: Path) -> None:
    fit(_network(), _StepNoise(), _loss, a_recipe(), tmp_path, stop_after=2)
    with pytest.raises(ConfigurationError, match="learning_rate"):
        fit(_network(), _StepNoise(), _loss, a_recipe(learning_rate=0.5), tmp_path, resume=True)


def test_a_checkpoint_leaves_no_unfinished_file_behind(tmp_path: Path) -> None:
    fit(_network(), _StepNoise(), _loss, a_recipe(steps=2), tmp_path)
    assert (tmp_path / "checkpoint.pt").is_file()
    assert not list(tmp_path.glob("*.tmp"))


def test_validation_judges_the_average_and_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network, seen = _network(), []

    def validate(judged: nn.Module) -> dict[str, float]:
        assert not judged.training
        seen.append({name: value.clone() for name, value in judged.state_dict().items()})
        return {"score": 1.0}

    average = fit(network, _StepNoise(), _loss, a_recipe(), tmp_path, validate=validate)
    assert len(seen) == 2
    for name, value in average.items():
        torch.testing.assert_close(seen[-1][name], value)
    assert network.training
    assert not torch.equal(network.state_dict()["0.weight"], average["0.weight"])


def test_weight_average_follows_its_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = WeightAverage(network, decay=0.5)
    nn.init.constant_(network.weight, 1.0)
    average.update(network, step=0)  # decay (1 + 0) / (10 + 0) = 0.1
    assert average.state["weight"].item() == pytest.approx(0.9)
    average.update(network, step=1000)  # decay 0.5
    assert average.state["weight"].item() == pytest.approx(0.95)


def test_learning_rate_warms_up_and_ends_low() -> None:
    recipe = a_recipe(steps=103, warmup_steps=3, learning_rate=1.0)
    rates = [learning_rate(step, recipe) for step in range(103)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[53] == pytest.approx(0.02 + 0.98 * 0.5)
    assert rates[-1] < 0.025
    assert rates[3:] == sorted(rates[3:], reverse=True)
