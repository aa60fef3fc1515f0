"""The UNet family for axial slices: UNet (Ronneberger 2015), Attention UNet (Oktay 2018), recurrent-residual blocks
(R2-UNet, Alom 2018), both, and the tiny ones of three levels and fewer.

Parameters are counted at 3 channels in, 2 out and base width 32. H and W must be multiples of 2 to the power of the
levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.unet_blocks import AttentionGate, DoubleConv, RecurrentResidualBlock, SliceNetwork, doubled


class _UNetFamily(SliceNetwork):
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

    def output_layers(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(x)
        features = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            features.append(x)
        for level in reversed(range(self.levels)):
            skip = features[level]
            if self.gates is not None:
                skip = self.gates[level](skip, x)
            x = self.decoder[level](torch.cat([skip, doubled(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


class UNet(_UNetFamily):
    """Four levels (7 852 578 parameters)."""

    levels = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__(in_channels, out_channels, base_width, attention=False, recurrent_residual=False)


class AttentionUNet(_UNetFamily):
    """UNet with an attention gate on each skip connection (8 202 662)."""

    levels = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__(in_channels, out_channels, base_width, attention=True, recurrent_residual=False)


class R2UNet(_UNetFamily):
    """UNet of recurrent-residual blocks (8 297 698)."""

    levels = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__(in_channels, out_channels, base_width, attention=False, recurrent_residual=True)


class AttentionR2UNet(_UNetFamily):
    """UNet of recurrent-residual blocks with attention gates (8 647 782)."""

    levels = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__(in_channels, out_channels, base_width, attention=True, recurrent_residual=True)


class _TinyUNet(_UNetFamily):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_width: int = 32,
        attention: bool = False,
        recurrent_residual: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, base_width, attention, recurrent_residual)


class UNet3Tiny(_TinyUNet):
    """Three levels (1 949 730); with both options the Tiny-Attention-Residual-UNet (2 153 317)."""

    levels = 3


class UNet2Tiny(_TinyUNet):
    """Two levels (472 866)."""

    levels = 2


class UNet1Tiny(_TinyUNet):
    """One level (103 074)."""

    levels = 1
