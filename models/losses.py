"""Losses for small foregrounds, on logits.

Every overlap loss takes logits and a target of 0 and 1, both (N, K, ...), and comes in two reductions: `batchwise`
sums over batch and space for each channel before it forms the ratio (stable where most patches are empty); otherwise
each sample forms its own ratio, and only samples that contain foreground count, so that empty patches do not reward.
Cross entropies are means over all voxels, which is the same in both.

Losses of exclusive classes take logits (N, classes, ...) and labels (N, ...); `of_two_classes` makes of them losses of
targets of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1.0
SMALLEST_PROBABILITY = 1e-7
SMALLEST_LABEL = 1e-4  # what a label's 0 is taken for where its logarithm is asked


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


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of logits and target, both (N, K, ...)."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice_bce_loss(logits: Tensor, target: Tensor, *, batchwise: bool = True) -> Tensor:
    """The sum of Dice loss and binary cross entropy, which has a gradient where there is no foreground."""
    return dice_loss(logits, target, batchwise=batchwise) + bce_loss(logits, target)


def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of exclusive classes: logits (N, classes, ...), labels (N, ...)."""
    return F.cross_entropy(logits.float(), labels)


def symmetric_cross_entropy_loss(logits: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """`alpha` times cross entropy and `beta` times the reverse, of label and probability in each other's place, which
    does not run after wrong labels (Wang et al. 2019). Logits (N, classes, ...), labels (N, ...).
    """
    p = torch.softmax(logits.float(), dim=1).clamp_min(SMALLEST_PROBABILITY)
    wanted = _one_hot(labels, logits.shape[1]).clamp_min(SMALLEST_LABEL)
    reverse = -(p * torch.log(wanted)).sum(dim=1).mean()
    return alpha * cross_entropy_loss(logits, labels) + beta * reverse


def lovasz_hinge_loss(logits: Tensor, target: Tensor, *, batchwise: bool = True) -> Tensor:
    """Hinge errors, ordered as their share in the intersection over union asks (Berman et al. 2018).

    Logits and target (N, K, ...).
    """
    errors = F.relu(1 - logits.float() * (2 * target.float() - 1))
    losses = _lovasz_extension(_rows(errors, batchwise=batchwise), _rows(target.float(), batchwise=batchwise))
    return _mean_over_foreground(losses, target, batchwise=batchwise)


def lovasz_softmax_loss(logits: Tensor, labels: Tensor, *, batchwise: bool = True) -> Tensor:
    """The Lovász extension of one minus intersection over union, mean over the classes there are (Berman et al. 2018).

    Logits (N, classes, ...), labels (N, ...). The classes of the whole batch count where `batchwise`, otherwise each
    sample's own.
    """
    truth = _one_hot(labels, logits.shape[1])
    errors = (truth - torch.softmax(logits.float(), dim=1)).abs()
    losses = _lovasz_extension(_rows(errors, batchwise=batchwise), _rows(truth, batchwise=batchwise))
    present = (_rows(truth, batchwise=batchwise).sum(dim=2) > 0).float()
    return ((losses * present).sum(dim=1) / present.sum(dim=1)).mean()


def of_two_classes(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of exclusive classes as one of logits and target, both (N, K, ...), mean over the K channels.

    Each channel is a class beside its background, whose logit is 0: softmax of the two is the channel's sigmoid.
    """

    def of_targets(logits: Tensor, target: Tensor) -> Tensor:
        classes = torch.stack([torch.zeros_like(logits), logits], dim=1)
        labels = target.long()
        channels = range(logits.shape[1])
        return torch.stack([loss(classes[:, :, channel], labels[:, channel]) for channel in channels]).mean()

    return of_targets


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


def _rows(values: Tensor, *, batchwise: bool) -> Tensor:
    """(N, K, ...) -> (N, K, voxels), or (1, K, voxels of all samples)."""
    flat = values.flatten(2)
    return flat.transpose(0, 1).flatten(1)[None] if batchwise else flat


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N, ...) -> (N, classes, ...) float32."""
    return F.one_hot(labels, classes).movedim(-1, 1).float()


def _lovasz_extension(errors: Tensor, foreground: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss at `errors`; both (..., voxels), `foreground` 0 or 1.

    Voxels are taken for wrong one after the other, the worst first. Each weighs as much as the Jaccard loss grows by
    it: a foreground voxel leaves the intersection, a background voxel joins the union. The two growths are written
    out, since a difference of two Jaccard losses is all rounding where there are millions of voxels.
    """
    errors, worst_first = errors.sort(dim=-1, descending=True)
    foreground = foreground.gather(-1, worst_first)
    size = foreground.sum(dim=-1, keepdim=True)
    intersection = size - foreground.cumsum(dim=-1)
    union = size + (1 - foreground).cumsum(dim=-1)
    joins_union = intersection / ((union - 1).clamp_min(1) * union.clamp_min(1))
    growth = torch.where(foreground > 0, 1 / union.clamp_min(1), joins_union)
    growth[..., :1] += (size == 0).to(growth.dtype)  # without foreground the first wrong voxel is all of the loss
    return (errors * growth).sum(dim=-1)


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
