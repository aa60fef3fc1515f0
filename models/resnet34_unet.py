"""A UNet whose encoder is a ResNet-34 (He et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.unet_blocks import DoubleConv, SliceNetwork, doubled

BLOCKS = (3, 4, 6, 3)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and their input added, projected where size or width change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(out + self.downsample(x), inplace=True)


class ResNet34Encoder(nn.Module):
    """ResNet-34 without its classifier: 21 284 672 parameters at 3 channels in and base width 64.

    Its tensors have the names they have in torchvision, so public ImageNet weights load once `fc` is left out.
    """

    def __init__(self, in_channels: int, base_width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.layer1 = _stage(base_width, base_width, BLOCKS[0], stride=1)
        self.layer2 = _stage(base_width, 2 * base_width, BLOCKS[1], stride=2)
        self.layer3 = _stage(2 * base_width, 4 * base_width, BLOCKS[2], stride=2)
        self.layer4 = _stage(4 * base_width, 8 * base_width, BLOCKS[3], stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features = [stem, self.layer1(F.max_pool2d(stem, 3, stride=2, padding=1))]
        for layer in (self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return features


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    )


class ResNet34UNet(SliceNetwork):
    """Each step up doubles the size and takes in the encoder's features of that size; the last, back to the input's
    size, has none to take in. H and W must be multiples of 32.
    """

    pixel_multiple = 32

    def __init__(self, in_channels: int, out_channels: int, base_width: int = 64) -> None:
        super().__init__()
        w = base_width
        self.encoder = ResNet34Encoder(in_channels, w)
        self.up_sixteenth = DoubleConv(8 * w + 4 * w, 4 * w)
        self.up_eighth = DoubleConv(4 * w + 2 * w, 2 * w)
        self.up_quarter = DoubleConv(2 * w + w, w)
        self.up_half = DoubleConv(w + w, w)
        self.up_full = DoubleConv(w, w // 2)
        self.head = nn.Conv2d(w // 2, out_channels, 1)

    def output_layers(self) -> list[nn.Module]:
        return [self.head]

    def forward(self, x: Tensor) -> Tensor:
        self.check_size(x)
        half, quarter, eighth, sixteenth, x = self.encoder(x)
        x = self.up_sixteenth(torch.cat([sixteenth, doubled(x)], dim=1))
        x = self.up_eighth(torch.cat([eighth, doubled(x)], dim=1))
        x = self.up_quarter(torch.cat([quarter, doubled(x)], dim=1))
        x = self.up_half(torch.cat([half, doubled(x)], dim=1))
        x = self.up_full(doubled(x))
        logits: Tensor = self.head(x)
        return logits
