from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.darknet.config import parse_cfg
from models.darknet.network import DarknetNetwork
from models.darknet.weights import write_weights

LUNG_ROI = Path(__file__).parents[3] / "models/weights/lung-roi.cfg"

ONE_CELL = """\
[net]
width=64
height=32
channels=6
[yolo]
anchors = 16,8
classes=1
scale_x_y=1.2
"""

POOLED = """\
[net]
width=8
height=8
channels=6
[maxpool]
size={size}
stride={stride}
[upsample]
stride=2
[yolo]
anchors = 16,8
classes=1
"""


def lung_network(seed: int = 0) -> DarknetNetwork:
    """Random weights, and batch statistics that are not the neutral ones."""
    torch.manual_seed(seed)
    network = DarknetNetwork(parse_cfg(LUNG_ROI.read_text())).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


def test_opencv_reads_the_cfg_and_weights_and_finds_the_same_boxes(tmp_path: Path) -> None:
    network = lung_network()
    weights = tmp_path / "lung-roi.weights"
    write_weights(weights, network)
    images = torch.rand(2, 1, 192, 192)
    with torch.inference_mode():
        ours = network.decode(network(images)).numpy()
    reader = cv2.dnn.readNetFromDarknet(str(LUNG_ROI), str(weights))
    reader.setInput(images.numpy())
    outputs = reader.forward(reader.getUnconnectedOutLayersNames())
    first = 0
    for output, head in zip(outputs, network.config.heads, strict=True):
        anchors = len(head.anchors)
        # OpenCV orders row, column, anchor and multiplies objectness into the class score.
        cells = output.shape[1] // anchors
        theirs = output.reshape(2, cells, anchors, 6).transpose(0, 2, 1, 3).reshape(2, -1, 6)
        mine = ours[:, first : first + anchors * cells]
        first += anchors * cells
        np.testing.assert_allclose(mine[..., :5], theirs[..., :5], atol=1e-4)
        np.testing.assert_allclose(mine[..., 4] * mine[..., 5], theirs[..., 5], atol=1e-4)
    assert first == ours.shape[1]


def test_lung_network_is_small() -> None:
    assert sum(parameter.numel() for parameter in lung_network().parameters()) < 400_000


def test_decoding_worked_by_hand() -> None:
    """One anchor, a grid of 1 row and 2 columns; the second cell predicts tx 0, ty 0, tw ln 2, th 0."""
    network = DarknetNetwork(parse_cfg(ONE_CELL))
    head = torch.zeros(1, 6, 1, 2)
    head[0, 2, 0, 1] = math.log(2)
    first, second = network.decode([head])[0]
    # cx = (0 + 0.5 * 1.2 - 0.1) / 2 ; w = 16 / 64, h = 8 / 32
    assert first.tolist() == pytest.approx([0.25, 0.5, 0.25, 0.25, 0.5, 0.5])
    assert second.tolist() == pytest.approx([0.75, 0.5, 0.5, 0.25, 0.5, 0.5])


def test_wild_size_logits_stay_finite() -> None:
    network = DarknetNetwork(parse_cfg(ONE_CELL))
    assert torch.isfinite(network.decode([torch.full((1, 6, 2, 2), 1e4)])).all()


@pytest.mark.parametrize(("size", "stride", "rows"), [(2, 2, 4), (5, 1, 8), (2, 1, 8), (3, 2, 4)])
def test_maxpool_keeps_darknets_size_and_looks_further_right_where_the_window_is_even(
    size: int, stride: int, rows: int
) -> None:
    network = DarknetNetwork(parse_cfg(POOLED.format(size=size, stride=stride)))
    x = torch.rand(1, 6, 8, 8)
    (out,) = network(x)
    assert out.shape[-1] == 2 * rows
    padding = (size - 1) // 2
    assert out[0, 0, 0, 0] == x[0, 0, : size - padding, : size - padding].max()


def test_mish_is_the_published_function() -> None:
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)
    torch.testing.assert_close(F.mish(x), x * torch.tanh(F.softplus(x)))


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        lung_network()(torch.rand(1, 3, 192, 192))
