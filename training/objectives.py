"""What training minimises and what it reports: losses and validation scores of the segmentation networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from imaging.errors import ConfigurationError
from imaging.metrics import match_lesions, voxel_dice
from models.darknet.boxes import intersection_over_union
from models.darknet.detection import detect
from models.darknet.loss import yolo_loss
from models.darknet.network import DarknetNetwork
from models.losses import (
    aanet_loss,
    bce_loss,
    both_reductions,
    cross_entropy_loss,
    dice_bce_loss,
    dice_loss,
    dice_tversky_loss,
    focal_loss,
    focal_tversky_loss,
    lovasz_hinge_loss,
    lovasz_softmax_loss,
    of_two_classes,
    symmetric_cross_entropy_loss,
    tversky_loss,
)
from training.distributed import bare
from training.forward import forward_logits, forward_outputs
from training.loop import Loss, Validation
from training.sampling import Batch

SURELY_NOT = -30.0  # a logit whose probability, loss and gradient are nothing
VEIN_WEIGHT = 0.25  # as much as the published objective gives the artery
TARGET_WEIGHTS = (0.75, 0.25, VEIN_WEIGHT)


Score = Callable[[Tensor, Tensor], Tensor]
"""A loss of logits and target, both (N, targets, ...), which is 0 or 1."""

LOSSES: Mapping[str, Score] = {
    "dice": dice_loss,
    "tversky": tversky_loss,
    "focal_tversky": focal_tversky_loss,
    "dice_tversky": dice_tversky_loss,
    "focal": focal_loss,
    "bce": bce_loss,
    "dice_bce": dice_bce_loss,
    "ce": of_two_classes(cross_entropy_loss),
    "sce": of_two_classes(symmetric_cross_entropy_loss),
    "lovasz": lovasz_hinge_loss,
    "lovasz_softmax": of_two_classes(lovasz_softmax_loss),
}


def supervised(score: Score) -> Loss:
    """The mean of `score` over all outputs of a network, one or, under deep supervision, several.

    Where a target is negative nobody knows it, and nothing is learnt there. Targets beyond the network's outputs are
    not asked of it.
    """

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        values = []
        for logits in forward_outputs(network, batch.input):
            wanted = batch.target[:, : logits.shape[1]]
            known = wanted >= 0
            values.append(score(logits.masked_fill(~known, SURELY_NOT), wanted * known))
        return torch.stack(values).mean()

    return loss


def artery_aware_loss(bce_weight: float) -> Loss:
    """AANet's published objective, 3/4 embolus and 1/4 artery, the same again for veins where the network has such a
    head, and some cross entropy, which has a gradient where an overlap has none: in crops without an embolus.
    """

    def score(logits: Tensor, target: Tensor) -> Tensor:
        overlap = aanet_loss(logits[:, :1], logits[:, 1:2], target[:, :1], target[:, 1:2])
        if logits.shape[1] > 2:
            overlap = overlap + VEIN_WEIGHT * both_reductions(logits[:, 2:], target[:, 2:])
        return overlap + bce_weight * F.binary_cross_entropy_with_logits(logits, target)

    return supervised(score)


def slice_loss(focal_weight: float) -> Loss:
    """UNets: Dice and Tversky of the whole batch, and focal loss."""

    def score(logits: Tensor, target: Tensor) -> Tensor:
        return dice_tversky_loss(logits, target) + focal_weight * focal_loss(logits, target)

    return supervised(score)


def named_loss(name: str) -> Loss:
    """The loss of `models.losses` of that name: of the embolus alone, or of embolus, artery and vein weighed as AANet's
    published objective weighs the first two.

    Raises ConfigurationError for a name that is none.
    """
    if name not in LOSSES:
        raise ConfigurationError(
            f"loss {name!r} is not known", code="training.loss", remedy=f"use one of {', '.join(LOSSES)}"
        )
    loss = LOSSES[name]

    def score(logits: Tensor, target: Tensor) -> Tensor:
        weights = TARGET_WEIGHTS[: logits.shape[1]] if logits.shape[1] > 1 else (1.0,)
        parts = [
            weight * loss(logits[:, index : index + 1], target[:, index : index + 1])
            for index, weight in enumerate(weights)
        ]
        return torch.stack(parts).sum()

    return supervised(score)


def detection_loss(network: nn.Module, batch: Batch) -> Tensor:
    """YOLOv4's loss of one class."""
    detector = bare(network)
    assert isinstance(detector, DarknetNetwork)
    present = batch.target[..., 2] > 0
    image = present.nonzero()[:, :1].float()
    targets = torch.cat([image, torch.zeros_like(image), batch.target[present]], dim=1)
    return yolo_loss(detector, forward_outputs(network, batch.input), targets).total


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


