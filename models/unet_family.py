"""The UNet family for axial slices: UNet (Ronneberger 2015), Attention UNet (Oktay 2018), recurrent-residual blocks
(R2-UNet, Alom 2018) and the three-level UNet3Tiny that combines them.

All take (N, in_channels, H, W) and return logits (N, out_channels, H, W). H and W must be multiples of
`pixel_multiple`, 16 for four levels and 8 for three; the caller pads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(inputs, outputs)
        self.conv2 = _conv_bn_relu(outputs, outputs)

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
        norm = nn.GroupNorm(math.gcd(channels, 8), channels)
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
        attention = F.interpolate(attention, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.output(skip * attention)
        return out


class _UNetFamily(nn.Module):
    """An encoder of `levels + 1` blocks, each twice as wide as the one above, and the decoder back."""

    levels: int

    def __init__(
        self, in_channels: int, out_channels: int, base_width: int, attention: bool, recurrent_residual: bool
    ) -> None:
        super().__init__()
        block = RecurrentResidualBlock if recurrent_residual else DoubleConv
        widths = [base_width * 2**level for level in range(self.levels + 1)]
        self.pixel_multiple = 2**self.levels
        self.encoder = nn.ModuleList(
            block(inputs, outputs) for inputs, outputs in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.decoder = nn.ModuleList(block(3 * width, width) for width in widths[:-1])
        self.gates = nn.ModuleList(AttentionGate(width, 2 * width) for width in widths[:-1]) if attention else None
        self.head = nn.Conv2d(base_width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if any(size % self.pixel_multiple for size in x.shape[2:]):
            raise ValueError(f"sizes must be multiples of {self.pixel_multiple}, got {tuple(x.shape[2:])}")
        features = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            features.append(x)
        for level in reversed(range(self.levels)):
            skip = features[level]
            if self.gates is not None:
                skip = self.gates[level](skip, x)
            up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.decoder[level](torch.cat([skip, up], dim=1))
        logits: Tensor = self.head(x)
        return logits


class UNet(_UNetFamily):
    """Four levels; 7 852 578 parameters at 3 channels in, 2 out and base width 32. Sizes: multiples of 16."""

    levels = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__(in_channels, out_channels, base_width, attention=False, recurrent_residual=False)


class AttentionUNet(_UNetFamily):
    """UNet with an attention gate on each skip connection (8 202 662 parameters). Sizes: multiples of 16."""

    levels = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__(in_channels, out_channels, base_width, attention=True, recurrent_residual=False)


class UNet3Tiny(_UNetFamily):
    """Three levels; with both options the Tiny-Attention-Residual-UNet (2 153 317). Sizes: multiples of 8."""

    levels = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_width: int = 32,
        attention: bool = False,
        recurrent_residual: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, base_width, attention, recurrent_residual)
