from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imaging.errors import InputError
from imaging.geometry import to_canonical
from services.dicom.input_reader import read_input
from training.lungs_by_threshold import find_lungs
from training.phantoms import whole_working_grid


def body(shape: tuple[int, int, int] = (160, 150, 200)) -> np.ndarray:
    """Tissue with 10 mm of room air around it in the plane."""
    hu = np.full(shape, -1000, np.int16)
    hu[:, 10:-10, 10:-10] = 40
    return hu


def test_both_lungs_are_found_and_nothing_else() -> None:
    hu = body()
    expected = np.zeros(hu.shape, dtype=bool)
    expected[20:130, 40:110, 25:85] = expected[20:130, 40:110, 115:175] = True
    hu[expected] = -850
    hu[5:15, 40:80, 60:100] = -950  # gas in the stomach
    hu[130:160, 60:76, 95:111] = -1000  # the trachea, down to where the lungs end
    np.testing.assert_array_equal(find_lungs(hu), expected)


def test_a_lung_cut_off_by_the_field_of_view_is_found() -> None:
    hu = body()[:, :, 10:-10]
    lung = (slice(20, 130), slice(40, 110))
    hu[*lung, 0:60] = hu[*lung, 120:180] = -850
    found = find_lungs(hu)
    assert found[*lung, 0:60].all()
    assert found.sum() == 2 * 110 * 70 * 60


def test_a_table_with_foam_in_it_is_no_lung() -> None:
    hu = np.pad(body(), ((0, 0), (0, 60), (0, 0)), constant_values=-1000)
    hu[:, 160:200, 5:195] = 0
    hu[:, 165:195, 10:190] = -950
    hu[20:130, 40:110, 25:85] = hu[20:130, 40:110, 115:175] = -850
    assert find_lungs(hu)[:, 140:].sum() == 0
    assert find_lungs(hu).sum() == 2 * 110 * 70 * 60


def test_no_lung_is_named() -> None:
    with pytest.raises(InputError, match="no lung was found: the largest air-filled space inside the body has 0 ml"):
        find_lungs(body())
    with pytest.raises(InputError, match="no lung"):
        find_lungs(np.full((20, 20, 20), -1000, np.int16))


def test_lungs_of_a_real_chest_are_found(shared_data: Path) -> None:
    volume, _ = to_canonical(read_input(shared_data / "chest_ct/tiny_chest_64x64x79_dicom").volume)
    lung = find_lungs(whole_working_grid(volume).resample(volume.hu))
    middle = lung.shape[2] // 2
    assert 2e6 < lung[:, :, :middle].sum() < 3e6, "mm3, right"
    assert 2e6 < lung[:, :, middle:].sum() < 3e6, "mm3, left"
