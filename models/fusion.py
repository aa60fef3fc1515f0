"""One embolus probability out of the 2D ensemble, the 3D network and the artery.

    p = sigmoid(unet_weight * l_unet + aanet_weight * l_aanet + bias) * gate

The weights are fitted by logistic regression on held-out phantoms, which also calibrates p. The gate is the probability
of the artery, lumen and clot together, grown by some voxels: it closes where no artery is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.cascade_options import Ensemble

_CERTAIN = 1e-6  # no probability is closer to 0 or 1 than this before it becomes a logit


@dataclass(frozen=True, slots=True)
class FusionSettings:
    """gate_reach_voxels: how far from the artery an embolus may be; gate_open_at: artery probability that opens it."""

    unet_weight: float
    aanet_weight: float
    bias: float
    gate_reach_voxels: int
    gate_open_at: float


def ensemble_logits(
    members: Sequence[Tensor], weights: Sequence[float] | None = None, ensemble: Ensemble = Ensemble.LEARNT
) -> Tensor:
    """The 2D networks' logits as one.

    Args:
        members: logits of one shape.
        weights: of the members under `Ensemble.LEARNT`, relative to each other; None: all alike.
        ensemble: the mean of logits is the geometric mean of the odds: it takes all members to be certain. The mean of
            probabilities follows the one that is.
    """
    stack = torch.stack(list(members))
    if ensemble is Ensemble.PROBABILITY:
        return torch.logit(torch.sigmoid(stack).mean(dim=0), eps=_CERTAIN)
    if ensemble is Ensemble.LOGIT or weights is None:
        return stack.mean(dim=0)
    shares = stack.new_tensor(weights) / sum(weights)
    combined: Tensor = torch.tensordot(shares, stack, dims=1)
    return combined


def fuse(
    unet_logits: Tensor | None,
    aanet_logits: Tensor | None,
    artery_probability: Tensor | None,
    settings: FusionSettings,
) -> Tensor:
    """Embolus probability, float32; all tensors (z, y, x) on one grid.

    Of the networks one may be missing; the other's answer then counts for both. Without an artery nothing is gated.
    """
    if unet_logits is None or aanet_logits is None:
        alone = aanet_logits if unet_logits is None else unet_logits
        if alone is None:
            raise ValueError("fusion needs the logits of one network at least")
        logits = (settings.unet_weight + settings.aanet_weight) * alone + settings.bias
    else:
        logits = settings.unet_weight * unet_logits + settings.aanet_weight * aanet_logits + settings.bias
    probability = torch.sigmoid(logits)
    return probability if artery_probability is None else probability * artery_gate(artery_probability, settings)


def artery_gate(artery_probability: Tensor, settings: FusionSettings) -> Tensor:
    """0..1: the largest artery probability within reach, 1 from `gate_open_at` on."""
    reached = artery_probability[None, None]
    for axis in range(3):  # a cube's maximum, one axis after the other
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * settings.gate_reach_voxels + 1, settings.gate_reach_voxels
        reached = F.max_pool3d(reached, kernel, stride=1, padding=padding)
    return (reached[0, 0] / settings.gate_open_at).clamp(max=1.0)
