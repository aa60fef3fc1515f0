"""A GroupNorm that leaves channels last where OpenVINO runs it.

OpenVINO's own wants every channel by itself, while its convolutions want channels last: it reorders before and after
each norm, which takes longer than the norm. Here a channel's moments are taken where its values lie.
"""

from __future__ import annotations

import math
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

    OpenVINO rounds moments to bf16 as it does everything, and a group's mean may be several times its deviation. So
    moments are taken of every plane of a channel: the mean over planes of what rounding left over makes the mean
    precise, and the variance is a mean of differences from it. `x` is read twice for its moments and once to be normed.

    Args:
        x: batch first, channels at `channel_axis`, which is 1 or the last.
    """
    channels = len(weight)
    space = [axis for axis in range(1, x.dim()) if axis != channel_axis]
    in_plane = space[1:]
    along_channels = [channels if axis == channel_axis else 1 for axis in range(x.dim())]
    average = _group_average(channels, groups).to(weight)

    def mean(values: Tensor) -> Tensor:
        """Over groups first: OpenVINO would join this mean with one within planes, and read `x` once more."""
        if channel_axis == 1:
            convolution = F.conv3d if x.dim() == 5 else F.conv2d
            in_groups = convolution(values, average.reshape(channels, channels, *along_channels[2:]))
        else:
            in_groups = F.linear(values, average)
        return in_groups.mean(space, keepdim=True)

    plane_mean = x.mean(in_plane, keepdim=True)
    coarse = mean(plane_mean)
    rest = mean(plane_mean - coarse)  # never added to `coarse` alone, which would round it away
    plane_size = math.prod(x.shape[axis] for axis in in_plane)
    root_mean_square = torch.linalg.vector_norm(x, dim=in_plane, keepdim=True) / plane_size**0.5
    variance = mean((root_mean_square - coarse - rest) * (root_mean_square + coarse + rest))
    scale = torch.rsqrt(F.relu(variance) + epsilon) * weight.reshape(along_channels)
    return (x - coarse - rest) * scale + bias.reshape(along_channels)


def _group_average(channels: int, groups: int) -> Tensor:
    """(channels, channels): the values of all channels -> each the mean of its group's.

    It is numpy's, since a trace would hold how torch made it.
    """
    share = channels // groups
    average = np.kron(np.eye(groups), np.full((share, share), 1 / share))
    return torch.from_numpy(average.astype(np.float32))


def is_for_openvino() -> bool:
    """Whether a network is being traced, which is done for OpenVINO alone."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
