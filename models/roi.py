"""Where the lungs are: a YOLO detector on every n-th axial slice, united to one 3D box.

Emboli lie in arteries at the hila too, outside the lungs but inside the box around both of them, so the box is a region
of interest and never a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from imaging.errors import NotAnalysable, Reason
from imaging.geometry import Box
from imaging.volume import CtVolume
from imaging.windows import roi_input
from models.darknet.detection import detect
from models.darknet.network import DarknetNetwork

_BATCH = 8


@dataclass(frozen=True, slots=True)
class RoiSettings:
    """every_mm: distance of the slices looked at; margin_mm: added on every side of the united boxes."""

    every_mm: float
    min_confidence: float
    margin_mm: float


@dataclass(frozen=True, slots=True)
class LungRegion:
    """The box to analyse, and how far the lungs reach in it, without the margin."""

    box: Box
    lung_extent_zyx_mm: tuple[float, float, float]


def find_lungs(
    detector: DarknetNetwork, volume: CtVolume, settings: RoiSettings, on_progress: Callable[[float], None]
) -> LungRegion:
    """The 3D region of interest of a canonical volume.

    Raises:
        NotAnalysable: no lungs in view (code ``coverage.no_lung``).
    """
    spacing = volume.spacing_zyx_mm
    depth, height, width = volume.shape_zyx
    step = max(1, round(settings.every_mm / spacing[0]))
    looked_at = sorted({*range(0, depth, step), depth - 1})
    size_yx = (detector.config.height, detector.config.width)
    device = next(detector.parameters()).device
    boxes: list[tuple[int, float, float, float, float]] = []  # slice, then left, top, right, bottom as fractions
    for start in range(0, len(looked_at), _BATCH):
        batch = looked_at[start : start + _BATCH]
        images = np.stack([roi_input(volume.hu[z], size_yx)[None] for z in batch])
        found = detect(detector, torch.from_numpy(images).to(device), threshold=settings.min_confidence)
        for z, detections in zip(batch, found, strict=True):
            boxes += [(z, d.left, d.top, d.right, d.bottom) for d in detections]
        on_progress(min(1.0, (start + _BATCH) / len(looked_at)))
    if not boxes:
        raise NotAnalysable([Reason("coverage.no_lung", "no lung was recognised in any slice")])
    table = np.asarray(boxes)
    low = np.array([table[:, 0].min(), table[:, 2].min() * height, table[:, 1].min() * width])
    high = np.array([table[:, 0].max() + 1, table[:, 4].max() * height, table[:, 3].max() * width])
    start_zyx = np.clip(np.floor(low), 0, None).astype(int)
    stop_zyx = np.minimum(np.ceil(high), volume.shape_zyx).astype(int)
    united = Box(
        (int(start_zyx[0]), int(start_zyx[1]), int(start_zyx[2])),
        (int(stop_zyx[0]), int(stop_zyx[1]), int(stop_zyx[2])),
    )
    # The lung may end anywhere between two slices looked at.
    margins = [round(settings.margin_mm / step_mm) for step_mm in spacing]
    margins[0] = max(margins[0], step)
    box = united.grown((margins[0], margins[1], margins[2]), volume.shape_zyx)
    z_mm, y_mm, x_mm = (n * step_mm for n, step_mm in zip(united.shape_zyx, spacing, strict=True))
    return LungRegion(box, (z_mm, y_mm, x_mm))
