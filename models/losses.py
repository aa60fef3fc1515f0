"""Losses for small foregrounds, on logits.

Every overlap loss takes logits and a target of 0 and 1, both (N, K, ...), and comes in two reductions: `batchwise`
sums over batch and space for each channel before it forms the ratio (stable where most patches are empty); otherwise
each sample forms its own ratio, and only samples that contain foreground count, so that empty patches do not reward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1.0


def dice_loss(logits: Tensor, target: Tensor, *, batchwise: bool = True) -> Tensor:
    """1 - Dice, with squared-free sums (Milletari 2016 without the squares)."""
    p = torch.sigmoid(logits.float())
    overlap, size = _sums(p * target, p + target, batchwise=batchwise)
    return _mean_over_foreground(1 - (2 * overlap + SMOOTH) / (size + SMOOTH), target, batchwise=batchwise)


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    batchwise: bool = True,
    squared: bool = False,
) -> Tensor:
    """1 - Tversky index: `alpha` weighs false positives, `beta` false negatives (Salehi 2017).

    `squared` squares the errors, FP = sum p^2 (1 - t) and FN = sum (1 - p)^2 t, as AANet was trained.
    """
    return _mean_over_foreground(
        _tversky_terms(logits, target, alpha, beta, batchwise, squared), target, batchwise=batchwise
    )


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    batchwise: bool = True,
) -> Tensor:
    """(1 - Tversky index)^(1 / gamma): keeps the gradient of nearly solved samples alive (Abraham and Khan 2019)."""
    terms = _tversky_terms(logits, target, alpha, beta, batchwise, squared=False)
    return _mean_over_foreground(terms.clamp_min(1e-6) ** (1 / gamma), target, batchwise=batchwise)


def dice_tversky_loss(
    logits: Tensor, target: Tensor, *, alpha: float = 0.3, beta: float = 0.7, batchwise: bool = True
) -> Tensor:
    """The mean of Dice and Tversky loss."""
    tversky = tversky_loss(logits, target, alpha=alpha, beta=beta, batchwise=batchwise)
    return 0.5 * dice_loss(logits, target, batchwise=batchwise) + 0.5 * tversky


def focal_loss(
    logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0, batchwise: bool = True
) -> Tensor:
    """Binary focal loss (Lin 2017), summed over voxels and divided by the number of foreground voxels.

    `alpha` weighs the foreground, `1 - alpha` the background. `batchwise` counts the foreground of the whole batch,
    otherwise each sample's own (at least one voxel), and averages over samples.
    """
    logits, target = logits.float(), target.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    missed = p + target - 2 * p * target
    weight = alpha * target + (1 - alpha) * (1 - target)
    loss, foreground = _sums(weight * missed**gamma * cross_entropy, target, batchwise=batchwise)
    return (loss / foreground.clamp_min(1.0)).mean()


def aanet_loss(embolus_logits: Tensor, artery_logits: Tensor, embolus: Tensor, artery: Tensor) -> Tensor:
    """AANet's published objective: 3/4 embolus and 1/4 artery, each half batchwise and half by sample."""
    return 0.75 * both_reductions(embolus_logits, embolus) + 0.25 * both_reductions(artery_logits, artery)


def both_reductions(logits: Tensor, target: Tensor) -> Tensor:
    """The squared-error Tversky loss that AANet was trained with, half batchwise and half by sample."""
    return 0.5 * tversky_loss(logits, target, squared=True, batchwise=True) + 0.5 * tversky_loss(
        logits, target, squared=True, batchwise=False
    )


def _sums(*maps: Tensor, batchwise: bool) -> tuple[Tensor, ...]:
    """Sums of (N, K, ...) maps: over space to (N, K), or over batch and space to (1, K)."""
    over_space = [values.flatten(2).sum(dim=2) for values in maps]
    return tuple(values.sum(dim=0, keepdim=True) if batchwise else values for values in over_space)


def _tversky_terms(logits: Tensor, target: Tensor, alpha: float, beta: float, batchwise: bool, squared: bool) -> Tensor:
    p = torch.sigmoid(logits.float())
    power = 2 if squared else 1
    true_positive, false_positive, false_negative = _sums(
        p * target, p**power * (1 - target), (1 - p) ** power * target, batchwise=batchwise
    )
    found = true_positive + SMOOTH
    return 1 - found / (found + alpha * false_positive + beta * false_negative)


def _mean_over_foreground(losses: Tensor, target: Tensor, *, batchwise: bool) -> Tensor:
    if batchwise:
        return losses.mean()
    (foreground,) = _sums(target, batchwise=False)
    counted = (foreground > 0).to(losses.dtype)
    return (losses * counted).sum() / counted.sum().clamp_min(1.0)
