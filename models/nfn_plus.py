"""NFN+: a UNet and a second one that corrects it, fed at each of its depths by the first (Wu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.unet_blocks import SliceNetwork, conv_bn_relu, doubled


class NFNPlus(SliceNetwork):
    """Front and followed network, two poolings each; answers are the logits of both, in a list, the followed one last.

    The followed network starts from the front one's last features; the features of the front decoder at 1/2 and of
    its bottom at 1/4 join the followed encoder there. 1 138 412 parameters at 3 channels in, 2 out and base width 32.
    H and W must be multiples of 4.

    The published heads end in a ReLU, for a softmax over classes. A logit of its own must be able to say "no", that
    is to be negative: here they end with the BatchNorm before it.

    Args:
        dropout: the share of values left out between the two convolutions of each block, in training.
    """

    pixel_multiple = 4

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 32, dropout: float = 0.2) -> None:
        super().__init__()
        full, half, quarter = (base_width * 2**level for level in range(3))
        self.front_full = _block(in_channels, full, dropout)
        self.front_half = _block(full, half, dropout)
        self.front_quarter = _block(half, quarter, dropout)
        self.front_up_half = _block(quarter + half, half, dropout)
        self.front_up_full = _block(half + full, full, dropout)

        self.followed_full = _block(full, full, dropout)
        self.followed_half = _block(full + half, half, dropout)
        self.followed_quarter = _block(half + quarter, quarter, dropout)
        self.followed_up_half = _block(quarter + half, half, dropout)
        self.followed_up_full = _block(half + full, full, dropout)

        self.front_head = nn.Sequential(nn.Conv2d(full, out_channels, 1), nn.BatchNorm2d(out_channels))
        self.followed_head = nn.Sequential(nn.Conv2d(full, out_channels, 1), nn.BatchNorm2d(out_channels))

    def output_layers(self) -> list[nn.Module]:
        return [self.front_head[-1], self.followed_head[-1]]

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_size(x)
        full = self.front_full(x)
        half = self.front_half(F.max_pool2d(full, 2))
        quarter = self.front_quarter(F.max_pool2d(half, 2))
        up_half = self.front_up_half(torch.cat([half, doubled(quarter)], dim=1))
        front = self.front_up_full(torch.cat([full, doubled(up_half)], dim=1))

        full = self.followed_full(front)
        half = self.followed_half(torch.cat([up_half, F.max_pool2d(full, 2)], dim=1))
        quarter = self.followed_quarter(torch.cat([quarter, F.max_pool2d(half, 2)], dim=1))
        up_half = self.followed_up_half(torch.cat([half, doubled(quarter)], dim=1))
        followed = self.followed_up_full(torch.cat([full, doubled(up_half)], dim=1))
        return [self.front_head(front), self.followed_head(followed)]


def _block(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(conv_bn_relu(inputs, outputs), nn.Dropout(dropout), conv_bn_relu(outputs, outputs))
