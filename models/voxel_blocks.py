"""Layers at full resolution computed at half of it: the 2 x 2 x 2 voxels of a block are eight channels of one place.

The same sums, for OpenVINO on a CPU that multiplies matrices: one and eight channels leave most of a matrix idle,
eight and 64 fill it. A channel's eight values are neighbours, so that a group norm's groups stay together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

VOXELS = 8


def blocks_of(x: Tensor) -> Tensor:
    """(N, C, D, H, W), even sizes -> (N, 8 C, D / 2, H / 2, W / 2)."""
    batch, channels, depth, height, width = x.shape
    x = x.reshape(batch, channels, depth // 2, 2, height // 2, 2, width // 2, 2)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(batch, VOXELS * channels, depth // 2, height // 2, width // 2)


def voxels_of(blocks: Tensor) -> Tensor:
    """What `blocks_of` was given."""
    batch, channels, depth, height, width = blocks.shape
    x = blocks.reshape(batch, channels // VOXELS, 2, 2, 2, depth, height, width)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // VOXELS, 2 * depth, 2 * height, 2 * width)


def conv3d_of_blocks(blocks: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The blocks of a 3^3 convolution (stride 1, padding 1) of the voxels."""
    taps = _taps(voxels_out=2, blocks_in=(-1, 0, 1)).to(weight)
    spread = torch.einsum("oiklm,kqpa,lrsb,mtuc->oqrtipsuabc", weight, taps, taps, taps)
    outputs, inputs = weight.shape[:2]
    spread = spread.reshape(VOXELS * outputs, VOXELS * inputs, 3, 3, 3)
    return F.conv3d(blocks, spread, None if bias is None else bias.repeat_interleave(VOXELS), padding=1)


def halving_conv3d_of_blocks(blocks: Tensor, weight: Tensor) -> Tensor:
    """A 3^3 convolution (stride 2, padding 1) of the voxels: places where blocks were."""
    taps = _taps(voxels_out=1, blocks_in=(-1, 0)).to(weight)
    spread = torch.einsum("oiklm,kqpa,lrsb,mtuc->oqrtipsuabc", weight, taps, taps, taps)
    outputs, inputs = weight.shape[:2]
    return F.conv3d(F.pad(blocks, (1, 0) * 3), spread.reshape(outputs, VOXELS * inputs, 2, 2, 2))


def conv_transpose3d_to_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """The blocks of a transposed convolution, kernel 2 and stride 2."""
    inputs, outputs = weight.shape[:2]
    return F.conv3d(x, weight.permute(1, 2, 3, 4, 0).reshape(VOXELS * outputs, inputs, 1, 1, 1))


def _taps(voxels_out: int, blocks_in: tuple[int, ...]) -> Tensor:
    """Along one axis: which of three taps (first index) a voxel of the block answered (second) has on a voxel (third)
    of a block (fourth, at that distance)."""
    taps = torch.zeros(3, voxels_out, 2, len(blocks_in))
    for answered in range(voxels_out):
        for voxel in range(2):
            for index, block in enumerate(blocks_in):
                tap = 2 * block + voxel - answered + 1
                if 0 <= tap < 3:
                    taps[tap, answered, voxel, index] = 1.0
    return taps
