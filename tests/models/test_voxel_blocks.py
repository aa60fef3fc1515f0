"""What is computed on blocks of voxels is what the layers at full resolution give."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from models.voxel_blocks import (
    blocks_of,
    conv3d_from_blocks,
    conv3d_to_blocks,
    conv_transpose3d_to_blocks,
    halving_conv3d_of_blocks,
    voxels_of,
)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_voxels_come_back_from_their_blocks() -> None:
    voxels = _random(2, 3, 6, 8, 4)
    assert torch.equal(voxels_of(blocks_of(voxels)), voxels)
    assert torch.equal(blocks_of(voxels)[0, 8:16, 1, 2, 0], voxels[0, 1, 2:4, 4:6, 0:2].flatten())


def test_a_convolution_may_answer_in_blocks() -> None:
    voxels, weight = _random(2, 3, 6, 8, 4), _random(5, 3, 3, 3, 3)
    answer = voxels_of(conv3d_to_blocks(voxels, weight))
    torch.testing.assert_close(answer, F.conv3d(voxels, weight, padding=1))


def test_a_convolution_may_be_of_blocks() -> None:
    voxels, weight, bias = _random(2, 3, 6, 8, 4), _random(5, 3, 3, 3, 3), _random(5)
    answer = conv3d_from_blocks(blocks_of(voxels), weight, bias)
    torch.testing.assert_close(answer, F.conv3d(voxels, weight, bias, padding=1))


def test_a_halving_convolution_of_blocks_is_one_of_their_voxels() -> None:
    voxels, weight = _random(2, 3, 6, 8, 4), _random(5, 3, 3, 3, 3)
    expected = F.conv3d(voxels, weight, stride=2, padding=1)
    torch.testing.assert_close(halving_conv3d_of_blocks(blocks_of(voxels), weight), expected)


def test_a_transposed_convolution_may_answer_in_blocks() -> None:
    x, weight = _random(2, 3, 3, 4, 2), _random(3, 5, 2, 2, 2)
    expected = F.conv_transpose3d(x, weight, stride=2)
    torch.testing.assert_close(voxels_of(conv_transpose3d_to_blocks(x, weight)), expected)
