from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from imaging.errors import ConfigurationError, InputError
from services.dicom.nifti_reader import read_nifti
from tests.training.data_sets.made_scans import (
    EMBOLUS_ZYX,
    made_affine,
    made_chest,
    made_emboli,
    made_vessels,
    write_fumpe,
    write_masks,
)
from training.data_sets import fumpe
from training.data_sets.vessel_masks import VesselMasks


def test_slices_and_mask_come_together_by_the_number_of_the_file(tmp_path: Path) -> None:
    """D0001.dcm is the uppermost slice here: the first of the mask, the last of the volume."""
    write_fumpe(tmp_path, "PAT001", "PAT002")
    listed = fumpe.scans(tmp_path, VesselMasks())
    assert [scan.name for scan in listed] == ["PAT001", "PAT002"]
    scan = listed[0].load()
    np.testing.assert_array_equal(scan.volume.hu, made_chest().hu)
    np.testing.assert_allclose(scan.volume.affine_lps, made_affine(), atol=1e-4)
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])


def test_emboli_that_do_not_touch_are_different_ones(tmp_path: Path) -> None:
    write_fumpe(tmp_path, "PAT001")
    emboli = made_emboli((12, 20, 27), (13, 21, 28), (16, 20, 28))  # the first two touch at a corner
    savemat(tmp_path / "GroundTruth/PAT001.mat", {"Mask": emboli[::-1].transpose(1, 2, 0)})
    scan = fumpe.scans(tmp_path, VesselMasks())[0].load()
    assert [int(scan.embolus[place]) for place in ((12, 20, 27), (13, 21, 28), (16, 20, 28))] == [1, 1, 2]


def test_a_patient_without_emboli_has_none(tmp_path: Path) -> None:
    write_fumpe(tmp_path, "PAT024")
    savemat(tmp_path / "GroundTruth/PAT024.mat", {"Mask": made_emboli().transpose(1, 2, 0)})
    assert fumpe.scans(tmp_path, VesselMasks())[0].load().embolus.max() == 0


def test_masks_of_ones_own_are_taken(tmp_path: Path) -> None:
    write_fumpe(tmp_path / "data", "PAT001")
    write_masks(tmp_path / "masks", "PAT001")
    scan = fumpe.scans(tmp_path / "data", VesselMasks.below(tmp_path / "masks"))[0].load()
    np.testing.assert_array_equal(scan.artery, made_vessels() == 1)


def test_patients_without_mask_and_masks_without_patient_are_named(tmp_path: Path) -> None:
    write_fumpe(tmp_path, "PAT001", "PAT002")
    (tmp_path / "GroundTruth/PAT002.mat").rename(tmp_path / "GroundTruth/PAT003.mat")
    with pytest.raises(ConfigurationError, match="without outlined emboli: PAT002; without an image: PAT003"):
        fumpe.scans(tmp_path, VesselMasks())


def test_a_patient_that_is_there_twice_is_named(tmp_path: Path) -> None:
    write_fumpe(tmp_path, "PAT001")
    write_fumpe(tmp_path / "again", "PAT001")
    with pytest.raises(ConfigurationError, match="PAT001 is there twice"):
        fumpe.scans(tmp_path, VesselMasks())


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    write_fumpe(tmp_path, "PAT001")
    (tmp_path / "CT_scans/PAT001/D0040.dcm").unlink()
    with pytest.raises(InputError, match=r"PAT001 has 39 slices numbered 1 to 39, PAT001\.mat has 40"):
        fumpe.scans(tmp_path, VesselMasks())[0].load()


def test_a_mask_on_its_side_is_refused(tmp_path: Path) -> None:
    write_fumpe(tmp_path, "PAT001")
    savemat(tmp_path / "GroundTruth/PAT001.mat", {"Mask": made_emboli(EMBOLUS_ZYX)[::-1].transpose(2, 1, 0)})
    with pytest.raises(InputError, match="PAT001: the emboli have"):
        fumpe.scans(tmp_path, VesselMasks())[0].load()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"no MATLAB file", "cannot be read"), (None, r"no three-dimensional variable Mask, only: mask")],
)
def test_a_file_that_holds_no_mask_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    write_fumpe(tmp_path, "PAT001")
    path = tmp_path / "GroundTruth/PAT001.mat"
    if content is None:
        savemat(path, {"mask": made_emboli()})
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        fumpe.scans(tmp_path, VesselMasks())[0].load()


def test_a_mask_of_fumpe_itself_has_the_axes_row_column_slice(shared_data: Path) -> None:
    """The same mask is known as NIfTI in patient space, rows running to posterior and columns to left."""
    mask = fumpe._mask(shared_data / "emboli/PAT001_original.mat")
    nifti = read_nifti(shared_data / "emboli/PAT001.nii.gz").volume
    assert (nifti.direction_cosines == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]).all()
    np.testing.assert_array_equal(mask.transpose(2, 0, 1) > 0, nifti.hu > 0)