def voxel_counts(outputs: Sequence[Tensor], batch: Batch) -> Mapping[str, float]:
    """True positive, false positive and false negative embolus voxels of a batch, at probability 0.5."""
    predicted, truth = outputs[-1].detach()[:, 0] > 0, batch.target[:, 0]
    counts = ((predicted & (truth > 0.5)).sum(), (predicted & (truth == 0)).sum(), (~predicted & (truth > 0.5)).sum())
    return dict(zip(("hits", "false", "missed"), torch.stack(counts).tolist(), strict=True))


def voxel_rates(counts: Mapping[str, float]) -> Mapping[str, float]:
    """The voxel F1 that `voxel_counts` amount to."""
    found = 2 * counts["hits"]
    return {"voxel_f1": found / max(1.0, found + counts["false"] + counts["missed"])}


def crop_scores(batches: Sequence[Batch], targets: Sequence[str], loss: Loss) -> Validation:
    """Scores on `batches` at probability 0.5; `targets` names the channels in order, embolus first.

    `loss`; `voxel_f1` over all voxels of all crops; `<target>_dice`, a crop's Dice, mean over crops that hold the
    target; `lesion_sensitivity`, `lesion_f1` and `false_positives_per_crop`, where a lesion is a connected piece of a
    crop that `match_lesions` finds.
    """

    def scores(network: nn.Module) -> Mapping[str, float]:
        device = next(network.parameters()).device
        counts = dict.fromkeys(("hits", "false", "missed"), 0.0)
        dice: dict[str, list[float]] = {name: [] for name in targets}
        values = []
        found, missed, false, crops = 0, 0, 0, 0
        for batch in (Batch(one.input.to(device), one.target.to(device)) for one in batches):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                values.append(loss(network, batch).item())
                logits = forward_logits(network, batch.input)
            for name, count in voxel_counts([logits], batch).items():
                counts[name] += count
            known = batch.target[:, : logits.shape[1]] >= 0
            predicted = ((logits > 0) & known).cpu().numpy()
            truth = (batch.target > 0.5).cpu().numpy()
            for one, wanted in zip(predicted, truth, strict=True):
                for name, ours, theirs in zip(targets, one, wanted, strict=False):
                    if theirs.any():
                        dice[name].append(voxel_dice(theirs, ours))
                match = match_lesions(_pieces(wanted[0]), _pieces(one[0]))
                found, missed = found + len(match.found), missed + len(match.missed)
                false, crops = false + len(match.false), crops + 1
        return {
            "loss": sum(values) / max(1, len(values)),
            **voxel_rates(counts),
            **{f"{name}_dice": sum(some) / max(1, len(some)) for name, some in dice.items()},
            "lesion_sensitivity": found / max(1, found + missed),
            "lesion_f1": 2 * found / max(1, 2 * found + missed + false),
            "false_positives_per_crop": false / max(1, crops),
        }

    return scores


def _pieces(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Connected pieces of a mask (y, x) or (z, y, x), corners connecting."""
    solid = mask if mask.ndim == 3 else mask[None]
    pieces = cc3d.connected_components(solid, connectivity=26, out_dtype=np.uint32)
    return pieces.astype(np.uint32, copy=False)
