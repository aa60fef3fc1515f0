from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from imaging.errors import ConfigurationError
from models.darknet.config import parse_cfg
from models.darknet.network import ConvolutionalLayer, DarknetNetwork
from models.darknet.weights import read_weights, write_weights

CFG = """\
[net]
width=8
height=8
channels=1
[convolutional]
batch_normalize=1
filters=2
size=1
activation=leaky
[convolutional]
filters=6
size=1
activation=linear
[yolo]
anchors = 4,4
classes=1
"""
# Layer 0: 2 biases, 2 scales, 2 means, 2 variances, 2 weights; layer 1: 6 biases, 6 x 2 weights.
VALUES = np.arange(28, dtype="<f4") + 1


def network() -> DarknetNetwork:
    return DarknetNetwork(parse_cfg(CFG))


def file_with(path: Path, values: np.ndarray, header: bytes | None = None) -> Path:
    path.write_bytes((struct.pack("<3iQ", 0, 2, 5, 77) if header is None else header) + values.tobytes())
    return path


def test_values_land_in_darknets_order(tmp_path: Path) -> None:
    loaded = network()
    assert read_weights(file_with(tmp_path / "w", VALUES), loaded) == 77
    first, second = loaded.convolutions["0"], loaded.convolutions["1"]
    assert isinstance(first, ConvolutionalLayer)
    assert isinstance(second, ConvolutionalLayer)
    assert first.norm is not None
    assert first.norm.bias.tolist() == [1, 2]
    assert first.norm.weight.tolist() == [3, 4]
    assert first.norm.running_mean is not None
    assert first.norm.running_mean.tolist() == [5, 6]
    assert first.norm.running_var is not None
    assert first.norm.running_var.tolist() == [7, 8]
    assert first.conv.weight.flatten().tolist() == [9, 10]
    assert second.conv.bias is not None
    assert second.conv.bias.tolist() == [11, 12, 13, 14, 15, 16]
    assert second.conv.weight.flatten().tolist() == list(range(17, 29))


def test_written_file_is_what_darknet_would_write(tmp_path: Path) -> None:
    original = file_with(tmp_path / "original", VALUES)
    loaded = network()
    read_weights(original, loaded)
    write_weights(tmp_path / "copy", loaded, seen=77)
    assert (tmp_path / "copy").read_bytes() == original.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "original"]


def test_old_header_counts_images_in_32_bits(tmp_path: Path) -> None:
    path = file_with(tmp_path / "w", VALUES, struct.pack("<3iI", 0, 1, 0, 5))
    assert read_weights(path, network()) == 5


def test_file_that_ends_early_is_refused_unless_partial_is_allowed(tmp_path: Path) -> None:
    path = file_with(tmp_path / "w", VALUES[:12])
    with pytest.raises(ConfigurationError, match="ends within layer 1 biases"):
        read_weights(path, network())
    loaded = network()
    read_weights(path, loaded, allow_partial=True)
    assert loaded.convolutions["0"].conv.weight.flatten().tolist() == [9, 10]


def test_file_with_values_left_over_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path / "w", np.append(VALUES, np.float32(0)).astype("<f4"))
    with pytest.raises(ConfigurationError, match="holds 29 values, the network has 28"):
        read_weights(path, network())


@pytest.mark.parametrize("content", [b"", b"short", struct.pack("<3iQ", 0, 2, 5, 0) + b"abc"])
def test_file_that_is_no_weight_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ConfigurationError, match="bytes"):
        read_weights(tmp_path / "w", network())


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_weights(tmp_path / "none", network())


def test_round_trip_through_channels_last_keeps_every_value(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = network().to(memory_format=torch.channels_last)
    write_weights(tmp_path / "w", trained)
    loaded = network()
    read_weights(tmp_path / "w", loaded)
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
