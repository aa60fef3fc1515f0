"""Darknet's binary weight files.

Three little-endian int32 (major, minor, revision), then the number of images seen (uint64 from version 0.2 on, uint32
before), then float32 values, layer after layer in the order of the cfg. A convolution with batch normalisation holds
biases, scales, rolling means, rolling variances, then its kernel; one without holds biases and kernel. Kernels are
(filters, channels / groups, rows, columns). Source: darknet src/parser.c, load_weights_upto.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imaging.errors import ConfigurationError
from models.darknet.network import ConvolutionalLayer, DarknetNetwork

VERSION = (0, 2, 5)


def _tensors(network: DarknetNetwork) -> Iterator[tuple[str, Tensor]]:
    """The network's tensors with names for people, in the file's order."""
    for index, layer in network.convolutions.items():
        assert isinstance(layer, ConvolutionalLayer)
        if layer.norm is not None:
            assert layer.norm.running_mean is not None
            assert layer.norm.running_var is not None
            yield f"layer {index} biases", layer.norm.bias
            yield f"layer {index} scales", layer.norm.weight
            yield f"layer {index} rolling means", layer.norm.running_mean
            yield f"layer {index} rolling variances", layer.norm.running_var
        else:
            assert layer.conv.bias is not None
            yield f"layer {index} biases", layer.conv.bias
        yield f"layer {index} kernel", layer.conv.weight


def read_weights(path: Path, network: DarknetNetwork, *, allow_partial: bool = False) -> int:
    """Fills `network` from a weight file; returns the number of images it had seen in training.

    Args:
        allow_partial: let a file that ends early (``yolov4.conv.137``) leave the remaining layers as they are.

    Raises:
        ConfigurationError: the file is missing, ends early, or holds more than the network has.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from error
    if len(data) < 16:
        raise _refusal(path, f"{len(data)} bytes are too few for a header")
    major, minor, _ = struct.unpack_from("<3i", data)
    wide = major * 10 + minor >= 2
    header = 20 if wide else 16
    if len(data) < header or (len(data) - header) % 4:
        raise _refusal(path, f"{len(data)} bytes are not a header and whole float32 values")
    (seen,) = struct.unpack_from("<Q" if wide else "<I", data, 12)
    values = np.frombuffer(data, dtype="<f4", offset=header)
    position = 0
    with torch.no_grad():
        for name, tensor in _tensors(network):
            end = position + tensor.numel()
            if end > values.size:
                if allow_partial:
                    return int(seen)
                raise _refusal(path, f"ends within {name}: {values.size} values, at least {end} needed")
            tensor.copy_(torch.from_numpy(values[position:end].astype(np.float32)).view_as(tensor))
            position = end
    if position != values.size:
        raise _refusal(path, f"holds {values.size} values, the network has {position}")
    return int(seen)


def write_weights(path: Path, network: DarknetNetwork, seen: int = 0) -> None:
    """Writes the network's weights whole: a reader sees the old file or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(struct.pack("<3iQ", *VERSION, seen))
        for _, tensor in _tensors(network):
            file.write(tensor.detach().cpu().numpy().astype("<f4").tobytes())
    os.replace(part, path)


def _refusal(path: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"darknet weights {path.name}: {problem}",
        code="configuration.darknet_weights",
        remedy="take the weight file that belongs to this cfg",
    )
