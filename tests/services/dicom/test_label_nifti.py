from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from services.dicom.label_nifti import nifti_of, save_nifti
from tests.services.dicom.made_series import oblique_affine


@pytest.mark.parametrize("highest", [0, 200, 3000])
def test_the_file_unpacks_to_what_nibabel_writes(tmp_path: Path, highest: int) -> None:
    rng = np.random.default_rng(3)
    labels = np.zeros((30, 70, 90), dtype=np.uint16)
    labels[8:12, 20:40, 10:70] = rng.integers(0, highest + 1, (4, 20, 60))
    labels[-1, -1, -1] = highest
    image = nifti_of(labels, oblique_affine())
    path = tmp_path / "labels.nii.gz"
    save_nifti(image, path)
    unpacked = gzip.decompress(path.read_bytes())
    assert unpacked == image.to_bytes()
    subprocess.run([str(shutil.which("gzip")), "--test", str(path)], check=True)
    assert path.read_bytes().count(b"\x1f\x8b\x08") == 1  # one member: browsers read no more
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0), labels)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), labels)
