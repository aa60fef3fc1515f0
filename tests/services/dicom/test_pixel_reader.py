from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.dicom.headers import read_header
from services.dicom.image_plane import planes_of
from services.dicom.pixel_reader import read_hu, to_hu
from tests.services.dicom.made_series import REAL_DATA, edit, written_series

SYNTAXES = REAL_DATA / "hard_dicom/transfer_syntaxes_MISTER-CT"
LOSSLESS = ("1.2.2", "1.2.1.99", "4.90", "4.80", "4.70", "4.57", "1.2.1", "1.2", "1.2.5")
LOSSY_MEAN_HU = {"4.91": 1, "4.81": 1, "4.51": 4, "4.53": 4, "4.55": 4, "4.50": 15}


def test_below_air_becomes_air_and_the_range_of_int16_is_kept() -> None:
    stored = np.array([[-3024, -1025, -1024, 0, 40000]], dtype=np.int32)
    np.testing.assert_array_equal(to_hu(stored, 1, 0, None), [[-1024, -1024, -1024, 0, 32767]])


def test_fractions_are_rounded() -> None:
    np.testing.assert_array_equal(to_hu(np.array([[0, 1, 2]]), 2.0002442, -47.3, None), [[-47, -45, -43]])


def test_padding_above_air_becomes_air() -> None:
    stored = np.array([[62512, 500], [1024, 700]], dtype=np.uint16)
    np.testing.assert_array_equal(to_hu(stored, 1, -1024, (62512, 62512)), [[-1024, -524], [0, -324]])


def test_a_padding_value_within_tissue_is_believed_only_where_corners_carry_it() -> None:
    inside = np.array([[5, 6, 5], [6, 0, 6], [5, 6, 5]], dtype=np.int16)
    np.testing.assert_array_equal(to_hu(inside, 1, 0, (0, 0)), inside)
    around = np.array([[0, 6, 0], [6, 0, 6], [0, 6, 0]], dtype=np.int16)
    assert np.count_nonzero(to_hu(around, 1, 0, (0, 0)) == -1024) == 5


def test_a_padding_value_written_unsigned_is_understood(tmp_path: Path) -> None:
    path = written_series(tmp_path)[0]

    def pad(dataset: object) -> None:
        dataset.add_new("PixelPaddingValue", "US", 63536)  # type: ignore[attr-defined]
        dataset.RescaleIntercept = "5000"  # type: ignore[attr-defined]
        values = np.full((16, 24), 7, dtype="<i2")
        values[0, 0] = -2000
        dataset.PixelData = values.tobytes()  # type: ignore[attr-defined]

    edit(path, pad)
    hu = read_hu(planes_of(path, read_header(path))[0])
    assert (hu[0, 0], hu[0, 1]) == (-1024, 5007)


def test_a_disk_that_refuses_says_nothing_about_the_image(tmp_path: Path) -> None:
    path = written_series(tmp_path)[0]
    plane = planes_of(path, read_header(path))[0]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_hu(plane)


@pytest.mark.skipif(not SYNTAXES.is_dir(), reason="../shared/data/hard_dicom/transfer_syntaxes_MISTER-CT is absent")
@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY_MEAN_HU])
def test_every_transfer_syntax_gives_the_same_hu(syntax: str) -> None:
    def hu_of(path: Path) -> np.ndarray:
        return read_hu(planes_of(path, read_header(path))[0]).astype(int)

    (path,) = SYNTAXES.glob(
        f"*_1.2.840.10008.1.2{syntax.removeprefix('1.2') if syntax[0] == '1' else '.' + syntax}.dcm"
    )
    difference = np.abs(hu_of(path) - hu_of(SYNTAXES / "CTImage.dcm"))
    assert difference.mean() <= LOSSY_MEAN_HU.get(syntax, 0)
