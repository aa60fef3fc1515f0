"""`embolens phantom`: the same study as NIfTI and as DICOM, and the truth about it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

from services.dicom.input_reader import read_input
from tests.cli.conftest import Embolens

SMALL = ("--seed", "5", "--emboli", "2", "--slices", "64", "--matrix", "128")


def test_a_phantom_is_the_same_as_nifti_and_as_dicom(embolens: Embolens, tmp_path: Path) -> None:
    assert embolens("phantom", "--output", tmp_path / "n", *SMALL).returncode == 0
    assert embolens("phantom", "--output", tmp_path / "d", "--dicom", *SMALL).returncode == 0

    nifti = read_input(tmp_path / "n/ct.nii.gz").volume
    dicom = read_input(tmp_path / "d/ct").volume
    np.testing.assert_allclose(nifti.affine_lps, dicom.affine_lps, atol=1e-3)
    np.testing.assert_array_equal(nifti.hu, dicom.hu)


def test_the_truth_names_every_embolus_and_its_place(embolens: Embolens, tmp_path: Path) -> None:
    embolens("phantom", "--output", tmp_path / "n", *SMALL)

    truth = json.loads((tmp_path / "n/truth.json").read_text())
    labels = np.asarray(nibabel.load(tmp_path / "n/emboli.nii.gz").dataobj)
    artery = np.asarray(nibabel.load(tmp_path / "n/artery.nii.gz").dataobj)
    assert [embolus["id"] for embolus in truth["emboli"]] == [1, 2]
    assert all(embolus["volume_ml"] > 0 for embolus in truth["emboli"])
    assert set(np.unique(labels)) == {0, 1, 2}
    assert np.all(artery[labels > 0])
