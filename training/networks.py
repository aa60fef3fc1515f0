"""What each network is trained on and how it is judged: source, loss and validation scores by the recipe's kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from imaging.errors import ConfigurationError
from models.network_spec import NetworkSpec, build_network
from training.cases import TrainingCase
from training.loop import Loss, Validation
from training.objectives import artery_aware_loss, box_scores, detection_loss, slice_loss, voxel_scores
from training.recipe import NetworkRecipe
from training.sampling import Batch, BatchSource, BlockSource, RoiSource, SliceSource

FOREGROUND_LOGIT = -4.0
VALIDATION_SEED = 99


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """A network with all that `fit` needs to train it."""

    network: nn.Module
    source: BatchSource
    loss: Loss
    validate: Validation


def network_spec(recipe: NetworkRecipe) -> NetworkSpec:
    """How the model package will describe the network."""
    file = Path(f"{recipe.config.stem}.weights" if recipe.config else f"{recipe.name}.safetensors")
    return NetworkSpec(recipe.name, recipe.kind, file, recipe.parameters, recipe.config)


def make_task(recipe: NetworkRecipe, train: Sequence[TrainingCase], validation: Sequence[TrainingCase]) -> TrainingTask:
    """Raises ConfigurationError for a kind that training does not know."""
    network = build_network(network_spec(recipe))
    options = recipe.options
    loss: Loss = detection_loss
    judge: Callable[[Sequence[Batch]], Validation] = box_scores
    source: Callable[[Sequence[TrainingCase], int], BatchSource]
    match recipe.kind:
        case "aanet":
            crop, share = options["patch_zyx"], options["embolus_share"]
            source = lambda cases, seed: BlockSource(cases, crop, recipe.batch, share, seed)  # noqa: E731
            loss, judge = artery_aware_loss(options["bce_weight"]), partial(voxel_scores, targets=("embolus", "artery"))
        case "unet3tiny" | "attention_unet":
            network = _expecting_little(network)
            crop, share = options["patch_yx"], options["embolus_share"]
            source = lambda cases, seed: SliceSource(cases, crop, recipe.batch, share, seed)  # noqa: E731
            loss, judge = slice_loss(options["focal_weight"]), partial(voxel_scores, targets=("embolus",))
        case "darknet":
            source = lambda cases, seed: RoiSource(cases, recipe.batch, seed)  # noqa: E731
        case _:
            raise ConfigurationError(f"recipe {recipe.name}: unknown kind {recipe.kind!r}", code="training.kind")
    held_out = source(validation, VALIDATION_SEED)
    batches = [held_out.batch(step) for step in range(recipe.validation_batches)]
    return TrainingTask(network, source(train, recipe.batch_seed), loss, judge(batches))


def _expecting_little(network: nn.Module) -> nn.Module:
    """Sets a UNet's last bias so that it starts by expecting emboli to be rare, as AANet does."""
    assert isinstance(network.head, nn.Conv2d)
    assert network.head.bias is not None
    nn.init.constant_(network.head.bias, FOREGROUND_LOGIT)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
