from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.dilated_convolution import by_stacks, dilated_conv3d


@pytest.mark.parametrize("dilation", [1, 2, 3, 9])
def test_output_and_gradients_are_those_of_the_library(dilation: int) -> None:
    generator = torch.Generator().manual_seed(dilation)
    x = torch.randn(2, 3, 5, 7, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 3, 3, 3, 3, dtype=torch.float64, generator=generator)
    upstream = torch.randn(2, 4, 5, 7, 6, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    weight.requires_grad_()
    ours = dilated_conv3d(x, weight, dilation)
    theirs = F.conv3d(x, weight, padding=dilation, dilation=dilation)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(
        torch.autograd.grad(ours, (x, weight), upstream),
        torch.autograd.grad(theirs, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_runs_in_the_precision_of_autocast() -> None:
    x, weight = torch.randn(1, 4, 8, 8, 8), torch.randn(4, 4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = dilated_conv3d(x, weight, 3)
    (gradient,) = torch.autograd.grad(out.float().sum(), weight)
    assert out.dtype == torch.bfloat16
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("depth", [1, 4, 9, 10, 23])
@pytest.mark.parametrize("dilation", [1, 5, 9])
def test_convolved_in_stacks_it_gives_the_same_numbers(depth: int, dilation: int) -> None:
    generator = torch.Generator().manual_seed(depth)
    x = torch.randn(2, 3, depth, 7, 11, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 3, 3, 3, 3, dtype=torch.float64, generator=generator)
    plain = F.conv3d(x, weight, padding=dilation, dilation=dilation)
    torch.testing.assert_close(by_stacks(x, weight, dilation), plain, rtol=1e-12, atol=1e-12)


def test_traced_at_one_size_it_is_right_at_another() -> None:
    weight = torch.randn(4, 3, 3, 3, 3)

    def convolution(x: torch.Tensor) -> torch.Tensor:
        return dilated_conv3d(x, weight, 7)

    traced = torch.jit.trace(convolution, torch.zeros(1, 3, 16, 16, 16), check_trace=False)
    x = torch.randn(1, 3, 24, 9, 12)
    torch.testing.assert_close(traced(x), F.conv3d(x, weight, padding=7, dilation=7), rtol=1e-4, atol=1e-4)
