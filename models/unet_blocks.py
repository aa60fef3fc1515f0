"""What the 2D networks are made of: what all of them promise, and the blocks that several share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.group_norm import GroupNorm


class SliceNetwork(nn.Module, ABC):
    """A network of axial slices: (N, in_channels, H, W) -> logits (N, out_channels, H, W).

    Under deep supervision the answer is a list of such logits, the one that predicts last.

    Attributes:
        pixel_multiple: H and W must be multiples of it, at most 32; the caller pads.
    """

    pixel_multiple: int

    @abstractmethod
    def output_layers(self) -> list[nn.Module]:
        """The layers whose bias is the last that is added to logits; by it a training sets what to expect at first."""

    def check_size(self, x: Tensor) -> None:
        """Raises ValueError where H or W is no multiple of `pixel_multiple`."""
        if any(size % self.pixel_multiple for size in x.shape[2:]):
            raise ValueError(f"sizes must be multiples of {self.pixel_multiple}, got {tuple(x.shape[2:])}")


class LastOfDeepSupervision(nn.Module):
    """The network's answer that predicts, alone."""

    def __init__(self, network: SliceNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor | list[Tensor] = self.network(x)
        return answer if isinstance(answer, Tensor) else answer[-1]


def conv_bn_relu(inputs: int, outputs: int, *, dilation: int = 1) -> nn.Sequential:
    """A 3x3 convolution that keeps the size, BatchNorm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def doubled(x: Tensor) -> Tensor:
    """Twice as high and wide, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(inputs, outputs)
        self.conv2 = conv_bn_relu(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class RecurrentConv(nn.Module):
    """One convolution applied `1 + recurrences` times with shared weights: y = f(x), then y = f(y + x).

    Its norm is a GroupNorm: the passes differ in their statistics, and the running ones of a BatchNorm that all
    passes share fit none of them (Dice 0.87 with the batch's statistics was 0.00 with the running ones).
    """

    def __init__(self, channels: int, recurrences: int = 2) -> None:
        super().__init__()
        norm = GroupNorm(math.gcd(channels, 8), channels)
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), norm, nn.ReLU(inplace=True))
        self.recurrences = recurrences

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        for _ in range(self.recurrences):
            y = self.conv(y + x)
        return y


class RecurrentResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, 1)
        self.recurrent1 = RecurrentConv(outputs)
        self.recurrent2 = RecurrentConv(outputs)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        out: Tensor = projected + self.recurrent2(self.recurrent1(projected))
        return out


class AttentionGate(nn.Module):
    """Additive grid attention: the coarser decoder features say where the skip connection matters.

    Args:
        channels: of the skip connection.
        gate_channels: of the gating signal, at half the skip's resolution.
    """

    def __init__(self, channels: int, gate_channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 2, 2, stride=2, bias=False)
        self.phi = nn.Conv2d(gate_channels, channels // 2, 1)
        self.psi = nn.Conv2d(channels // 2, 1, 1)
        self.output = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        attention = torch.sigmoid(self.psi(F.relu(self.theta(skip) + self.phi(gate), inplace=True)))
        out: Tensor = self.output(skip * doubled(attention))
        return out
