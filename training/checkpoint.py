"""Checkpoints that survive being killed: configuration, weights, average, optimiser and step in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from imaging.errors import ConfigurationError
from training.ema import WeightAverage


def save_checkpoint(
    path: Path, *, config: dict[str, Any], step: int, network: nn.Module, average: WeightAverage, optimiser: Optimizer
) -> None:
    """Writes beside `path` and renames: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(
        {
            "config": config,
            "step": step,
            "network": network.state_dict(),
            "average": average.state,
            "optimiser": optimiser.state_dict(),
        },
        unfinished,
    )
    unfinished.replace(path)


def load_checkpoint(
    path: Path, *, config: dict[str, Any], network: nn.Module, average: WeightAverage, optimiser: Optimizer
) -> int:
    """Restores everything and returns the step to go on with.

    Raises ConfigurationError where the checkpoint was made by another configuration: mixing two would be neither.
    """
    saved = torch.load(path, weights_only=True)
    if saved["config"] != config:
        changed = sorted(key for key in config | saved["config"] if config.get(key) != saved["config"].get(key))
        raise ConfigurationError(
            f"checkpoint {path} was made with other values of {', '.join(changed)}",
            code="training.checkpoint",
            remedy="remove it, or train without --resume",
        )
    network.load_state_dict(saved["network"])
    average.load(saved["average"])
    optimiser.load_state_dict(saved["optimiser"])
    return int(saved["step"])
