"""A group norm by moments is the library's, in whichever order the channels lie."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.group_norm import GroupNorm, group_norm_by_moments, norm_side_by_side
from models.voxel_blocks import blocks_of, voxels_of

EPSILON = 1e-5


def _norm(groups: int, channels: int) -> GroupNorm:
    norm = GroupNorm(groups, channels).double().requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    return norm


@pytest.mark.parametrize("shape", [(2, 8, 9, 7), (1, 8, 5, 4, 6)])
def test_moments_give_the_library_s_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = _norm(4, 8)
    x = torch.randn(shape, dtype=torch.float64) + 100.0  # the mean is many times the deviation
    expected = norm(x)
    torch.testing.assert_close(group_norm_by_moments(x, 4, norm.weight, norm.bias, EPSILON), expected)
    last = group_norm_by_moments(x.movedim(1, -1), 4, norm.weight, norm.bias, EPSILON, channel_axis=x.dim() - 1)
    torch.testing.assert_close(last.movedim(-1, 1), expected)


def test_blocks_are_normed_as_their_voxels() -> None:
    torch.manual_seed(0)
    norm = _norm(2, 8)
    voxels = torch.randn(2, 8, 4, 6, 2, dtype=torch.float64)
    torch.testing.assert_close(voxels_of(norm.of_blocks(blocks_of(voxels))), norm(voxels))


def test_norms_side_by_side_are_each_on_its_own_channels() -> None:
    torch.manual_seed(0)
    norms = [_norm(2, 8), _norm(2, 8)]
    parts = [torch.randn(1, 8, 4, 5, 3, dtype=torch.float64) for _ in norms]
    together = norm_side_by_side(torch.cat(parts, dim=1).movedim(1, -1), norms).movedim(-1, 1)
    expected = [F.group_norm(part, 2, norm.weight, norm.bias) for part, norm in zip(parts, norms, strict=True)]
    torch.testing.assert_close(together, torch.cat(expected, dim=1))
