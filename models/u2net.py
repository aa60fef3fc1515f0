"""U2-Net: a U of eleven stages, each of which is a small residual U itself (Qin et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.unet_blocks import SliceNetwork, conv_bn_relu, doubled

DILATIONS = (1, 2, 4, 8)  # of a flat stage


class ResidualU(nn.Module):
    """RSU-L, L the `height`: an encoder of L - 1 convolutions with poolings between them, a dilated convolution at the
    bottom, the decoder back, and the block's first features added.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, height: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(inputs, outputs)
        self.down = nn.ModuleList(
            conv_bn_relu(outputs if depth == 0 else middle, middle) for depth in range(height - 1)
        )
        self.bottom = conv_bn_relu(middle, middle, dilation=2)
        self.up = nn.ModuleList(
            conv_bn_relu(2 * middle, outputs if depth == 0 else middle) for depth in range(height - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        features = [self.down[0](first)]
        for block in self.down[1:]:
            features.append(block(F.max_pool2d(features[-1], 2)))
        x = self.up[-1](torch.cat([self.bottom(features[-1]), features[-1]], dim=1))
        for depth in reversed(range(len(features) - 1)):
            x = self.up[depth](torch.cat([doubled(x), features[depth]], dim=1))
        return x + first


class FlatResidualU(nn.Module):
    """RSU-4F: as RSU-4, dilated convolutions in place of poolings, for stages too coarse to be pooled."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        *around, bottom = DILATIONS
        self.first = conv_bn_relu(inputs, outputs)
        self.down = nn.ModuleList(
            conv_bn_relu(outputs if depth == 0 else middle, middle, dilation=dilation)
            for depth, dilation in enumerate(around)
        )
        self.bottom = conv_bn_relu(middle, middle, dilation=bottom)
        self.up = nn.ModuleList(
            conv_bn_relu(2 * middle, outputs if depth == 0 else middle, dilation=dilation)
            for depth, dilation in enumerate(around)
        )

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.first(x)
        features = [self.down[0](first)]
        for block in self.down[1:]:
            features.append(block(features[-1]))
        x = self.bottom(features[-1])
        for depth in reversed(range(len(features))):
            x = self.up[depth](torch.cat([x, features[depth]], dim=1))
        return x + first


class Stage(NamedTuple):
    """The channels of one stage, inside and out."""

    middle: int
    outputs: int


HEIGHTS = (7, 6, 5, 4, 0, 0)
"""Of the stages at 1/1 to 1/32 resolution; 0 is flat."""


class _NestedU(SliceNetwork):
    """Six stages down and five up, each answering for itself, and an answer fused of those.

    Returns seven logits (N, out_channels, H, W) in a list, from the coarsest stage to the finest, the fused ones last.
    H and W must be multiples of 32.

    Args:
        encoder: the stages at 1/1 to 1/32.
        decoder: the stages at 1/1 to 1/16.
    """

    pixel_multiple = 32

    def __init__(self, in_channels: int, out_channels: int, encoder: Sequence[Stage], decoder: Sequence[Stage]) -> None:
        super().__init__()
        above = [in_channels, *(stage.outputs for stage in encoder[:-1])]
        below = [*(stage.outputs for stage in decoder[1:]), encoder[-1].outputs]
        skips = [stage.outputs for stage in encoder[:-1]]
        self.encoder = nn.ModuleList(map(_stage, above, encoder, HEIGHTS))
        self.decoder = nn.ModuleList(
            _stage(skip + coarser, stage, height)
            for skip, coarser, stage, height in zip(skips, below, decoder, HEIGHTS[:-1], strict=True)
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(stage.outputs, out_channels, 3, padding=1) for stage in (*decoder, encoder[-1])
        )
        self.fusion = nn.Conv2d(len(encoder) * out_channels, out_channels, 1)
        self._fuse_by_the_mean()

    def output_layers(self) -> list[nn.Module]:
        """Those of the stages: the fused answer starts as their mean."""
        return list(self.heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x)
        size = x.shape[2:]
        features: list[Tensor] = []
        for stage in self.encoder:
            features.append(stage(F.max_pool2d(features[-1], 2) if features else x))
        x = features[-1]
        answering = [x]
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](torch.cat([doubled(x), features[level]], dim=1))
            answering.append(x)
        sides = [
            F.interpolate(head(answer), size, mode="bilinear", align_corners=False)
            for head, answer in zip(reversed(self.heads), answering, strict=True)
        ]
        return [*sides, self.fusion(torch.cat(sides, dim=1))]

    def _fuse_by_the_mean(self) -> None:
        out_channels = self.fusion.out_channels
        stages = self.fusion.in_channels // out_channels
        with torch.no_grad():
            self.fusion.weight.copy_(torch.eye(out_channels).repeat(1, stages)[:, :, None, None] / stages)
            assert self.fusion.bias is not None
            self.fusion.bias.zero_()


def _stage(inputs: int, stage: Stage, height: int) -> nn.Module:
    if height == 0:
        return FlatResidualU(inputs, stage.middle, stage.outputs)
    return ResidualU(inputs, stage.middle, stage.outputs, height)


class U2Net(_NestedU):
    """The full network: 44 023 718 parameters at 3 channels in, 2 out and base width 64."""

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 64) -> None:
        w = base_width
        encoder = [
            Stage(w // 2, w),
            Stage(w // 2, 2 * w),
            Stage(w, 4 * w),
            Stage(2 * w, 8 * w),
            Stage(4 * w, 8 * w),
            Stage(4 * w, 8 * w),
        ]
        decoder = [
            Stage(w // 4, w),
            Stage(w // 2, w),
            Stage(w, 2 * w),
            Stage(2 * w, 4 * w),
            Stage(4 * w, 8 * w),
        ]
        super().__init__(in_channels, out_channels, encoder, decoder)


class U2NetP(_NestedU):
    """The small network, all stages alike: 1 134 662 parameters at 3 channels in, 2 out and base width 64."""

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 64) -> None:
        stage = Stage(base_width // 4, base_width)
        super().__init__(in_channels, out_channels, [stage] * 6, [stage] * 5)
