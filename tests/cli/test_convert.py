"""`embolens convert`: the direction follows from what goes in and what comes out."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from cli.exit_codes import ExitCode
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.input_reader import read_input
from services.dicom.label_nifti import nifti_of, save_nifti
from tests.cli.conftest import Embolens
from tests.services.dicom.made_series import counting_volume, written_series


def test_there_and_back(embolens: Embolens, tmp_path: Path) -> None:
    write_ct_nifti(counting_volume(), tmp_path / "ct.nii.gz")
    there = embolens("convert", tmp_path / "ct.nii.gz", tmp_path / "series", "--patient-id", "P-7")
    assert there.returncode == ExitCode.DONE, there.stderr
    assert len(list((tmp_path / "series").glob("*.dcm"))) == 6
    back = embolens("convert", tmp_path / "series", tmp_path / "back.nii.gz")
    assert back.returncode == ExitCode.DONE, back.stderr
    np.testing.assert_array_equal(read_input(tmp_path / "back.nii.gz").volume.hu, counting_volume().hu)


def test_a_zip_of_dicom_is_taken(embolens: Embolens, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for path in written_series(tmp_path / "series"):
            archive.write(path, path.name)
    assert embolens("convert", tmp_path / "series.zip", tmp_path / "ct.nii").returncode == ExitCode.DONE
    np.testing.assert_array_equal(read_input(tmp_path / "ct.nii").volume.hu, counting_volume().hu)


def test_the_same_kind_on_both_sides_is_a_usage_error(embolens: Embolens, tmp_path: Path) -> None:
    write_ct_nifti(counting_volume(), tmp_path / "ct.nii.gz")
    written_series(tmp_path / "series")
    assert embolens("convert", tmp_path / "ct.nii.gz", tmp_path / "other.nii").returncode == ExitCode.USAGE
    assert embolens("convert", tmp_path / "series", tmp_path / "other").returncode == ExitCode.USAGE
    assert not (tmp_path / "other").exists()


def test_no_series_is_written_among_other_files(embolens: Embolens, tmp_path: Path) -> None:
    write_ct_nifti(counting_volume(), tmp_path / "ct.nii.gz")
    written_series(tmp_path / "series")
    refused = embolens("convert", tmp_path / "ct.nii.gz", tmp_path / "series")
    assert refused.returncode == ExitCode.USAGE
    assert len(list((tmp_path / "series").iterdir())) == 6
    (tmp_path / "empty").mkdir()
    assert embolens("convert", tmp_path / "ct.nii.gz", tmp_path / "empty").returncode == ExitCode.DONE


def test_an_image_that_cannot_be_converted_is_named(embolens: Embolens, tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(b"no image")
    refused = embolens("convert", tmp_path / "ct.nii", tmp_path / "series")
    assert refused.returncode == ExitCode.NOT_ANALYSABLE
    assert "ct.nii is not a NIfTI file" in refused.stderr


def test_a_label_map_becomes_a_seg_over_its_series_and_comes_back(embolens: Embolens, tmp_path: Path) -> None:
    written_series(tmp_path / "series")
    labels = np.zeros((6, 16, 24), dtype=np.uint16)
    labels[2:4, 3:6, 5:11] = 1
    save_nifti(nifti_of(labels, counting_volume().affine_lps), tmp_path / "mask.nii.gz")
    made = embolens("convert", tmp_path / "mask.nii.gz", tmp_path / "seg.dcm", "--series", tmp_path / "series")
    assert made.returncode == ExitCode.DONE, made.stderr
    back = embolens("convert", tmp_path / "seg.dcm", tmp_path / "back.nii", "--series", tmp_path / "series")
    assert back.returncode == ExitCode.DONE, back.stderr
    np.testing.assert_array_equal(read_input(tmp_path / "back.nii", exact=True).volume.hu, labels)


def test_a_seg_without_a_series_or_of_a_series_is_a_usage_error(embolens: Embolens, tmp_path: Path) -> None:
    write_ct_nifti(counting_volume(), tmp_path / "mask.nii.gz")
    written_series(tmp_path / "series")
    assert embolens("convert", tmp_path / "mask.nii.gz", tmp_path / "seg.dcm").returncode == ExitCode.USAGE
    assert embolens("convert", tmp_path / "series", tmp_path / "seg.dcm").returncode == ExitCode.USAGE
    assert not (tmp_path / "seg.dcm").exists()
