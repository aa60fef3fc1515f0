"""XNet: two encoder-decoders in a row, the first back to half resolution only (Bullock et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.unet_blocks import SliceNetwork, conv_bn_relu, doubled


class XNet(SliceNetwork):
    """A W of single convolutions: down to 1/8, up to 1/2, down to 1/8 again, up to the whole.

    The last step up has its skip connection from the network's very first features, so that fine detail passes by
    both encoder-decoders. 3 112 290 parameters at 3 channels in, 2 out and base width 32. H and W must be multiples
    of 8.
    """

    pixel_multiple = 8

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32) -> None:
        super().__init__()
        full, half, quarter, eighth = (base_width * 2**level for level in range(4))
        self.first_full = conv_bn_relu(in_channels, full)
        self.first_half = conv_bn_relu(full, half)
        self.first_quarter = conv_bn_relu(half, quarter)
        self.first_eighth = nn.Sequential(conv_bn_relu(quarter, eighth), conv_bn_relu(eighth, eighth))
        self.first_up_quarter = conv_bn_relu(eighth + quarter, quarter)
        self.first_up_half = conv_bn_relu(quarter + half, half)

        self.second_half = conv_bn_relu(half, half)
        self.second_quarter = conv_bn_relu(half, quarter)
        self.second_eighth = nn.Sequential(conv_bn_relu(quarter, eighth), conv_bn_relu(eighth, eighth))
        self.second_up_quarter = conv_bn_relu(eighth + quarter, quarter)
        self.second_up_half = conv_bn_relu(quarter + half, half)
        self.second_up_full = conv_bn_relu(half + full, full)
        self.head = nn.Conv2d(full, out_channels, 1)

    def output_layers(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(x)
        full = self.first_full(x)
        half = self.first_half(F.max_pool2d(full, 2))
        quarter = self.first_quarter(F.max_pool2d(half, 2))
        x = self.first_eighth(F.max_pool2d(quarter, 2))
        x = self.first_up_quarter(torch.cat([quarter, doubled(x)], dim=1))
        x = self.first_up_half(torch.cat([half, doubled(x)], dim=1))

        half = self.second_half(x)
        quarter = self.second_quarter(F.max_pool2d(half, 2))
        x = self.second_eighth(F.max_pool2d(quarter, 2))
        x = self.second_up_quarter(torch.cat([quarter, doubled(x)], dim=1))
        x = self.second_up_half(torch.cat([half, doubled(x)], dim=1))
        x = self.second_up_full(torch.cat([full, doubled(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits
