"""Networks for the tests: the cfg of the full YOLOv4, and random weights under which every layer matters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.darknet.config import parse_cfg
from models.darknet.network import DarknetNetwork

ANCHORS = "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401"


def random_network(cfg: str, seed: int = 0) -> DarknetNetwork:
    """Random weights, and batch statistics of a random image: what goes in shows in what comes out.

    Variances are half as large again: with the very ones of the image, a hundred layers let differences in rounding
    grow a thousandfold, and two exact implementations disagree.
    """
    torch.manual_seed(seed)
    network = DarknetNetwork(parse_cfg(cfg))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.8, 1.2)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(1, *network.input_shape))
        for norm in norms:
            assert norm.running_var is not None
            norm.running_var *= 1.5
    return network.eval()


def drawn_chest() -> NDArray[np.uint8]:
    """Two dark lungs in grey tissue, (192, 192), as the lung detector's window shows an axial slice."""
    picture = np.full((192, 192), 185, np.uint8)
    picture[:20], picture[-20:] = 0, 0
    picture[55:140, 35:88] = picture[55:140, 104:157] = 20
    return picture


def yolov4_cfg(classes: int = 1, size: int = 416) -> str:
    """YOLOv4 as published (Bochkovskiy 2020): CSPDarknet53, spatial pyramid pooling, path aggregation, three heads."""
    return "\n".join(
        [
            f"[net]\nwidth={size}\nheight={size}\nchannels=3",
            *_backbone(),
            *_pyramid_pooling(),
            *_path_aggregation(classes),
            "",
        ]
    )


def _convolutional(filters: int, size: int, activation: str, stride: int = 1) -> str:
    return (
        f"[convolutional]\nbatch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\n"
        f"activation={activation}"
    )


def _route(*layers: int) -> str:
    return "[route]\nlayers=" + ",".join(str(layer) for layer in layers)


def _leaky(*filters_and_sizes: tuple[int, int]) -> Iterator[str]:
    for filters, size in filters_and_sizes:
        yield _convolutional(filters, size, "leaky")


def _backbone() -> Iterator[str]:
    yield _convolutional(32, 3, "mish")
    for filters, residuals in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        half = filters if residuals == 1 else filters // 2
        inner = filters // 2
        yield _convolutional(filters, 3, "mish", stride=2)
        yield _convolutional(half, 1, "mish")
        yield _route(-2)
        yield _convolutional(half, 1, "mish")
        for _ in range(residuals):
            yield _convolutional(inner, 1, "mish")
            yield _convolutional(half, 3, "mish")
            yield "[shortcut]\nfrom=-3\nactivation=linear"
        yield _convolutional(half, 1, "mish")
        yield _route(-1, -(3 * residuals + 4))
        yield _convolutional(filters, 1, "mish")


def _pyramid_pooling() -> Iterator[str]:
    yield from _leaky((512, 1), (1024, 3), (512, 1))
    yield "[maxpool]\nstride=1\nsize=5"
    yield _route(-2)
    yield "[maxpool]\nstride=1\nsize=9"
    yield _route(-4)
    yield "[maxpool]\nstride=1\nsize=13"
    yield _route(-1, -3, -5, -6)
    yield from _leaky((512, 1), (1024, 3), (512, 1))


def _path_aggregation(classes: int) -> Iterator[str]:
    for filters, lateral in ((256, 85), (128, 54)):
        yield from _leaky((filters, 1))
        yield "[upsample]\nstride=2"
        yield _route(lateral)
        yield from _leaky((filters, 1))
        yield _route(-1, -3)
        yield from _leaky((filters, 1), (2 * filters, 3), (filters, 1), (2 * filters, 3), (filters, 1))
    yield from _head(256, "0,1,2", 1.2, classes)
    for filters, back, mask, scale in ((256, -16, "3,4,5", 1.1), (512, -37, "6,7,8", 1.05)):
        yield _route(-4)
        yield _convolutional(filters, 3, "leaky", stride=2)
        yield _route(-1, back)
        yield from _leaky((filters, 1), (2 * filters, 3), (filters, 1), (2 * filters, 3), (filters, 1))
        yield from _head(2 * filters, mask, scale, classes)


def _head(filters: int, mask: str, scale: float, classes: int) -> Iterator[str]:
    yield from _leaky((filters, 3))
    yield f"[convolutional]\nfilters={3 * (5 + classes)}\nsize=1\nstride=1\npad=1\nactivation=linear"
    yield f"[yolo]\nmask={mask}\nanchors={ANCHORS}\nclasses={classes}\nnum=9\nscale_x_y={scale}"
