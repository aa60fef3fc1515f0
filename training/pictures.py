"""Pictures of what a network made of a case: truth | prediction, as outlines over the CT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from imaging.windows import EMBOLUS_WINDOW_HU, window
from training.cases import ARTERY, TrainingCase
from training.scans import CaseSegmentation

ROWS = 3
APART = 8  # slices between two rows, at least
ENLARGED = 2
TRUTH_RGB, PREDICTION_RGB, ARTERY_RGB = (60, 220, 60), (255, 60, 60), (70, 130, 255)
CAPTION_PIXELS = 14


def write_picture(path: Path, case: TrainingCase, segmentation: CaseSegmentation) -> None:
    """A PNG of up to three axial slices: left the truth (green), right the prediction (red), arteries in blue."""
    artery = np.asarray(case.anatomy) == ARTERY
    rows = []
    for z in _slices_to_show(np.asarray(case.embolus), segmentation.lesions):
        hu, truth = np.asarray(case.hu[z]), np.asarray(case.embolus[z]) > 0
        left = _panel(hu, truth, TRUTH_RGB, artery[z], f"{case.name}  z {z}  truth")
        predicted_artery = None if segmentation.artery is None else segmentation.artery[z]
        right = _panel(hu, segmentation.lesions[z] > 0, PREDICTION_RGB, predicted_artery, "prediction")
        rows.append(np.concatenate([left, right], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def _slices_to_show(truth: NDArray[np.uint8], predicted: NDArray[np.uint32]) -> list[int]:
    """Where the largest emboli are largest; in a case without any, where the largest false findings are."""
    labels = truth if truth.any() else predicted
    sizes = np.bincount(labels.ravel())
    chosen: list[int] = []
    for label in np.argsort(-sizes, kind="stable"):
        if label and sizes[label] and len(chosen) < ROWS:
            z = int(np.argmax((labels == label).sum(axis=(1, 2))))
            if all(abs(z - other) >= APART for other in chosen):
                chosen.append(z)
    return sorted(chosen) or [truth.shape[0] // 2]


def _panel(
    hu: NDArray[np.int16],
    mask: NDArray[np.bool_],
    colour: tuple[int, int, int],
    artery: NDArray[np.bool_] | None,
    caption: str,
) -> NDArray[np.uint8]:
    grey = np.round(_enlarged(window(hu, *EMBOLUS_WINDOW_HU)) * 255).astype(np.uint8)
    panel = np.repeat(grey[..., None], 3, axis=2)
    if artery is not None:
        panel[_outline(artery)] = ARTERY_RGB
    panel[_outline(mask)] = colour
    image = Image.fromarray(np.pad(panel, ((CAPTION_PIXELS, 0), (0, 0), (0, 0))))
    ImageDraw.Draw(image).text((2, 1), caption, fill=colour)
    return np.asarray(image)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    enlarged = _enlarged(mask)
    return np.asarray(enlarged & ~binary_erosion(enlarged), dtype=bool)


def _enlarged(image: NDArray[Any]) -> NDArray[Any]:
    return image.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
