from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.dilated_convolution import dilated_conv3d, dilated_conv3d_in_phases


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


@pytest.mark.parametrize("dilation", [2, 5, 9])
def test_phases_by_themselves_give_the_dilated_answer(dilation: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 17, 20, 9, dtype=torch.float64)  # no multiples of a dilation, one no longer than it
    weight = torch.randn(4, 3, 3, 3, 3, dtype=torch.float64)
    expected = F.conv3d(x, weight, padding=dilation, dilation=dilation)
    torch.testing.assert_close(dilated_conv3d_in_phases(x, weight, dilation), expected)
