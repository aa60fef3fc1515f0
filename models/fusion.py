"""One embolus probability out of the 2D ensemble, the 3D network and the artery.

    p = sigmoid(unet_weight * l_unet + aanet_weight * l_aanet + bias) * gate

The weights are fitted by logistic regression on held-out phantoms, which also calibrates p. The gate is the artery's
probability, grown by a few millimetres since a clot is darker than the lumen it sits in: it closes where no artery is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """gate_reach_voxels: how far from the artery an embolus may be; gate_open_at: artery probability that opens it."""

    unet_weight: float
    aanet_weight: float
    bias: float
    gate_reach_voxels: int
    gate_open_at: float


def ensemble_logits(members: list[Tensor]) -> Tensor:
    """Mean of the members' logits: the geometric mean of their odds."""
    return torch.stack(members).mean(dim=0)


def fuse(unet_logits: Tensor, aanet_logits: Tensor, artery_probability: Tensor, settings: FusionSettings) -> Tensor:
    """Embolus probability, float32; all tensors (z, y, x) on one grid."""
    logits = settings.unet_weight * unet_logits + settings.aanet_weight * aanet_logits + settings.bias
    return torch.sigmoid(logits) * artery_gate(artery_probability, settings)


def artery_gate(artery_probability: Tensor, settings: FusionSettings) -> Tensor:
    """0..1: the largest artery probability within reach, 1 from `gate_open_at` on."""
    reached = artery_probability[None, None]
    for axis in range(3):  # a cube's maximum, one axis after the other
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * settings.gate_reach_voxels + 1, settings.gate_reach_voxels
        reached = F.max_pool3d(reached, kernel, stride=1, padding=padding)
    return (reached[0, 0] / settings.gate_open_at).clamp(max=1.0)
