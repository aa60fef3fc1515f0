"""AANet from a checkpoint with the published tensor names, whatever its widths.

The published training saved `state_dict` of a `DataParallel`; others put it under a key of a larger checkpoint. All of
these are read, and safetensors; nothing is unpickled but tensors and plain containers (`weights_only`).
"""

from __future__ import annotations

import pickle  # nosec B403
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imaging.errors import ConfigurationError
from models.aanet import CHANNELS_PER_GROUP, VOXEL_MULTIPLE, AANet
from models.package_check import check_finite

PICKLED_SUFFIXES = (".pth", ".pt")
SAFETENSORS_SUFFIX = ".safetensors"
CONTAINERS = ("state_dict", "model_state_dict", "model")
WRAPPER = "module."  # torch.nn.DataParallel's
_SHOWN = 3
_DAMAGED = (
    SafetensorError,
    # What torch.load lets through of random bytes:
    OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error,
)  # fmt: skip


def read_aanet(file: Path) -> tuple[AANet, dict[str, Any]]:
    """The network, in float32 and evaluation mode, and the constructor's arguments.

    Raises:
        ConfigurationError: the file is unreadable, holds more than tensors, or its tensors are not exactly an AANet's.
    """
    tensors = _tensors(file)
    parameters = aanet_parameters(tensors, file)
    with torch.device("meta"):  # names and shapes only: the values come from the file
        network = AANet(**parameters)
    _compare(file, tensors, network.state_dict())
    check_finite(file.name, tensors)
    network.load_state_dict({name: tensor.detach().float() for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
    check_answers(file, network)
    return network, parameters


def aanet_parameters(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """The constructor's arguments that give tensors of these names and shapes, if any do."""

    def filters(name: str) -> int:
        if name not in tensors:
            raise _refusal(file, f"lacks {name}, so it is no AANet")
        shape = tuple(tensors[name].shape)
        if len(shape) != 5 or shape[0] % CHANNELS_PER_GROUP or not shape[0]:
            raise _refusal(file, f"{name} is {shape}, not (a multiple of {CHANNELS_PER_GROUP}, channels, z, y, x)")
        return shape[0]

    def blocks(stage: str) -> int:
        begin = f"{stage}.conv."
        return max(1, len({name[len(begin) :].split(".")[0] for name in tensors if name.startswith(begin)}))

    aspp = filters("block44_aspp.conv.conv.weight")
    if aspp % (2 * CHANNELS_PER_GROUP):
        raise _refusal(
            file, f"block44_aspp.conv.conv.weight has {aspp} filters, no multiple of 8, so the heads cannot be"
        )
    return {
        "n_filters": [filters(f"{name}.conv.weight") for name in ("in_dw", "block1_dw", "block2_dw", "block3_dw")],
        "en_blocks": [blocks(name) for name in ("block1", "block2", "block3", "block4")],
        "de_blocks": [blocks(name) for name in ("block11", "block22", "block33")],
        "stem": filters("in_conv.conv.weight"),
        "aspp": aspp,
        "veins": any(name.startswith("segheadvein.") for name in tensors),
    }


def check_answers(file: Path, network: AANet) -> None:
    """Raises ConfigurationError where the smallest block of air is answered with what is no number."""
    with torch.inference_mode():
        answers = network.forward_logits(torch.zeros(1, 1, *(VOXEL_MULTIPLE,) * 3))
    check_finite(f"{file.name}, answering to air", dict(zip(("embolus", "artery", "vein"), answers, strict=False)))


def _tensors(file: Path) -> dict[str, Tensor]:
    content = _content(file)
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise _refusal(file, f"holds {type(content).__name__} without tensors")
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise _refusal(file, f"{name} is {type(tensor).__name__}, not a tensor")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided or tensor.is_meta:
            raise _refusal(file, f"{name} is {tensor.dtype} ({tensor.layout}), not plain floating point numbers")
    wrapped = all(str(name).startswith(WRAPPER) for name in content)
    return {str(name)[len(WRAPPER) if wrapped else 0 :]: tensor for name, tensor in content.items()}


def _content(file: Path) -> object:
    try:
        if file.suffix == SAFETENSORS_SUFFIX:
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message tells the reader how to run the code after all
        raise _unreadable(file, "it holds what only its own code could rebuild, or is damaged") from error
    except _DAMAGED as error:
        raise _unreadable(file, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _compare(file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise _refusal(file, f"lacks {_counted(missing)}")
    left_over = [name for name in tensors if name not in expected]
    if left_over:
        raise _refusal(file, f"holds {_counted(left_over)} which AANet does not have")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise _refusal(file, f"tensor {name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")


def _counted(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:_SHOWN])}{more})"


def _unreadable(file: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{file.name} cannot be read as tensors: {reason}",
        code="package.import",
        remedy="save the state dict alone: torch.save(network.state_dict(), path)",
    )


def _refusal(file: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{file.name}: {problem}",
        code="package.import",
        remedy="take a checkpoint of AANet, with the published names and one channel in",
    )
