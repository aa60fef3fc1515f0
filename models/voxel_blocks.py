"""Layers at full resolution computed at half of it: the 2 x 2 x 2 voxels of a block are eight channels of one place.

The same sums, for OpenVINO on a CPU that multiplies matrices: one and eight channels leave most of a matrix idle,
eight and 64 fill it. A channel's eight values are neighbours, so that a group norm's groups stay together.
"""

from __future__ import annotations

import itertools

import numpy as np
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


def conv3d_to_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """The blocks of a 3^3 convolution (stride 1, padding 1) of voxels."""
    shifted = blocks_of(F.pad(x, (1,) * 6))  # so that what a block's voxels answer from lies in two blocks, not three
    return F.conv3d(shifted, _between_blocks(weight, voxels_out=(0, 1)))


def conv3d_from_blocks(blocks: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The voxels of a 3^3 convolution (stride 1, padding 1) of the voxels of blocks."""
    bias = None if bias is None else bias.repeat_interleave(VOXELS)
    # Blocks of the answer begin a voxel before those given, and lie between two of them.
    shifted = F.conv3d(blocks, _between_blocks(weight, voxels_out=(0, 1)), bias, padding=1)
    return voxels_of(shifted)[:, :, 1:-1, 1:-1, 1:-1]


def halving_conv3d_of_blocks(blocks: Tensor, weight: Tensor) -> Tensor:
    """A 3^3 convolution (stride 2, padding 1) of the voxels: places where blocks were."""
    return F.conv3d(F.pad(blocks, (1, 0) * 3), _between_blocks(weight, voxels_out=(1,)))


def conv_transpose3d_to_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """The blocks of a transposed convolution, kernel 2 and stride 2."""
    inputs, outputs = weight.shape[:2]
    return F.conv3d(x, weight.permute(1, 2, 3, 4, 0).reshape(VOXELS * outputs, inputs, 1, 1, 1))


def _between_blocks(weight: Tensor, *, voxels_out: tuple[int, ...]) -> Tensor:
    """The weight of a 2^3 convolution of blocks, whose two blocks along an axis have four voxels.

    Args:
        weight: (O, C, 3, 3, 3) of voxels.
        voxels_out: what is answered along each axis: 0 for the second of the four, from the first three; 1 for the
            third, from the last three.

    Returns:
        (O len(voxels_out)^3, 8 C, 2, 2, 2)
    """
    taps = np.zeros((3, len(voxels_out), 2, 2), np.float32)  # tap, answer, voxel, block; a trace takes it as it is
    for tap, (index, begin) in itertools.product(range(3), enumerate(voxels_out)):
        block, voxel = divmod(begin + tap, 2)
        taps[tap, index, voxel, block] = 1.0
    along = torch.from_numpy(taps).to(weight)
    spread = torch.einsum("oiklm,kqpa,lrsb,mtuc->oqrtipsuabc", weight, along, along, along)
    outputs, inputs = weight.shape[:2]
    return spread.reshape(outputs * len(voxels_out) ** 3, VOXELS * inputs, 2, 2, 2)
