"""Checkpoints that survive being killed: configuration, weights, averages, optimiser and step in one file.

There is no state of a random generator among them, because there is none to keep: the draws of a step are a function
of (seed, step), and the seed is part of the configuration.
"""

from __future__ import annotations

import os
import pickle  # nosec B403
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from imaging.errors import ConfigurationError
from training.ema import EqualAverage, WeightAverage


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that changes in a training, to be saved and restored together.

    `since_log` are the sums that the next log entry will be made of.
    """

    network: nn.Module
    ema: WeightAverage
    swa: EqualAverage
    optimiser: Optimizer
    since_log: dict[str, float]


def save_checkpoint(path: Path, *, config: Mapping[str, Any], step: int, state: TrainingState) -> None:
    """Writes beside `path`, onto the disk, and renames: after a crash there is the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")  # one name: what a killed process left behind is overwritten
    with unfinished.open("wb") as file:
        torch.save(
            {
                "config": dict(config),
                "step": step,
                "network": state.network.state_dict(),
                "ema": state.ema.state,
                "swa": state.swa.state,
                "optimiser": state.optimiser.state_dict(),
                "since_log": dict(state.since_log),
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_checkpoint(path: Path, *, config: Mapping[str, Any], state: TrainingState, device: torch.device) -> int:
    """Restores everything and returns the step to go on with.

    Raises ConfigurationError where the checkpoint was made by another configuration: mixing two would be neither; and
    where it holds anything but tensors and plain containers: nothing else is ever rebuilt.
    """
    try:
        saved = torch.load(path, weights_only=True, map_location=device)
    except pickle.UnpicklingError as error:  # torch's own message tells the reader how to run the code after all
        raise ConfigurationError(
            f"checkpoint {path} holds what only its own code could rebuild, or is damaged",
            code="training.checkpoint",
            remedy="remove it, or train without --resume",
        ) from error
    if saved["config"] != config:
        changed = sorted(key for key in {**config, **saved["config"]} if config.get(key) != saved["config"].get(key))
        raise ConfigurationError(
            f"checkpoint {path} was made with other values of {', '.join(changed)}",
            code="training.checkpoint",
            remedy="remove it, or train without --resume",
        )
    state.network.load_state_dict(saved["network"])
    state.ema.load(saved["ema"])
    state.swa.load(saved["swa"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.since_log.update(saved["since_log"])
    return int(saved["step"])
