"""A dilated 3D convolution that is fast on a CPU.

oneDNN computes the weight gradient of a dilated convolution by a reference path, several times slower than the
forward pass. Here it is 27 matrix products instead, one for each tap, on views of one zero-padded copy: 45 ms where
the library takes 105 to 130 (bf16, one core, 64 -> 16 channels, 2 x 32^3).

Forward, its bf16 kernels slow down with the dilation along the slices, from 89 ms at 3 to 395 ms at 9 (64 -> 16
channels, 56 x 64 x 56, in OpenVINO). Slices that are one dilation apart are neighbours in a stack of their own; a
convolution of those stacks, not dilated along the slices, gives the same numbers in 120 ms.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_STACKED_FROM = 5


def dilated_conv3d(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """(N, C, D, H, W) with (O, C, 3, 3, 3) -> (N, O, D, H, W): stride 1, zero padding that keeps the size, no bias."""
    if x.device.type != "cpu":
        return F.conv3d(x, weight, padding=dilation, dilation=dilation)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        # What is traced is run by OpenVINO, in bf16.
        in_bf16 = torch.is_autocast_enabled("cpu") or torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
        if in_bf16 and dilation >= _STACKED_FROM:
            return by_stacks(x, weight, dilation)
        return F.conv3d(x, weight, padding=dilation, dilation=dilation)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
    out: Tensor = _DilatedConv3d.apply(x, weight, dilation)  # type: ignore[no-untyped-call]
    return out


def by_stacks(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """`dilated_conv3d` of the `dilation` stacks of every `dilation`-th slice, as a batch."""
    images, channels, depth, height, width = x.shape
    longest = (depth + dilation - 1) // dilation
    whole = F.pad(x, (0, 0, 0, 0, 0, dilation - 1))[:, :, : longest * dilation]
    stacks = whole.reshape(images, channels, longest, dilation, height, width).permute(0, 3, 1, 2, 4, 5)
    stacks = stacks.reshape(images * dilation, channels, longest, height, width)
    out = F.conv3d(stacks, weight, padding=(1, dilation, dilation), dilation=(1, dilation, dilation))
    out = out.reshape(images, dilation, -1, longest, height, width).permute(0, 2, 3, 1, 4, 5)
    return out.reshape(images, -1, longest * dilation, height, width)[:, :, :depth]


class _DilatedConv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv3d(x, weight, padding=dilation, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        dilation: int = ctx.dilation
        for_input = None
        if ctx.needs_input_grad[0]:
            mirrored = weight.flip(2, 3, 4).transpose(0, 1)
            for_input = F.conv3d(gradient, mirrored, padding=dilation, dilation=dilation)
        return for_input, _weight_gradient(x, gradient, dilation), None


def _weight_gradient(x: Tensor, gradient: Tensor, dilation: int) -> Tensor:
    """With rows and columns padded at their ends by one dilation, a tap is a constant offset in the flat volume: what
    steps over an edge lands on zeros."""
    padding = (0, dilation, 0, dilation)
    rows, columns = x.shape[3] + dilation, x.shape[4] + dilation
    flat_x = F.pad(x, padding).flatten(2)
    flat_gradient = F.pad(gradient, padding).flatten(2).transpose(1, 2)
    length = flat_x.shape[2]
    taps = []
    for plane, row, column in product((-dilation, 0, dilation), repeat=3):
        offset = (plane * rows + row) * columns + column
        low, high = max(0, -offset), min(length, length - offset)
        if high <= low:
            taps.append(flat_x.new_zeros(x.shape[1], gradient.shape[1]))
            continue
        pairs = zip(flat_x, flat_gradient, strict=True)  # one at a time: a batched product would copy the views
        products = [image[:, low + offset : high + offset] @ upstream[low:high] for image, upstream in pairs]
        taps.append(torch.stack(products).sum(dim=0))
    stacked = torch.stack(taps).reshape(3, 3, 3, x.shape[1], gradient.shape[1])
    return stacked.permute(4, 3, 0, 1, 2)
