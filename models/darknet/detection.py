"""From images to boxes: one pass, the score threshold, greedy suppression of overlapping boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.darknet.boxes import intersection_over_union
from models.darknet.network import DarknetNetwork


@dataclass(frozen=True, slots=True)
class Detection:
    """One box. Centre and size are fractions of the image; `score` is objectness times class score."""

    class_index: int
    score: float
    cx: float
    cy: float
    width: float
    height: float

    @property
    def left(self) -> float:
        """The box's left edge, cut at the image's; so for the other three."""
        return max(0.0, self.cx - self.width / 2)

    @property
    def top(self) -> float:
        return max(0.0, self.cy - self.height / 2)

    @property
    def right(self) -> float:
        return min(1.0, self.cx + self.width / 2)

    @property
    def bottom(self) -> float:
        return min(1.0, self.cy + self.height / 2)


def detect(
    network: DarknetNetwork, images: Tensor, *, threshold: float = 0.25, iou_threshold: float = 0.45
) -> list[list[Detection]]:
    """Detections of each image, best first.

    Args:
        images: (N, C, H, W), values 0..1, stretched to the size the network was trained at.
        threshold: what objectness and objectness times class score must exceed (darknet's `thresh`).
        iou_threshold: of two boxes of one class that overlap more, the lower-scored is dropped (darknet's `nms`).
    """
    with torch.inference_mode():
        boxes = network.decode(network(images)).cpu()
    return [_select(image, threshold, iou_threshold) for image in boxes]


def detect_one_class_each(
    network: DarknetNetwork, images: Tensor, *, threshold: float = 0.25, iou_threshold: float = 0.45
) -> list[list[Detection]]:
    """Detections of each image, each box once with its best class, highest objectness first.

    Boxes of all classes suppress each other in the order of their objectness (darknet's `do_nms_obj`).

    Args:
        images, threshold: as `detect`.
        iou_threshold: of two boxes that overlap more, the one of lower objectness is dropped.
    """
    with torch.inference_mode():
        boxes = network.decode(network(images)).cpu()
    return [_select_any_class(image, threshold, iou_threshold) for image in boxes]


def _select(boxes: Tensor, threshold: float, iou_threshold: float) -> list[Detection]:
    """Greedy non-maximum suppression for each class over one image's (boxes, 5 + classes)."""
    boxes = boxes[boxes[:, 4] > threshold]
    scores = boxes[:, 4:5] * boxes[:, 5:]
    detections = []
    for class_index in range(scores.shape[1]):
        chosen = scores[:, class_index] > threshold
        class_scores, order = scores[chosen, class_index].sort(descending=True, stable=True)
        candidates = boxes[chosen][order, :4]
        for index in _not_suppressed(candidates, iou_threshold):
            cx, cy, width, height = candidates[index].tolist()
            detections.append(Detection(class_index, float(class_scores[index]), cx, cy, width, height))
    return sorted(detections, key=lambda detection: -detection.score)


def _select_any_class(boxes: Tensor, threshold: float, iou_threshold: float) -> list[Detection]:
    """Greedy non-maximum suppression by objectness over one image's (boxes, 5 + classes)."""
    boxes = boxes[boxes[:, 4] > threshold]
    boxes = boxes[boxes[:, 4].sort(descending=True, stable=True).indices]
    scores, classes = (boxes[:, 4:5] * boxes[:, 5:]).max(dim=1)
    detections = []
    for index in _not_suppressed(boxes[:, :4], iou_threshold):
        if scores[index] > threshold:
            cx, cy, width, height = boxes[index, :4].tolist()
            detections.append(Detection(int(classes[index]), float(scores[index]), cx, cy, width, height))
    return detections


def _not_suppressed(boxes: Tensor, iou_threshold: float) -> list[int]:
    """Those of (boxes, 4), best first, that overlap none kept before them; what is dropped suppresses nothing."""
    overlapping = intersection_over_union(boxes[:, None], boxes[None]) > iou_threshold
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for index in range(len(boxes)):
        if alive[index]:
            kept.append(index)
            alive[index + 1 :] &= ~overlapping[index, index + 1 :]
    return kept
