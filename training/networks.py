"""What each network is trained on and how it is judged: source, loss and validation scores by the recipe's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from imaging.errors import ConfigurationError
from models.network_spec import DARKNET, TORCH_KINDS, NetworkSpec, build_network
from models.unet_blocks import SliceNetwork
from training.cases import TrainingCase
from training.loop import Loss, Rates, Tally, Validation
from training.objectives import (
    artery_aware_loss,
    box_scores,
    crop_scores,
    detection_loss,
    named_loss,
    slice_loss,
    voxel_counts,
    voxel_rates,
)
from training.recipe import NetworkRecipe
from training.sampling import PLAIN, BatchSource, BlockSource, CropOptions, RoiSource, SliceSource
from training.scans import scan_scores

VOLUME_KIND = "aanet"
FOREGROUND_LOGIT = -4.0
VALIDATION_SEED = 99
TARGETS = ("embolus", "artery", "vein")

Sources = Callable[[Sequence[TrainingCase], int], BatchSource]
"""Batches of some cases with some seed."""


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """A network with all that `fit` needs to train it."""

    network: nn.Module
    source: BatchSource
    loss: Loss
    validate: Validation
    tally: tuple[Tally, Rates] | None = None


def network_spec(recipe: NetworkRecipe) -> NetworkSpec:
    """How the model package will describe the network."""
    file = Path(f"{recipe.config.stem}.weights" if recipe.config else f"{recipe.name}.safetensors")
    return NetworkSpec(recipe.name, recipe.kind, file, recipe.parameters, recipe.config)


def make_task(recipe: NetworkRecipe, train: Sequence[TrainingCase], validation: Sequence[TrainingCase]) -> TrainingTask:
    """Raises ConfigurationError for a kind that no network has."""
    if recipe.kind not in (*TORCH_KINDS, DARKNET):
        raise ConfigurationError(
            f"recipe {recipe.name}: unknown kind {recipe.kind!r}",
            code="training.kind",
            remedy=f"use one of {', '.join(sorted((*TORCH_KINDS, DARKNET)))}",
        )
    network = build_network(network_spec(recipe))
    if recipe.kind == DARKNET:
        return _detection_task(recipe, network, train, validation)
    loss = _loss(recipe)
    if recipe.kind != VOLUME_KIND:
        network = _expecting_little(network)
    held_out = _sources(recipe, PLAIN)(validation, VALIDATION_SEED)
    batches = [held_out.batch(step) for step in range(recipe.validation_batches)]
    on_crops = crop_scores(batches, TARGETS[: batches[0].target.shape[1]] if batches else (), loss)
    scans = tuple(validation[: recipe.validation_scans])

    def validate(network: nn.Module) -> Mapping[str, float]:
        return {**on_crops(network), **(scan_scores(network, recipe, scans) if scans else {})}

    source = batch_source(recipe, train, recipe.batch_seed)
    return TrainingTask(network, source, loss, validate, (voxel_counts, voxel_rates))


def batch_source(recipe: NetworkRecipe, cases: Sequence[TrainingCase], seed: int) -> BatchSource:
    """Batches to train the network on, as its recipe draws them from `cases`."""
    if recipe.kind == DARKNET:
        return RoiSource(cases, recipe.batch, seed)
    return _sources(recipe, CropOptions.of(recipe.options))(cases, seed)


def _detection_task(
    recipe: NetworkRecipe, network: nn.Module, train: Sequence[TrainingCase], validation: Sequence[TrainingCase]
) -> TrainingTask:
    held_out = RoiSource(validation, recipe.batch, VALIDATION_SEED)
    batches = [held_out.batch(step) for step in range(recipe.validation_batches)]
    source = batch_source(recipe, train, recipe.batch_seed)
    return TrainingTask(network, source, detection_loss, box_scores(batches))


def _sources(recipe: NetworkRecipe, options: CropOptions) -> Sources:
    share = recipe.options["embolus_share"]
    if recipe.kind == VOLUME_KIND:
        crop, veins = recipe.options["patch_zyx"], bool(recipe.parameters.get("veins", False))
        return lambda cases, seed: BlockSource(cases, crop, recipe.batch, share, seed, veins=veins, options=options)
    crop = recipe.options["patch_yx"]
    return lambda cases, seed: SliceSource(cases, crop, recipe.batch, share, seed, options=options)


def _loss(recipe: NetworkRecipe) -> Loss:
    if recipe.loss:
        return named_loss(recipe.loss)
    if recipe.kind == VOLUME_KIND:
        return artery_aware_loss(recipe.options["bce_weight"])
    return slice_loss(recipe.options["focal_weight"])


def _expecting_little(network: nn.Module) -> nn.Module:
    """Sets the last bias of each output so that it starts by expecting emboli to be rare, as AANet does."""
    assert isinstance(network, SliceNetwork)
    for layer in network.output_layers():
        assert isinstance(layer.bias, Tensor)
        nn.init.constant_(layer.bias, FOREGROUND_LOGIT)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
