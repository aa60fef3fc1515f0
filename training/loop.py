"""The training loop: AdamW, warm-up and cosine, bf16, clipped gradients, averaged weights, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import load_checkpoint, save_checkpoint
from training.ema import WeightAverage
from training.recipe import NetworkRecipe
from training.sampling import Batch, BatchSource

Loss = Callable[[nn.Module, Batch], Tensor]
"""Runs the network on a batch and answers how wrong it is: a scalar."""

Validation = Callable[[nn.Module], Mapping[str, float]]
"""Named scores of a network in eval mode."""

LAST_LEARNING_RATE = 0.02  # share of the peak that the cosine ends at


def learning_rate(step: int, recipe: NetworkRecipe) -> float:
    """Linear warm-up to the peak, then half a cosine down."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.learning_rate * (LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * cosine)


def fit(
    network: nn.Module,
    source: BatchSource,
    loss: Loss,
    recipe: NetworkRecipe,
    folder: Path,
    *,
    validate: Validation | None = None,
    resume: bool = False,
    stop_after: int | None = None,
) -> dict[str, Tensor]:
    """Trains `network` and returns the averaged weights, which is what ships.

    `folder` gets `checkpoint.pt` and TensorBoard logs. `stop_after` ends early at that step, as a kill would, with
    the schedule of the whole training.
    """
    config = _config(recipe)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    average = WeightAverage(network, recipe.ema_decay)
    checkpoint = folder / "checkpoint.pt"
    state: dict[str, Any] = {"network": network, "average": average, "optimiser": optimiser}
    first = load_checkpoint(checkpoint, config=config, **state) if resume and checkpoint.exists() else 0
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    network.train()
    with SummaryWriter(str(folder / "log")) as log:
        started, losses = time.perf_counter(), 0.0
        for step in range(first, last):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, recipe)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(network, source.batch(step))
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimiser.step()
            average.update(network, step)
            losses += value.item()

            done = step + 1
            if done % recipe.log_every == 0:
                seconds = (time.perf_counter() - started) / recipe.log_every
                log.add_scalar("train/loss", losses / recipe.log_every, done)
                log.add_scalar("train/seconds_per_step", seconds, done)
                print(f"{recipe.name} {done}/{recipe.steps} loss {losses / recipe.log_every:.4f} {seconds:.2f} s/step",
                      flush=True)  # fmt: skip
                started, losses = time.perf_counter(), 0.0
            if validate is not None and (done % recipe.validate_every == 0 or done == recipe.steps):
                for name, score in _averaged_scores(network, average, validate).items():
                    log.add_scalar(f"validation/{name}", score, done)
                    print(f"{recipe.name} {done}/{recipe.steps} validation {name} {score:.4f}", flush=True)
                started = time.perf_counter()
            if done % recipe.checkpoint_every == 0 or done == last:
                save_checkpoint(checkpoint, config=config, step=done, **state)
    return average.state


def _config(recipe: NetworkRecipe) -> dict[str, Any]:
    """The recipe as plain containers, so that a checkpoint loads without running code (`weights_only`)."""
    return {**asdict(recipe), "config": str(recipe.config)}


def _averaged_scores(network: nn.Module, average: WeightAverage, validate: Validation) -> Mapping[str, float]:
    """Scores of the averaged weights; the network itself comes back as it was."""
    training = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(average.state)
    network.eval()
    with torch.inference_mode():
        scores = validate(network)
    network.load_state_dict(training)
    network.train()
    return scores
