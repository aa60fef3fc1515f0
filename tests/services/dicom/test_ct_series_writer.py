from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom

from tests.services.dicom.made_series import counting_volume, oblique_affine, written_series


def test_the_same_volume_writes_the_same_bytes(tmp_path: Path) -> None:
    for first, second in zip(written_series(tmp_path / "a"), written_series(tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_stored_values_are_hu(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(written_series(tmp_path)[4])
    np.testing.assert_array_equal(dataset.pixel_array, counting_volume().hu[4])
    assert (dataset.RescaleSlope, dataset.RescaleIntercept) == (1, 0)


def test_files_are_named_in_slice_order_and_uids_differ(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    assert [path.name for path in paths] == [f"{n:06d}.dcm" for n in range(1, 7)]
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in paths}) == 6


def test_dciodvfy_and_dcentvfy_report_no_error(tmp_path: Path) -> None:
    paths = written_series(tmp_path, counting_volume(affine=oblique_affine()))
    for command in (["dciodvfy", "-new", str(paths[2])], ["dcentvfy", *map(str, paths)]):
        report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Error" not in report.stdout + report.stderr
