"""Overlap of boxes. Boxes are (..., 4): centre x, centre y, width, height, in any one unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-7


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes that broadcast against each other; drops the last axis."""
    intersection, union, _ = _overlap(a, b)
    return intersection / union


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """CIoU (Zheng 2020): IoU less the distance of the centres and the difference in aspect ratio; 1 when equal."""
    intersection, union, diagonal_squared = _overlap(a, b)
    iou = intersection / union
    distance_squared = ((a[..., :2] - b[..., :2]) ** 2).sum(dim=-1)
    angle_a = torch.atan(a[..., 2] / a[..., 3].clamp_min(EPSILON))
    angle_b = torch.atan(b[..., 2] / b[..., 3].clamp_min(EPSILON))
    aspect = 4 / math.pi**2 * (angle_a - angle_b) ** 2
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect + EPSILON)
    return iou - distance_squared / diagonal_squared - trade_off * aspect


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection area, union area, squared diagonal of the smallest box around both."""
    a_low, a_high = a[..., :2] - a[..., 2:4] / 2, a[..., :2] + a[..., 2:4] / 2
    b_low, b_high = b[..., :2] - b[..., 2:4] / 2, b[..., :2] + b[..., 2:4] / 2
    intersection = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(dim=-1)
    union = a[..., 2:4].prod(dim=-1) + b[..., 2:4].prod(dim=-1) - intersection + EPSILON
    hull = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)
    return intersection, union, (hull**2).sum(dim=-1) + EPSILON
