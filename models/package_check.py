"""Whether a package would work: its digests are right, its networks can be built and filled, their numbers are numbers.

What `load_package` refuses is refused here too; the networks themselves are looked at only here and by who runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from imaging.errors import ConfigurationError
from models.packages import ModelPackage, load_network, load_package


def check_package(directory: Path) -> ModelPackage:
    """Loads a package and each of its networks.

    Raises:
        ConfigurationError: naming the file, network or tensor that is not as it must be.
    """
    package = load_package(directory)
    for name, spec in package.networks.items():
        check_finite(f"model package {directory.name}: {spec.file.name}", load_network(package, name).state_dict())
    return package


def check_finite(owner: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises ConfigurationError naming the first tensor with a value that is infinite or no number."""
    for name, tensor in tensors.items():
        wrong = tensor[~torch.isfinite(tensor)]
        if wrong.numel():
            raise ConfigurationError(
                f"{owner}: tensor {name} holds {float(wrong[0])}, and {wrong.numel()} such values in all",
                code="package.not_finite",
                remedy="take weights of a training that did not diverge",
            )
