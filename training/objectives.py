"""What training minimises and what it reports: losses and validation scores of the segmentation networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.aanet import AANet
from models.darknet.boxes import intersection_over_union
from models.darknet.detection import detect
from models.darknet.loss import yolo_loss
from models.darknet.network import DarknetNetwork
from models.losses import aanet_loss, both_reductions, dice_tversky_loss, focal_loss
from training.loop import Loss, Validation
from training.sampling import Batch

SURELY_NOT = -30.0  # a logit whose probability, loss and gradient are nothing
VEIN_WEIGHT = 0.25  # as much as the published objective gives the artery


def forward_logits(network: nn.Module, images: Tensor) -> Tensor:
    """(N, C, ...) -> logits (N, targets, ...) float32: embolus, then artery and vein where the network has them."""
    if isinstance(network, AANet):
        return torch.cat(network.forward_logits(images), dim=1).float()
    logits: Tensor = network(images.contiguous(memory_format=torch.channels_last))
    return logits.float()


def artery_aware_loss(bce_weight: float) -> Loss:
    """AANet's published objective, 3/4 embolus and 1/4 artery, the same again for veins where the network has such a
    head, and some cross entropy, which has a gradient where an overlap has none: in crops without an embolus.

    Where a target is negative nobody knows it, and nothing is learnt there.
    """

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        known = batch.target >= 0
        logits = forward_logits(network, batch.input).masked_fill(~known, SURELY_NOT)
        target = batch.target * known
        overlap = aanet_loss(logits[:, :1], logits[:, 1:2], target[:, :1], target[:, 1:2])
        if logits.shape[1] > 2:
            overlap = overlap + VEIN_WEIGHT * both_reductions(logits[:, 2:], target[:, 2:])
        return overlap + bce_weight * F.binary_cross_entropy_with_logits(logits, target)

    return loss


def slice_loss(focal_weight: float) -> Loss:
    """UNets: Dice and Tversky of the whole batch, and focal loss."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        logits = forward_logits(network, batch.input)
        return dice_tversky_loss(logits, batch.target) + focal_weight * focal_loss(logits, batch.target)

    return loss


def detection_loss(network: nn.Module, batch: Batch) -> Tensor:
    """YOLOv4's loss of one class."""
    assert isinstance(network, DarknetNetwork)
    present = batch.target[..., 2] > 0
    image = present.nonzero()[:, :1].float()
    targets = torch.cat([image, torch.zeros_like(image), batch.target[present]], dim=1)
    return yolo_loss(network, [head.float() for head in network(batch.input)], targets).total


def box_scores(batches: Sequence[Batch]) -> Validation:
    """Mean IoU of the best box with the lung's, on slices with lung, and the share of others left without a box."""

    def scores(network: nn.Module) -> Mapping[str, float]:
        assert isinstance(network, DarknetNetwork)
        overlaps, silent, empty = [], 0, 0
        for batch in batches:
            for found, box in zip(detect(network, batch.input), batch.target[:, 0], strict=True):
                if box[2] <= 0:
                    empty, silent = empty + 1, silent + (not found)
                elif found:
                    best = torch.tensor([found[0].cx, found[0].cy, found[0].width, found[0].height])
                    overlaps.append(float(intersection_over_union(best, box)))
                else:
                    overlaps.append(0.0)
        return {"box_iou": sum(overlaps) / max(1, len(overlaps)), "specificity": silent / max(1, empty)}

    return scores


def voxel_scores(batches: Sequence[Batch], targets: Sequence[str]) -> Validation:
    """Dice at probability 0.5 of each target, over all voxels of `batches`; `targets` names them in order."""

    def scores(network: nn.Module) -> Mapping[str, float]:
        both, total = torch.zeros(len(targets)), torch.zeros(len(targets))
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                predicted = forward_logits(network, batch.input) > 0
            truth = batch.target > 0.5
            other = [axis for axis in range(truth.ndim) if axis != 1]
            both += (predicted & truth).sum(other)
            total += predicted.sum(other) + truth.sum(other)
        return {f"{name}_dice": float(2 * b / max(float(t), 1.0))
                for name, b, t in zip(targets, both, total, strict=True)}  # fmt: skip

    return scores
