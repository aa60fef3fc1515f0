from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np

from imaging.volume import CtVolume, Mask
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.label_nifti import nifti_of, save_nifti
from tests.cli.conftest import Embolens

AFFINE_LPS = np.array([[0.0, 0.0, 1.2, -40.0], [0.0, 1.2, 0.0, -36.0], [2.0, 0.0, 0.0, 10.0], [0.0, 0.0, 0.0, 1.0]])


def _write_chest(folder: Path) -> tuple[Path, Path, Mask]:
    """An artery of 300 HU and 8 mm radius in fat, and its mask."""
    y, x = np.ogrid[:60, :60]
    artery = np.broadcast_to((y - 30) ** 2 + (x - 24) ** 2 < 7**2, (60, 60, 60)).copy()
    volume = CtVolume(np.where(artery, 300, -80).astype(np.int16), AFFINE_LPS)
    write_ct_nifti(volume, folder / "ct.nii.gz")
    save_nifti(nifti_of(artery.astype(np.uint8), AFFINE_LPS), folder / "artery.nii.gz")
    return folder / "ct.nii.gz", folder / "artery.nii.gz", artery


def test_emboli_lie_in_the_artery_that_was_given(embolens: Embolens, tmp_path: Path) -> None:
    ct, mask, artery = _write_chest(tmp_path)
    finished = embolens(
        "insert", ct, "--artery", mask, "--output", tmp_path / "made", "--emboli", "2", "--min-ml", "0.3", "--seed", "4"
    )
    assert finished.returncode == 0, finished.stderr
    embolus = np.asarray(nibabel.nifti1.load(tmp_path / "made/embolus.nii.gz").dataobj).transpose(2, 1, 0)
    assert set(np.unique(embolus)) == {0, 1, 2}
    assert not (embolus[~artery] > 0).any()
    volumes_ml = json.loads((tmp_path / "made/truth.json").read_text())["emboli_ml"]
    assert volumes_ml == [round(float((embolus == label).sum()) * 1.2 * 1.2 * 2.0 / 1000, 3) for label in (1, 2)]
    assert min(volumes_ml) >= 0.3


def test_a_mask_on_another_grid_is_refused(embolens: Embolens, tmp_path: Path) -> None:
    ct, mask, artery = _write_chest(tmp_path)
    save_nifti(nifti_of(artery[:-1].astype(np.uint8), AFFINE_LPS), mask)
    finished = embolens("insert", ct, "--artery", mask, "--output", tmp_path / "made")
    assert finished.returncode != 0
    assert "put the mask on the image's grid" in finished.stderr
    assert not (tmp_path / "made").exists()
