"""A training case small enough to count its voxels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from training.cases import ARTERY, LUNG, TrainingCase


def a_case(embolus_at: tuple[int, int, int] | None = (10, 20, 60)) -> TrainingCase:
    """A block of soft tissue with one embolus of 3x3x3 voxels, 30 HU in a vessel of 300 HU."""
    shape = (40, 48, 72)
    hu = np.full(shape, 40, np.int16)
    anatomy = np.full(shape, LUNG, np.uint8)
    embolus = np.zeros(shape, np.uint8)
    points = np.zeros((0, 3), np.int16)
    if embolus_at is not None:
        z, y, x = embolus_at
        anatomy[z - 3 : z + 4, y - 3 : y + 4, x - 3 : x + 4] = ARTERY
        hu[anatomy == ARTERY] = 300
        embolus[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 1
        hu[embolus > 0] = 30
        points = np.argwhere(embolus).astype(np.int16)
    return TrainingCase(
        name="block",
        hu=hu,
        anatomy=anatomy,
        embolus=embolus,
        embolus_points=points,
        other_points=np.array([[35, 44, 5]], np.int16),
        roi_slices=np.full((2, 32, 32), 128, np.uint8),
        roi_boxes=np.array([[0.4, 0.5, 0.5, 0.25], [0.0, 0.0, 0.0, 0.0]]),
    )


@pytest.fixture
def make_case() -> Callable[..., TrainingCase]:
    """`a_case`; its argument says where the embolus lies, None for no embolus."""
    return a_case
