"""AANet: artery-aware 3D segmentation of pulmonary emboli (Guo et al., MICCAI 2022).

A residual encoder-decoder with weight-standardised convolutions and GroupNorm. Its four decoder scales meet at half
resolution in the artery context fusion (ACF: parallel dilated convolutions); the artery head's probability, max-pooled
to that resolution, gates the features from which the embolus head answers. Tensor names follow the published
checkpoint layout, so `state_dict` carries over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.dilated_convolution import WORTH_PHASES, dilated_conv3d, dilated_conv3d_in_phases
from models.group_norm import GroupNorm, is_for_openvino, norm_side_by_side
from models.voxel_blocks import (
    conv3d_from_blocks,
    conv3d_to_blocks,
    conv_transpose3d_to_blocks,
    halving_conv3d_of_blocks,
)

VOXEL_MULTIPLE = 16
"""Depth, height and width of the input must be multiples of this; the caller pads (see `sliding_window`)."""

HEADS = ("segs", "segvs", "segveins")
CHANNELS_PER_GROUP = 4
STANDARDISATION_EPSILON = 1e-6
FOREGROUND_PRIOR = 0.01


def _standardised(weight: Tensor, filters: int) -> Tensor:
    """Zero mean and unit (biased) variance for each of `filters` rows.

    By `batch_norm`, whose rounding the published network has: with ill-conditioned weights the last bit matters.
    """
    rows = weight.reshape(1, filters, -1)
    return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=STANDARDISATION_EPSILON)


class StandardisedConv3d(nn.Conv3d):
    """A bias-free convolution with weight standardisation (Qiao et al. 2019)."""

    folded = False

    def standardised_weight(self) -> Tensor:
        return self.weight if self.folded else _standardised(self.weight, self.out_channels).reshape(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.standardised_weight()
        if self.dilation[0] >= WORTH_PHASES and is_for_openvino():
            return dilated_conv3d_in_phases(x, weight, self.dilation[0])
        if self.dilation[0] > 1:
            return dilated_conv3d(x, weight, self.dilation[0])
        return F.conv3d(x, weight, None, self.stride, self.padding, self.dilation)


class StandardisedConvTranspose3d(nn.ConvTranspose3d):
    """A bias-free transposed convolution, kernel 2 and stride 2, standardised as the published network does it.

    The published code standardises per output filter and then reads the (out, in, ...) values back in (in, out, ...)
    order without permuting them. The statistics are therefore not those of one filter, but published weights only
    mean what they were trained to mean if that is repeated here.
    """

    folded = False

    def standardised_weight(self) -> Tensor:
        if self.folded:
            return self.weight
        out_major = self.weight.transpose(0, 1)
        return _standardised(out_major, self.out_channels).reshape(self.weight.shape)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose3d(x, self.standardised_weight(), None, self.stride)


def _group_norm(channels: int) -> GroupNorm:
    return GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class ConvUnit(nn.Module):
    """Standardised convolution, GroupNorm and, unless `activate` is False, ReLU. Keeps the size at stride 1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        padding = 0 if kernel == stride else kernel // 2 + dilation - 1
        self.conv = StandardisedConv3d(
            inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False
        )
        self.norm = _group_norm(outputs)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.activate else x


class UpUnit(nn.Module):
    """Transposed convolution to twice the size, GroupNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = StandardisedConvTranspose3d(inputs, outputs, 2, stride=2, bias=False)
        self.norm = _group_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = ConvUnit(inputs, outputs, 3)
        self.conv2 = ConvUnit(outputs, outputs, 3, activate=False)
        self.res = ConvUnit(inputs, outputs, 1, activate=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.res(x), inplace=True)


class ResidualStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class SideOutput(nn.Module):
    """Brings one decoder scale to `outputs` channels at half resolution (nearest neighbour)."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.conv = ConvUnit(inputs, outputs, 1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=self.scale, mode="nearest")


