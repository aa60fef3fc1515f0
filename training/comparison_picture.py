"""A picture of one slice: the CT with what is there, beside the CT with what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from imaging.geometry import to_canonical
from imaging.result import SegmentationResult
from imaging.windows import EMBOLUS_WINDOW_HU, window
from training.evaluation_scans import EvaluationScan

PANEL_PX = 420
TRUTH_RGB, FOUND_RGB, CANDIDATE_RGB = (80, 220, 120), (255, 82, 64), (255, 190, 64)


def write_comparison(scan: EvaluationScan, result: SegmentationResult, path: Path) -> None:
    """A PNG: truth (green) | found (red; candidates below the threshold amber), the slice with most embolus in it."""
    canonical, order = to_canonical(scan.volume)
    found = order.apply(result.embolus_labelmap)
    truth = np.zeros_like(found) if scan.embolus is None else order.apply(scan.embolus)
    reported = (found > 0) & (found <= len(result.findings.reported))
    index = _slice_to_show(truth > 0, reported, found > 0)
    grey = np.round(window(canonical.hu[index], *EMBOLUS_WINDOW_HU) * 255).astype(np.uint8)
    plain = np.repeat(grey[..., None], 3, axis=2)
    panels = [
        _outlined(plain, [(truth[index] > 0, TRUTH_RGB)]),
        _outlined(plain, [((found[index] > 0) & ~reported[index], CANDIDATE_RGB), (reported[index], FOUND_RGB)]),
    ]
    _, row_mm, column_mm = canonical.spacing_zyx_mm
    height = round(PANEL_PX * plain.shape[0] * row_mm / (plain.shape[1] * column_mm))
    picture = Image.new("RGB", (2 * PANEL_PX + 4, height))
    for place, panel in enumerate(panels):
        resized = Image.fromarray(panel).resize((PANEL_PX, height), Image.Resampling.LANCZOS)
        picture.paste(resized, (place * (PANEL_PX + 4), 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", optimize=True)


def _slice_to_show(*masks: NDArray[np.bool_]) -> int:
    for mask in masks:
        area = np.count_nonzero(mask, axis=(1, 2))
        if area.any():
            return int(area.argmax())
    return len(masks[0]) // 2


def _outlined(plain: NDArray[np.uint8], masks: list[tuple[NDArray[Any], tuple[int, int, int]]]) -> NDArray[np.uint8]:
    coloured = plain.copy()
    for mask, colour in masks:
        coloured[mask & ~binary_erosion(mask)] = colour
    return coloured
