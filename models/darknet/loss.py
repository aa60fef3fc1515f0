"""The YOLOv4 training loss: complete IoU for boxes, cross-entropy for objectness and classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.darknet.boxes import complete_iou, intersection_over_union
from models.darknet.network import DarknetNetwork, decode_head, split_anchors

ANCHOR_IOU = 0.213
"""A box teaches every anchor whose shape overlaps it more than this, and always the best one (`iou_thresh`)."""

IGNORE_IOU = 0.7
"""A prediction that overlaps a box more than this is not punished for its objectness (`ignore_thresh`)."""


@dataclass(frozen=True, slots=True)
class YoloLoss:
    """Scalars; `total` is the weighted sum. Objectness is summed over all cells, all are per matched anchor."""

    total: Tensor
    box: Tensor
    objectness: Tensor
    classes: Tensor


def yolo_loss(network: DarknetNetwork, heads: list[Tensor], targets: Tensor, *, box_weight: float = 2.0) -> YoloLoss:
    """Loss of raw heads against boxes.

    Args:
        heads: what `network(images)` returned.
        targets: (T, 6): image index in the batch, class, cx, cy, width, height as fractions of the image.
    """
    config = network.config
    size = torch.tensor([config.width, config.height], device=targets.device)
    anchors = torch.tensor([anchor for layer in config.heads for anchor in layer.anchors], device=targets.device)
    matches = _matching_anchors(targets[:, 4:6] * size, anchors)
    zero = heads[0].float().sum() * 0
    box, objectness, classes = zero, zero, zero
    first = 0
    for head, layer in zip(heads, config.heads, strict=True):
        raw = split_anchors(head, layer)
        decoded = decode_head(head, layer, config.height, config.width)
        rows, columns = raw.shape[2:4]
        target, anchor = torch.nonzero(matches[:, first : first + len(layer.anchors)], as_tuple=True)
        first += len(layer.anchors)
        chosen = targets[target]
        image = chosen[:, 0].long()
        column = (chosen[:, 2] * columns).long().clamp(0, columns - 1)
        row = (chosen[:, 3] * rows).long().clamp(0, rows - 1)
        cell = (image, anchor, row, column)
        wanted = torch.zeros_like(raw[..., 4])
        wanted[cell] = 1.0
        counted = ~_close_to_a_target(decoded[..., :4].detach(), targets) | (wanted > 0)
        cross_entropy = F.binary_cross_entropy_with_logits(raw[..., 4], wanted, reduction="none")
        objectness = objectness + (cross_entropy * counted).sum()
        box = box + (1 - complete_iou(decoded[cell][:, :4], chosen[:, 2:6])).sum()
        one_hot = F.one_hot(chosen[:, 1].long(), layer.classes).float()
        classes = classes + F.binary_cross_entropy_with_logits(raw[cell][:, 5:], one_hot, reduction="sum")
    matched = matches.sum().clamp_min(1)
    box, objectness, classes = box / matched, objectness / matched, classes / matched
    return YoloLoss(box_weight * box + objectness + classes, box, objectness, classes)


def _matching_anchors(sizes: Tensor, anchors: Tensor) -> Tensor:
    """bool (T, anchors of all heads): which anchors learn which box, by the IoU of their shapes alone."""
    if len(sizes) == 0:
        return torch.zeros((0, len(anchors)), dtype=torch.bool, device=sizes.device)
    centred = F.pad(sizes, (2, 0))[:, None], F.pad(anchors, (2, 0))[None]
    overlap = intersection_over_union(*centred)
    return (overlap > ANCHOR_IOU) | (overlap == overlap.amax(dim=1, keepdim=True))


def _close_to_a_target(boxes: Tensor, targets: Tensor) -> Tensor:
    """bool (N, anchors, rows, columns): predictions that overlap some box of their own image."""
    close = torch.zeros(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    for image in torch.unique(targets[:, 0]).long().tolist():
        own = targets[targets[:, 0] == image, 2:6]
        overlap = intersection_over_union(boxes[image][..., None, :], own)
        close[image] = (overlap > IGNORE_IOU).any(dim=-1)
    return close
