from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.darknet.config import Convolutional, MaxPool, Route, Shortcut, Upsample, Yolo, parse_cfg
from models.darknet.network import DarknetNetwork
from models.darknet.weights import read_weights, write_weights
from models.packages import default_package_directory
from tests.models.darknet.made_networks import drawn_chest, random_network, yolov4_cfg

LUNG_ROI = Path(__file__).parents[3] / "models/weights/lung-roi.cfg"

# What OpenCV's reader adds to every variance. Ours is darknet's (src/blas.c), ten times that, and in the first layer of
# the shipped network, whose smallest variance is 0.0008, the difference shows.
OPENCV_EPSILON = 1e-6

# What OpenCV's reader adds to every variance. Ours is darknet's (src/blas.c), ten times that, and in the first layer of
# the shipped network, whose smallest variance is 0.0008, the difference shows.
OPENCV_EPSILON = 1e-6

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


def lung_network() -> DarknetNetwork:
    return random_network(LUNG_ROI.read_text())


def assert_opencv_finds_the_same_boxes(network: DarknetNetwork, cfg: Path, weights: Path, images: torch.Tensor) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = OPENCV_EPSILON
    with torch.inference_mode():
        ours = network.decode(network(images)).numpy()
    reader = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    reader.setInput(images.numpy())
    outputs = reader.forward(reader.getUnconnectedOutLayersNames())
    first, found = 0, 0
    for output, head in zip(outputs, network.config.heads, strict=True):
        anchors = len(head.anchors)
        # OpenCV orders row, column, anchor and multiplies objectness into the class score, which it drops up to 0.2.
        cells = output.size // (len(images) * anchors * 6)
        theirs = output.reshape(len(images), cells, anchors, 6).transpose(0, 2, 1, 3).reshape(len(images), -1, 6)
        mine = ours[:, first : first + anchors * cells]
        first += anchors * cells
        np.testing.assert_allclose(mine[..., :5], theirs[..., :5], atol=1e-4)
        scores = mine[..., 4] * mine[..., 5]
        kept = theirs[..., 5] > 0
        np.testing.assert_allclose(scores[kept], theirs[..., 5][kept], atol=1e-4)
        assert (scores[~kept] < 0.2 + 1e-4).all()
        found += np.count_nonzero(kept)
    assert found > 0
    assert first == ours.shape[1]


def test_opencv_reads_the_cfg_and_weights_and_finds_the_same_boxes(tmp_path: Path) -> None:
    network = lung_network()
    weights = tmp_path / "lung-roi.weights"
    write_weights(weights, network)
    assert_opencv_finds_the_same_boxes(network, LUNG_ROI, weights, torch.rand(2, 1, 192, 192))


def test_opencv_finds_the_same_boxes_with_the_shipped_lung_weights() -> None:
    package = default_package_directory()
    cfg, weights = package / "lung-roi.cfg", package / "lung-roi.weights"
    network = DarknetNetwork(parse_cfg(cfg.read_text())).eval()
    read_weights(weights, network)
    image = torch.from_numpy(drawn_chest()).float() / 255
    assert_opencv_finds_the_same_boxes(network, cfg, weights, image[None, None])


def test_full_yolov4_has_its_published_layers_and_opencv_finds_the_same_boxes(tmp_path: Path) -> None:
    cfg, weights = tmp_path / "yolov4.cfg", tmp_path / "yolov4.weights"
    cfg.write_text(yolov4_cfg(classes=1, size=416))
    network = random_network(cfg.read_text())
    kinds = Counter(type(layer) for layer in network.config.layers)
    assert kinds == {Convolutional: 110, Shortcut: 23, Route: 21, MaxPool: 3, Upsample: 2, Yolo: 3}
    assert [i for i, layer in enumerate(network.config.layers) if isinstance(layer, Yolo)] == [139, 150, 161]
    write_weights(weights, network)
    assert weights.stat().st_size == 256_015_980  # 20 bytes of header, 64,003,990 floats
    try:
        assert_opencv_finds_the_same_boxes(network, cfg, weights, torch.rand(1, 3, 416, 416))
    finally:
        weights.unlink()  # pytest keeps the folders of several runs


def test_eighty_classes_make_the_weight_file_of_the_published_yolov4() -> None:
    network = DarknetNetwork(parse_cfg(yolov4_cfg(classes=80)))
    values = sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())
    assert 20 + 4 * values == 257_717_640


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
