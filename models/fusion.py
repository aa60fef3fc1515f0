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
        logits = (settings.unet_weight + settings.aanet_weight) * alone
    else:
        logits = settings.unet_weight * unet_logits
        logits += settings.aanet_weight * aanet_logits
    probability = logits.add_(settings.bias).sigmoid_()  # in place: memory that is new costs more than the sums
    if artery_probability is not None:
        probability *= artery_gate(artery_probability, settings)
    return probability


def artery_gate(artery_probability: Tensor, settings: FusionSettings) -> Tensor:
    """0..1: the largest artery probability within reach, 1 from `gate_open_at` on."""
    reached = artery_probability
    for axis in range(3):  # a cube's maximum, one axis after the other
        before = reached
        reached = before.clone()
        for step in range(1, min(settings.gate_reach_voxels, before.shape[axis] - 1) + 1):
            count = before.shape[axis] - step
            for to, source in ((0, step), (step, 0)):
                part = reached.narrow(axis, to, count)
                torch.maximum(part, before.narrow(axis, source, count), out=part)
    return reached.div_(settings.gate_open_at).clamp_(max=1.0)
