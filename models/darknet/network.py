"""A darknet configuration as a torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.darknet.config import (
    Convolutional,
    DarknetConfig,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
)

BATCH_NORM_EPSILON = 1e-5
LEAKY_SLOPE = 0.1
LOG_SIZE_LIMIT = 12.0
"""exp() of a larger predicted log size would be infinite in float16; no box is e^12 anchors wide."""


def activate(x: Tensor, activation: str) -> Tensor:
    """Applies ``linear``, ``leaky`` (slope 0.1) or ``mish`` (x tanh(softplus(x)))."""
    if activation == "mish":
        return F.mish(x)
    if activation == "leaky":
        return F.leaky_relu(x, LEAKY_SLOPE)
    return x


class ConvolutionalLayer(nn.Module):
    def __init__(self, layer: Convolutional, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            layer.filters,
            layer.size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=not layer.batch_normalize,
        )
        self.norm = nn.BatchNorm2d(layer.filters, eps=BATCH_NORM_EPSILON) if layer.batch_normalize else None
        self.activation = layer.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return activate(x if self.norm is None else self.norm(x), self.activation)


class DarknetNetwork(nn.Module):
    """Runs a `DarknetConfig` layer by layer.

    `forward` takes (N, C, H, W), values 0..1, H and W multiples of the coarsest stride (any size that is, not only the
    configuration's), and returns one raw tensor (N, anchors * (5 + classes), h, w) for each [yolo] layer.
    """

    def __init__(self, config: DarknetConfig) -> None:
        super().__init__()
        self.config = config
        self.convolutions = nn.ModuleDict()
        for index, layer in enumerate(config.layers):
            if isinstance(layer, Convolutional):
                inputs = config.out_channels[index - 1] if index else config.channels
                self.convolutions[str(index)] = ConvolutionalLayer(layer, inputs)
        self._needed_later = {
            source
            for layer in config.layers
            for source in ((layer.source,) if isinstance(layer, Shortcut) else getattr(layer, "sources", ()))
        }

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width the configuration was written for."""
        return self.config.channels, self.config.height, self.config.width

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise ValueError(f"expected (N, {self.config.channels}, H, W), got {tuple(x.shape)}")
        outputs: dict[int, Tensor] = {}
        heads: list[Tensor] = []
        for index, layer in enumerate(self.config.layers):
            match layer:
                case Convolutional():
                    x = self.convolutions[str(index)](x)
                case Shortcut():
                    x = activate(x + outputs[layer.source], layer.activation)
                case Route():
                    x = _route(layer, outputs)
                case MaxPool():
                    before = layer.padding // 2
                    after = layer.padding - before
                    padded = F.pad(x, (before, after, before, after), value=float("-inf"))
                    x = F.max_pool2d(padded, layer.size, layer.stride)
                case Upsample():
                    x = F.interpolate(x, scale_factor=layer.stride, mode="nearest")
                case Yolo():
                    heads.append(x)
            if index in self._needed_later:
                outputs[index] = x
        return heads

    def decode(self, heads: Sequence[Tensor]) -> Tensor:
        """Raw heads -> boxes (N, boxes, 5 + classes): cx, cy, w, h as fractions of the image, objectness, class scores.

        Anchor sizes are fractions of the configuration's input size. Boxes of one head are ordered anchor, row,
        column. The score of a class is objectness times its class score (not multiplied here).
        """
        decoded = []
        for head, layer in zip(heads, self.config.heads, strict=True):
            decoded.append(decode_head(head, layer, self.config.height, self.config.width).flatten(1, 3))
        return torch.cat(decoded, dim=1)


def split_anchors(head: Tensor, layer: Yolo) -> Tensor:
    """(N, anchors * (5 + classes), h, w) -> float32 (N, anchors, h, w, 5 + classes), values still raw."""
    batch, _, rows, columns = head.shape
    return head.float().reshape(batch, len(layer.anchors), 5 + layer.classes, rows, columns).permute(0, 1, 3, 4, 2)


def decode_head(head: Tensor, layer: Yolo, height: int, width: int) -> Tensor:
    """One raw head (N, anchors * (5 + classes), h, w) -> (N, anchors, h, w, 5 + classes); see `DarknetNetwork.decode`.

    `height` and `width` are those of the network's input, in which the anchors are given.
    """
    raw = split_anchors(head, layer)
    rows, columns = raw.shape[2:4]
    offset = (layer.scale_x_y - 1) / 2
    column = torch.arange(columns, device=head.device).view(1, 1, 1, columns)
    row = torch.arange(rows, device=head.device).view(1, 1, rows, 1)
    anchors = torch.tensor(layer.anchors, device=head.device).view(1, -1, 1, 1, 2)
    cx = (column + torch.sigmoid(raw[..., 0]) * layer.scale_x_y - offset) / columns
    cy = (row + torch.sigmoid(raw[..., 1]) * layer.scale_x_y - offset) / rows
    image_size = torch.tensor([width, height], device=head.device)
    size = torch.exp(raw[..., 2:4].clamp(max=LOG_SIZE_LIMIT)) * anchors / image_size
    return torch.cat([cx[..., None], cy[..., None], size, torch.sigmoid(raw[..., 4:])], dim=-1)


def _route(layer: Route, outputs: dict[int, Tensor]) -> Tensor:
    parts = []
    for source in layer.sources:
        channels = outputs[source].shape[1] // layer.groups
        parts.append(outputs[source][:, layer.group_id * channels : (layer.group_id + 1) * channels])
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
