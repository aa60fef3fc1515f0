"""UNet++: a UNet whose skip connections are themselves decoders of every shallower depth (Zhou et al. 2018, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.unet_blocks import DoubleConv, SliceNetwork, doubled


class UNetPlusPlus(SliceNetwork):
    """Node (level, column) sees its own level's earlier columns and, doubled, the level below's last column.

    9 163 560 parameters at 3 channels in, 2 out, base width 32 and four levels; 2 236 326 with three, 519 204 with
    two. H and W must be multiples of 2 to the power of `levels`.

    Args:
        deep_supervision: (N, out_channels, H, W) logits of each column but the first, in a list, the deepest decoder
            last; otherwise of that one alone.
        dense: a node sees all earlier columns of its level, otherwise only the last of them (UNet+, Zhou 2020).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_width: int = 32,
        levels: int = 4,
        deep_supervision: bool = True,
        dense: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= levels <= 5:
            raise ValueError(f"UNet++ has 1 to 5 levels, not {levels}")
        widths = [base_width * 2**level for level in range(levels + 1)]
        self.pixel_multiple = 2**levels
        self.levels, self.deep_supervision, self.dense = levels, deep_supervision, dense
        self.encoder = nn.ModuleList(
            DoubleConv(inputs, outputs) for inputs, outputs in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.nodes = nn.ModuleDict(
            {
                _name(level, column): DoubleConv(
                    (column if dense else 1) * widths[level] + widths[level + 1], widths[level]
                )
                for column in range(1, levels + 1)
                for level in range(levels + 1 - column)
            }
        )
        supervised = levels if deep_supervision else 1
        self.heads = nn.ModuleList(nn.Conv2d(base_width, out_channels, 1) for _ in range(supervised))

    def output_layers(self) -> list[nn.Module]:
        return list(self.heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.check_size(x)
        rows: list[list[Tensor]] = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            rows.append([x])
        for column in range(1, self.levels + 1):
            for level in range(self.levels + 1 - column):
                skips = rows[level] if self.dense else rows[level][-1:]
                below = doubled(rows[level + 1][column - 1])
                rows[level].append(self.nodes[_name(level, column)](torch.cat([*skips, below], dim=1)))
        answers = rows[0][-len(self.heads) :]
        logits: list[Tensor] = [head(answer) for head, answer in zip(self.heads, answers, strict=True)]
        return logits if self.deep_supervision else logits[-1]


def _name(level: int, column: int) -> str:
    return f"x{level}_{column}"
