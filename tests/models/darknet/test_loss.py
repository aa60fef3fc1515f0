from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models.darknet.boxes import complete_iou, intersection_over_union
from models.darknet.config import parse_cfg
from models.darknet.detection import detect
from models.darknet.loss import yolo_loss
from models.darknet.network import DarknetNetwork

LUNG_ROI = Path(__file__).parents[3] / "models/weights/lung-roi.cfg"


def lung_network() -> DarknetNetwork:
    torch.manual_seed(0)
    return DarknetNetwork(parse_cfg(LUNG_ROI.read_text()))


def test_overlap_worked_by_hand() -> None:
    a = torch.tensor([1.0, 1.0, 2.0, 2.0])
    b = torch.tensor([2.0, 1.0, 2.0, 2.0])
    assert intersection_over_union(a, b).item() == pytest.approx(2 / 6)
    # Centres 1 apart, the box around both is 3 x 2, aspects are equal.
    assert complete_iou(a, b).item() == pytest.approx(2 / 6 - 1 / 13)
    assert complete_iou(a, a).item() == pytest.approx(1.0, abs=1e-5)


def test_complete_iou_punishes_another_aspect() -> None:
    square, wide = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 4.0, 1.0])
    assert complete_iou(square, wide) < intersection_over_union(square, wide)


def test_confident_empty_answer_on_empty_images_costs_nothing() -> None:
    network = lung_network()
    heads = [torch.zeros(2, 18, size, size) for size in (12, 6)]
    for head in heads:
        head.view(2, 3, 6, *head.shape[2:])[:, :, 4] = -50.0
    loss = yolo_loss(network, heads, torch.zeros(0, 6))
    assert loss.total.item() == pytest.approx(0.0, abs=1e-6)


def test_exact_answer_costs_almost_nothing_and_each_part_answers_for_its_own_mistake() -> None:
    network = lung_network()
    sizes = [anchor for head in network.config.heads for anchor in head.anchors]
    own_width, own_height = sizes[-1]
    # The last anchor's own shape in the middle of cell (2, 3) of the coarse 6 x 6 head.
    target = torch.tensor([[0.0, 0.0, 3.5 / 6, 2.5 / 6, own_width / 192, own_height / 192]])
    heads = [torch.zeros(1, 18, size, size) for size in (12, 6)]
    fine, coarse = (head.view(1, 3, 6, *head.shape[2:]) for head in heads)
    fine[:, :, 4], coarse[:, :, 4] = -50.0, -50.0
    for index, (width, height) in enumerate(sizes):
        head = fine if index < 3 else coarse
        row, column = (5, 7) if index < 3 else (2, 3)
        cell = head[0, index % 3, :, row, column]
        scale = 1.1 if index < 3 else 1.05
        # In the fine grid the centre lies on the cell's edge: sigmoid(tx) * scale - (scale - 1) / 2 = 0.
        edge = (scale - 1) / 2 / scale
        cell[:2] = 0.0 if index >= 3 else math.log(edge / (1 - edge))
        cell[2] = math.log(own_width / width)
        cell[3] = math.log(own_height / height)
        if width * height / (own_width * own_height) > 0.213:
            cell[4:] = 50.0
    assert yolo_loss(network, heads, target).total.item() == pytest.approx(0.0, abs=1e-3)
    coarse[0, 2, 4, 2, 3] = -50.0
    missed = yolo_loss(network, heads, target)
    assert missed.objectness > 5
    assert missed.box.item() == pytest.approx(0.0, abs=1e-3)
    coarse[0, 2, 4, 2, 3] = 50.0
    coarse[0, 2, 2, 2, 3] += 1.0
    displaced = yolo_loss(network, heads, target)
    assert displaced.box > 0.05
    assert displaced.objectness.item() == pytest.approx(0.0, abs=1e-3)


def test_few_steps_teach_the_network_one_box() -> None:
    network = lung_network().train()
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    images = torch.zeros(4, 1, 96, 96)
    targets = []
    for index, (cx, cy) in enumerate([(0.3, 0.5), (0.6, 0.5), (0.4, 0.4), (0.7, 0.6)]):
        width, height = 0.3, 0.5
        left, top = round((cx - width / 2) * 96), round((cy - height / 2) * 96)
        images[index, 0, top : top + 48, left : left + 29] = 1.0
        targets.append([index, 0, cx, cy, width, height])
    boxes = torch.tensor(targets)
    for _ in range(60):
        optimiser.zero_grad()
        loss = yolo_loss(network, network(images), boxes).total
        loss.backward()
        optimiser.step()
    for _ in range(20):
        network(images)
    found = detect(network.eval(), images)
    for detections, box in zip(found, boxes, strict=True):
        assert detections, "no box was learnt"
        best = torch.tensor([detections[0].cx, detections[0].cy, detections[0].width, detections[0].height])
        assert intersection_over_union(best, box[2:]) > 0.6
