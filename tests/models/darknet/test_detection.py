from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.darknet.config import parse_cfg
from models.darknet.detection import Detection, detect, detect_one_class_each
from models.darknet.network import DarknetNetwork

CFG = """\
[net]
width=32
height=32
channels=14
[yolo]
anchors = 8,8, 16,16
classes=2
"""


def image_with(boxes: list[tuple[int, int, int, float, float, float]]) -> Tensor:
    """An 'image' that is itself the raw head of a network without layers, 4 x 4 cells.

    Each box: anchor, row, column, objectness and both class scores as probabilities; centred in its cell.
    """
    head = torch.full((1, 2, 7, 4, 4), -20.0)
    head[:, :, :4] = 0
    for anchor, row, column, *scores in boxes:
        head[0, anchor, 4:, row, column] = torch.logit(torch.tensor(scores))
    return head.view(1, 14, 4, 4)


def found(boxes: list[tuple[int, int, int, float, float, float]], **thresholds: float) -> list[Detection]:
    return detect(DarknetNetwork(parse_cfg(CFG)).eval(), image_with(boxes), **thresholds)[0]


def test_box_comes_back_where_it_is() -> None:
    (detection,) = found([(0, 1, 2, 0.9, 0.8, 0.0001)])
    assert detection.class_index == 0
    assert detection.score == pytest.approx(0.72, abs=1e-4)
    assert (detection.cx, detection.cy) == pytest.approx((0.625, 0.375))
    assert (detection.width, detection.height) == pytest.approx((0.25, 0.25))
    assert (detection.left, detection.top, detection.right, detection.bottom) == pytest.approx((0.5, 0.25, 0.75, 0.5))


def test_edges_are_cut_at_the_image() -> None:
    detection = Detection(0, 0.9, cx=0.1, cy=0.95, width=0.4, height=0.2)
    assert (detection.left, detection.top) == pytest.approx((0.0, 0.85))
    assert (detection.right, detection.bottom) == pytest.approx((0.3, 1.0))


def test_score_must_exceed_the_threshold_and_so_must_objectness() -> None:
    weak = [(0, 1, 2, 0.4, 0.5, 0.0001)]
    assert found(weak) == []
    assert len(found(weak, threshold=0.15)) == 1
    assert found([(0, 1, 2, 0.2, 0.99, 0.99)]) == []


def test_overlapping_box_of_the_same_class_is_suppressed() -> None:
    # Anchors of 8 and 16 pixels in the same cell overlap by a quarter, one cell apart 16-pixel boxes by a third.
    same_cell = [(0, 1, 2, 0.9, 0.9, 0.0001), (1, 1, 2, 0.9, 0.8, 0.0001)]
    assert len(found(same_cell)) == 2
    (kept,) = found(same_cell, iou_threshold=0.2)
    assert kept.score == pytest.approx(0.81, abs=1e-4)


def test_suppressed_box_suppresses_nothing() -> None:
    """Three wide boxes in a row: the middle one falls to the first, so the last stays."""
    row = [(1, 1, 0, 0.9, 0.9, 0.0001), (1, 1, 1, 0.9, 0.8, 0.0001), (1, 1, 2, 0.9, 0.7, 0.0001)]
    scores = [round(detection.score, 2) for detection in found(row, iou_threshold=0.3)]
    assert scores == [0.81, 0.63]


def test_classes_do_not_suppress_each_other_and_the_best_comes_first() -> None:
    both = found([(0, 1, 2, 0.9, 0.5, 0.9)])
    assert [detection.class_index for detection in both] == [1, 0]


def found_once(boxes: list[tuple[int, int, int, float, float, float]], **thresholds: float) -> list[Detection]:
    return detect_one_class_each(DarknetNetwork(parse_cfg(CFG)).eval(), image_with(boxes), **thresholds)[0]


def test_by_objectness_a_box_counts_once_with_its_best_class() -> None:
    (detection,) = found_once([(0, 1, 2, 0.9, 0.5, 0.8)])
    assert (detection.class_index, detection.score) == (1, pytest.approx(0.72, abs=1e-4))


def test_by_objectness_classes_suppress_each_other_in_the_order_of_objectness_not_of_score() -> None:
    # One cell apart, 16-pixel boxes overlap by a third; the surer object is the less sure of its class.
    neighbours = [(1, 1, 1, 0.9, 0.5, 0.0001), (1, 1, 2, 0.8, 0.0001, 0.9)]
    assert [d.class_index for d in found_once(neighbours)] == [0, 1]
    (kept,) = found_once(neighbours, iou_threshold=0.3)
    assert kept.class_index == 0


def test_by_objectness_a_box_without_a_class_still_suppresses() -> None:
    """As in darknet, where scores up to the threshold become 0 and the box stays."""
    neighbours = [(1, 1, 1, 0.9, 0.2, 0.0001), (1, 1, 2, 0.8, 0.0001, 0.9)]
    assert found_once(neighbours, iou_threshold=0.3) == []
    assert len(found_once(neighbours)) == 1


def test_empty_images_give_empty_lists() -> None:
    network = DarknetNetwork(parse_cfg(CFG)).eval()
    assert detect(network, image_with([]).repeat(3, 1, 1, 1)) == [[], [], []]
    assert detect_one_class_each(network, image_with([]).repeat(3, 1, 1, 1)) == [[], [], []]
