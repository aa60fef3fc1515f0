"""A GroupNorm that leaves channels last where OpenVINO runs it.

OpenVINO's own wants every channel by itself, while its convolutions want channels last: it reorders before and after
each norm, which takes longer than the norm. Here a channel's moments are taken where its values lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.voxel_blocks import VOXELS


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, in OpenVINO computed from the moments of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        if is_for_openvino():
            return group_norm_by_moments(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x)

    def of_blocks(self, blocks: Tensor) -> Tensor:
        """Of the voxels that are channels of `blocks` (see `models/voxel_blocks.py`)."""
        weight, bias = (values.repeat_interleave(VOXELS) for values in (self.weight, self.bias))
        return group_norm_by_moments(blocks, self.num_groups, weight, bias, self.eps)


def norm_side_by_side(x: Tensor, norms: Sequence[GroupNorm]) -> Tensor:
    """Each norm on its own part of the channels, which are the last dimension; the norms differ in weights alone."""
    weight, bias = torch.cat([*(norm.weight for norm in norms)]), torch.cat([*(norm.bias for norm in norms)])
    groups = sum(norm.num_groups for norm in norms)
    return group_norm_by_moments(x, groups, weight, bias, norms[0].eps, channel_axis=x.dim() - 1)


def group_norm_by_moments(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, epsilon: float, *, channel_axis: int = 1
) -> Tensor:
    """The same as `F.group_norm`, but for rounding.

    OpenVINO rounds the moments themselves to bf16. So the mean is taken away before the squares are summed, and what
    that rounding left of it is taken away afterwards: a group's mean may be several times its deviation.

    Args:
        x: batch first, channels at `channel_axis`.
    """
    channels = len(weight)
    space = [axis for axis in range(1, x.dim()) if axis != channel_axis]
    along_channels = [channels if axis == channel_axis else 1 for axis in range(x.dim())]
    along_channels[0] = -1
    over_groups = _group_average(channels, groups).to(weight)

    def mean(values: Tensor) -> Tensor:
        return F.linear(values.mean(space), over_groups).reshape(along_channels)

    centred = x - mean(x)
    root = torch.linalg.vector_norm(centred, dim=space)
    variance = F.linear(root * (root / (x[0].numel() // channels)), over_groups)
    scale = (torch.rsqrt(variance + epsilon) * weight).reshape(along_channels)
    return (centred - mean(centred)) * scale + bias.reshape(along_channels)


def _group_average(channels: int, groups: int) -> Tensor:
    """(channels, channels): the values of all channels -> each the mean of its group's.

    One product for each moment: of AANet's norms the reshapes and means that it saves are a third of the graph, and of
    the time in which OpenVINO takes it in and compiles it. It is numpy's, since a trace would hold how torch made it.
    """
    share = channels // groups
    average = np.kron(np.eye(groups), np.full((share, share), 1 / share))
    return torch.from_numpy(average.astype(np.float32))


def is_for_openvino() -> bool:
    """Whether a network is being traced, which is done for OpenVINO alone."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
