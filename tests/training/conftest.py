"""A training case small enough to count its voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

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


def write_case(folder: Path, case: TrainingCase) -> None:
    """A case on disk, as `TrainingCase.open` reads it."""
    folder.mkdir(parents=True)
    for name in ("hu", "anatomy", "embolus"):
        np.save(folder / f"{name}.npy", getattr(case, name))
    np.savez(folder / "points.npz", embolus=case.embolus_points, other=case.other_points)
    np.savez(folder / "roi.npz", slices=case.roi_slices, boxes=case.roi_boxes)


@pytest.fixture
def case_folder(tmp_path: Path) -> Path:
    """Five cases on disk, one of them without an embolus."""
    for index, place in enumerate([(10, 20, 60), (30, 30, 20), None, (20, 12, 40), (12, 36, 50)]):
        write_case(tmp_path / "cases" / f"block-{index}", a_case(place))
    return tmp_path / "cases"


def write_tiny_recipe(path: Path, more: Mapping[str, str] | None = None) -> Path:
    """A recipe of `train.py` with networks as narrow as they can be; `more`: text of the shipped one -> its own."""
    text = (Path(__file__).parents[2] / "training/recipes/phantoms.toml").read_text(encoding="utf-8")
    tables = {
        "patch_yx = [160, 160]": "patch_yx = [32, 32]",
        "patch_zyx = [64, 64, 64]": "patch_zyx = [32, 32, 32]",
        "in_channels = 5\n": "in_channels = 5\nbase_width = 4\n",
        "n_filters = [16, 32, 48, 64]": "n_filters = [8, 8, 8, 8]",
        "stem = 8": "stem = 4",
        "aspp = 16": "aspp = 8",
        "validation_cases = 2": "validation_cases = 1",
        "test_cases = 2": "test_cases = 1",
        "validation_batches = 4": "validation_batches = 1",
    }
    for shipped, tiny in {**tables, **(more or {})}.items():
        assert shipped in text
        text = text.replace(shipped, tiny)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """`write_tiny_recipe` in this test's folder."""
    return write_tiny_recipe(tmp_path / "tiny.toml")


@pytest.fixture
def make_case() -> Callable[..., TrainingCase]:
    """`a_case`; its argument says where the embolus lies, None for no embolus."""
    return a_case
