"""Made lungs with a step worked by hand, and real CTs that hold still, as they are and displaced."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from imaging.geometry import to_canonical
from imaging.motion import largest_step_mm
from imaging.suitability import SuitabilityLimits
from imaging.volume import CtVolume
from services.dicom.input_reader import read_input
from tests.services.dicom.made_series import REAL_DATA, axial_affine

LIMIT_MM = SuitabilityLimits().max_outline_step_mm
CHEST_CT = REAL_DATA / "chest_ct"


def lungs(*, still: bool = True, noise_hu: float = 30.0) -> CtVolume:
    """Two ellipsoids of lung in soft tissue, 200 mm high; breathing moves the upper half by 3 mm towards the back."""
    z, y, x = np.meshgrid(
        np.arange(80) * 2.5 - 100, np.arange(120) * 2.0 - 120, np.arange(160) * 2.0 - 160, indexing="ij"
    )
    if not still:
        y = np.where(z > 10, y - 3.0, y)
    inside = sum(((z / 95) ** 2 + (y / 85) ** 2 + ((x - side) / 55) ** 2 < 1) for side in (-70, 70)) > 0
    hu = np.where(inside, -850.0, 40.0) + np.random.default_rng(1).normal(0, noise_hu, inside.shape)
    return CtVolume(hu.astype(np.int16), axial_affine((2.5, 2.0, 2.0)))


def test_still_lungs_have_no_step_and_moved_ones_have_one() -> None:
    assert largest_step_mm(lungs()) < 0.2
    assert largest_step_mm(lungs(still=False)) > 2 * LIMIT_MM


def test_noise_is_no_motion() -> None:
    assert largest_step_mm(lungs(noise_hu=90.0)) < LIMIT_MM


def test_where_no_lung_is_there_is_no_step() -> None:
    hu = np.random.default_rng(2).integers(-50, 60, (40, 60, 60), dtype=np.int16)
    assert largest_step_mm(CtVolume(hu, axial_affine((2.5, 2.0, 2.0)))) == 0.0


def displaced(volume: CtVolume, *, along_mm: float, across_mm: float) -> CtVolume:
    """Everything above the middle slice, missing some slices or moved towards the front."""
    middle = volume.shape_zyx[0] // 2
    slices, rows = (round(mm / step) for mm, step in zip((along_mm, across_mm), volume.spacing_zyx_mm, strict=False))
    above = np.roll(volume.hu[middle + slices :], -rows, axis=1)
    return CtVolume(np.concatenate([volume.hu[:middle], above]), volume.affine_lps)


@pytest.mark.parametrize(
    "name",
    [
        "LIDC-IDRI-0001_contrast_133sl.tar.xz",
        "RIDER-Pilot-0117_CTPA-protocol_lower-chest_95sl.tar.xz",
        "tiny_chest_64x64x79_dicom",
    ],
)
def test_a_real_ct_is_not_warned_of_until_it_is_displaced(name: str, tmp_path: Path) -> None:
    path = CHEST_CT / name
    if not path.exists():
        pytest.skip(f"../shared/data/chest_ct/{name} is absent")
    if path.is_file():
        with tarfile.open(path) as files:
            files.extractall(tmp_path, filter="data")
        path = tmp_path
    volume, _ = to_canonical(read_input(path).volume)
    assert largest_step_mm(volume) < LIMIT_MM
    assert largest_step_mm(displaced(volume, along_mm=10, across_mm=0)) > LIMIT_MM
    assert largest_step_mm(displaced(volume, along_mm=0, across_mm=3)) > LIMIT_MM