class ArteryContextFusion(nn.Module):
    """Five parallel branches, 1^3 and 3^3 at dilations 3, 5, 7, 9, concatenated and mixed back to `outputs`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.aspp0 = ConvUnit(inputs, outputs, 1)
        self.aspp1 = ConvUnit(inputs, outputs, 3, dilation=3)
        self.aspp2 = ConvUnit(inputs, outputs, 3, dilation=5)
        self.aspp3 = ConvUnit(inputs, outputs, 3, dilation=7)
        self.aspp4 = ConvUnit(inputs, outputs, 3, dilation=9)
        self.transition = ConvUnit(outputs * 5, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.aspp0, self.aspp1, self.aspp2, self.aspp3, self.aspp4)
        if is_for_openvino():  # which would bring each branch's channels first to put them side by side
            together = torch.cat([branch.conv(x).permute(0, 2, 3, 4, 1) for branch in branches], dim=-1)
            features = F.relu(norm_side_by_side(together, [branch.norm for branch in branches]))
            features = features.permute(0, 4, 1, 2, 3)
        else:
            features = torch.cat([branch(x) for branch in branches], dim=1)
        out: Tensor = self.transition(features)
        return out


class SegmentationHead(nn.Module):
    """Half resolution features -> full resolution logits (N, 1, D, H, W); starts at the foreground prior."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.up_conv = UpUnit(inputs, hidden)
        self.seg_output = nn.Conv3d(hidden, 1, 3, padding=1)
        nn.init.zeros_(self.seg_output.weight)
        assert self.seg_output.bias is not None
        nn.init.constant_(self.seg_output.bias, -math.log((1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR))

    def forward(self, x: Tensor) -> Tensor:
        if is_for_openvino():
            blocks = conv_transpose3d_to_blocks(x, self.up_conv.conv.standardised_weight())
            blocks = F.relu(self.up_conv.norm.of_blocks(blocks))
            return conv3d_from_blocks(blocks, self.seg_output.weight, self.seg_output.bias)
        # A convolution to one channel is five times as fast channels-last; GroupNorm before it is not.
        out: Tensor = self.seg_output(self.up_conv(x).contiguous(memory_format=torch.channels_last_3d))
        return out


class AANet(nn.Module):
    """The artery-aware network. Every width is a constructor argument; GroupNorm takes four channels a group.

    Args:
        n_filters: channels at 1/2, 1/4, 1/8 and 1/16 of the input's resolution.
        en_blocks: residual blocks of the encoder at 1/2, 1/4, 1/8 and 1/16.
        de_blocks: residual blocks of the decoder at 1/2, 1/4 and 1/8.
        stem: channels at full resolution (first convolution and heads).
        aspp: channels of the side outputs and of the artery context fusion.
        veins: a third head that says what is vein, so that the features must tell the two trees apart. The published
            network, which has none, drops the veins' labels.
    """

    def __init__(
        self,
        n_filters: Sequence[int] = (64, 96, 128, 160),
        en_blocks: Sequence[int] = (2, 3, 3, 3),
        de_blocks: Sequence[int] = (1, 2, 2),
        stem: int = 16,
        aspp: int = 32,
        in_channels: int = 1,
        veins: bool = False,
    ) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = n_filters
        self.in_conv = ConvUnit(in_channels, stem, 3)
        self.in_dw = ConvUnit(stem, half, 3, stride=2)
        self.block1 = ResidualStage(half, half, en_blocks[0])
        self.block1_dw = ConvUnit(half, quarter, 2, stride=2)
        self.block2 = ResidualStage(quarter, quarter, en_blocks[1])
        self.block2_dw = ConvUnit(quarter, eighth, 2, stride=2)
        self.block3 = ResidualStage(eighth, eighth, en_blocks[2])
        self.block3_dw = ConvUnit(eighth, sixteenth, 2, stride=2)
        self.block4 = ResidualStage(sixteenth, sixteenth, en_blocks[3])
        self.block44_aspp = SideOutput(sixteenth, aspp, 8)

        self.block33_up = UpUnit(sixteenth, eighth)
        self.block33_res = ResidualStage(eighth, eighth, 1)
        self.block33 = ResidualStage(2 * eighth, eighth, de_blocks[2])
        self.block33_aspp = SideOutput(eighth, aspp, 4)

        self.block22_up = UpUnit(eighth, quarter)
        self.block22_res = ResidualStage(quarter, quarter, 1)
        self.block22 = ResidualStage(2 * quarter, quarter, de_blocks[1])
        self.block22_aspp = SideOutput(quarter, aspp, 2)

        self.block11_up = UpUnit(quarter, aspp)
        self.block11_res = ResidualStage(half, aspp, 1)
        self.block11 = ResidualStage(2 * aspp, aspp, de_blocks[0])

        self.aspp = ArteryContextFusion(4 * aspp, aspp)
        self.seghead = SegmentationHead(aspp, aspp // 2)
        self.segheadv = SegmentationHead(aspp, aspp // 2)
        self.segheadvein = SegmentationHead(aspp, aspp // 2) if veins else None
        for module in self.modules():
            if isinstance(module, StandardisedConv3d | StandardisedConvTranspose3d):
                nn.init.kaiming_normal_(module.weight)

    def forward_logits(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 1, D, H, W) -> embolus, artery and, where there is such a head, vein logits, each (N, 1, D, H, W).

        The embolus loss reaches the artery head through the gate; nothing is detached.
        """
        if any(size % VOXEL_MULTIPLE for size in x.shape[2:]):
            raise ValueError(f"AANet needs sizes that are multiples of {VOXEL_MULTIPLE}, got {tuple(x.shape[2:])}")
        half = self.block1(self._stem(x))
        quarter = self.block2(self.block1_dw(half))
        eighth = self.block3(self.block2_dw(quarter))
        sixteenth = self.block4(self.block3_dw(eighth))
        up_eighth = self.block33(torch.cat([self.block33_up(sixteenth), self.block33_res(eighth)], dim=1))
        up_quarter = self.block22(torch.cat([self.block22_up(up_eighth), self.block22_res(quarter)], dim=1))
        up_half = self.block11(torch.cat([self.block11_up(up_quarter), self.block11_res(half)], dim=1))
        scales = [
            up_half,
            self.block22_aspp(up_quarter),
            self.block33_aspp(up_eighth),
            self.block44_aspp(sixteenth),
        ]
        context = self.aspp(torch.cat(scales, dim=1))
        artery_logits = self.segheadv(context)
        artery_gate = F.max_pool3d(torch.sigmoid(artery_logits), 2)
        embolus_logits = self.seghead(context * artery_gate)
        if self.segheadvein is None:
            return embolus_logits, artery_logits
        return embolus_logits, artery_logits, self.segheadvein(context)

    def _stem(self, x: Tensor) -> Tensor:
        """To half resolution."""
        if not is_for_openvino():
            out: Tensor = self.in_dw(self.in_conv(x))
            return out
        blocks = conv3d_to_blocks(x, self.in_conv.conv.standardised_weight())
        blocks = F.relu(self.in_conv.norm.of_blocks(blocks))
        return F.relu(self.in_dw.norm(halving_conv3d_of_blocks(blocks, self.in_dw.conv.standardised_weight())))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 1, D, H, W) -> probabilities, each (N, 1, D, H, W): ``segs`` (embolus), ``segvs`` (artery) and, where
        there is such a head, ``segveins`` (vein)."""
        return {name: torch.sigmoid(logits) for name, logits in zip(HEADS, self.forward_logits(x), strict=False)}

    def folded(self) -> AANet:
        """A copy for inference whose weights are standardised once instead of at every pass. Not to be saved."""
        network = copy.deepcopy(self).eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, StandardisedConv3d | StandardisedConvTranspose3d) and not module.folded:
                module.weight.copy_(module.standardised_weight())
                module.folded = True
        return network


class EmbolusAndArtery(nn.Module):
    """AANet as the cascade asks it: (N, 1, D, H, W) -> (N, 2, D, H, W), embolus and artery logits; `folded`."""

    def __init__(self, network: AANet) -> None:
        super().__init__()
        self.network = network.folded()
        self.network.segheadvein = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.network.forward_logits(x), dim=1)
