from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from models.darknet.config import Convolutional, MaxPool, Route, Shortcut, Yolo, parse_cfg

LUNG_ROI = Path(__file__).parents[3] / "models/weights/lung-roi.cfg"

SMALL = """\
[net]
width=64   # a comment
height = 32
channels=1

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish
[maxpool]
size=5
[route]
layers=-1, 0
[convolutional]
filters=12
activation=linear
[yolo]
mask = 1,2
anchors = 1,2, 3,4, 5,6
classes=1
scale_x_y=1.1
"""


def test_small_network_is_read_layer_by_layer() -> None:
    config = parse_cfg(SMALL)
    assert (config.channels, config.height, config.width) == (1, 32, 64)
    convolution, pool, route, _, head = config.layers
    assert convolution == Convolutional(8, 3, 2, 1, 1, True, "mish")
    assert pool == MaxPool(5, 1, 4)
    assert route == Route((1, 0), 1, 0)
    assert head == Yolo(((3.0, 4.0), (5.0, 6.0)), 1, 1.1)
    assert config.out_channels == (8, 8, 16, 12, 12)


def test_shipped_lung_network_has_the_parts_of_yolov4() -> None:
    config = parse_cfg(LUNG_ROI.read_text())
    assert (config.channels, config.height, config.width) == (1, 192, 192)
    assert len(config.heads) == 2
    assert all(head.classes == 1 for head in config.heads)
    assert any(isinstance(layer, Shortcut) for layer in config.layers)
    assert [layer.size for layer in config.layers if isinstance(layer, MaxPool)] == [5, 3]
    assert any(isinstance(layer, Convolutional) and layer.activation == "mish" for layer in config.layers)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("filters=8", "filters=eight", r"line 8, \[convolutional\]: filters='eight' is not an integer"),
        ("stride=2", "stride=0", r"line 10.*stride=0 must be at least 1"),
        ("activation=mish", "activation=swish", r"activation=swish is not supported"),
        ("[maxpool]", "[dropout]", r"line 13, \[dropout\]: layer type is not supported"),
        ("layers=-1, 0", "layers=7", r"line 15, \[route\].*points to layer 7"),
        ("layers=-1, 0", "layers=-3", r"points to layer -1"),
        ("filters=12", "filters=11", r"\[yolo\]: needs 12 input channels, the layer before has 11"),
        ("mask = 1,2", "mask = 1,3", "does not select among 3 anchors"),
        ("3,4, 5,6", "3,4, 5", "pairs"),
        ("width=64   # a comment", "", r"line 1, \[net\]: width= is missing"),
        ("[net]", "[convolutional]", r"does not begin with \[net\]"),
        ("size=5", "size 5", "line 14: expected"),
    ],
)
def test_mistake_is_named_with_its_line(before: str, after: str, complaint: str) -> None:
    assert before in SMALL
    with pytest.raises(ConfigurationError, match=complaint):
        parse_cfg(SMALL.replace(before, after, 1))


def test_text_that_is_no_cfg_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        parse_cfg("")
    with pytest.raises(ConfigurationError, match="no \\[yolo\\]"):
        parse_cfg("[net]\nwidth=32\nheight=32\n")
