"""A GroupNorm that leaves channels last where OpenVINO runs it.

OpenVINO's own wants every channel by itself, while its convolutions want channels last: it reorders before and after
each norm, which takes longer than the norm. Here a channel's moments are taken where its values lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    batch, channels = x.shape[0], x.shape[channel_axis]
    space = [axis for axis in range(1, x.dim()) if axis != channel_axis]
    along_channels = [channels if axis == channel_axis else 1 for axis in range(x.dim())]
    of_groups = (batch, groups, channels // groups)

    def spread(of_group: Tensor) -> Tensor:
        return of_group.expand(of_groups).reshape(batch, *along_channels[1:])

    def mean(values: Tensor) -> Tensor:
        return values.mean(space).reshape(of_groups).mean(2, keepdim=True)

    centred = x - spread(mean(x))
    root = torch.linalg.vector_norm(centred, dim=space).reshape(of_groups)
    root = torch.linalg.vector_norm(root, dim=2, keepdim=True)
    scale = spread(torch.rsqrt(root * (root / (x[0].numel() // groups)) + epsilon)) * weight.reshape(along_channels)
    return (centred - spread(mean(centred))) * scale + bias.reshape(along_channels)


def is_for_openvino() -> bool:
    """Whether a network is being traced, which is done for OpenVINO alone."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
