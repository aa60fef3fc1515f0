from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

from imaging.errors import ConfigurationError, InputError
from services.dicom.label_nifti import affine_ras_of, save_nifti
from tests.training.data_sets.made_scans import (
    EMBOLUS_ZYX,
    SHAPE_ZYX,
    made_affine,
    made_chest,
    made_emboli,
    write_pair,
)
from training.data_sets import nifti_pairs
from training.data_sets.labelled_scan import only_named
from training.data_sets.vessel_masks import VesselMasks


@pytest.mark.parametrize(
    ("image", "label"),
    [("image/A.nii.gz", "label/A.nii.gz"), ("A.nii.gz", "A_label.nii.gz")],
)
def test_both_layouts_are_read(tmp_path: Path, image: str, label: str) -> None:
    write_pair(tmp_path / image, tmp_path / label)
    (listed,) = nifti_pairs.scans(tmp_path, VesselMasks())
    scan = listed.load()
    assert listed.name == "A"
    np.testing.assert_array_equal(scan.volume.hu, made_chest().hu)
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])


def test_a_label_map_stored_in_another_order_of_axes_lies_where_its_affine_says(tmp_path: Path) -> None:
    write_pair(tmp_path / "A.nii.gz", tmp_path / "A_label.nii.gz")
    array = made_emboli(EMBOLUS_ZYX).transpose(2, 1, 0)[::-1].transpose(1, 2, 0)
    affine = affine_ras_of(made_affine())
    affine[:3, 3] += affine[:3, 0] * (SHAPE_ZYX[2] - 1)
    affine[:3, 0] *= -1
    save_nifti(Nifti1Image(np.ascontiguousarray(array), affine[:, [1, 2, 0, 3]]), tmp_path / "A_label.nii.gz")
    scan = nifti_pairs.scans(tmp_path, VesselMasks())[0].load()
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])


def test_pairs_are_made_by_name_and_never_by_order(tmp_path: Path) -> None:
    for name, place in (("A", (12, 20, 28)), ("B", (16, 20, 28))):
        write_pair(tmp_path / f"image/{name}.nii.gz", tmp_path / f"label/{name}.nii.gz", made_emboli(place))
    (tmp_path / "label/A.nii.gz").rename(tmp_path / "label/C.nii.gz")
    with pytest.raises(ConfigurationError, match="without outlined emboli: A; without an image: C"):
        nifti_pairs.scans(tmp_path, VesselMasks())
    (tmp_path / "image/A.nii.gz").rename(tmp_path / "image/C.nii.gz")
    b, c = (scan.load() for scan in nifti_pairs.scans(tmp_path, VesselMasks()))
    np.testing.assert_array_equal(np.argwhere(b.embolus), [(16, 20, 28)])
    np.testing.assert_array_equal(np.argwhere(c.embolus), [(12, 20, 28)])


def test_a_name_in_two_forms_is_ambiguous(tmp_path: Path) -> None:
    write_pair(tmp_path / "A.nii.gz", tmp_path / "A_label.nii.gz")
    (tmp_path / "A.nii").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="A is there twice"):
        nifti_pairs.scans(tmp_path, VesselMasks())


def test_only_scans_of_some_names_and_no_others(tmp_path: Path) -> None:
    for name in "ABC":
        write_pair(tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz")
    scans = nifti_pairs.scans(tmp_path, VesselMasks())
    assert [scan.name for scan in only_named(scans, ["C", "A"])] == ["A", "C"]
    assert only_named(scans, []) == scans
    with pytest.raises(ConfigurationError, match="no scan is called D"):
        only_named(scans, ["A", "D"])


def test_a_mask_full_of_specks_is_refused(tmp_path: Path) -> None:
    specks = np.zeros(SHAPE_ZYX, np.uint8)
    specks[1:39:2, 8:40:2, 27] = 1
    write_pair(tmp_path / "A.nii.gz", tmp_path / "A_label.nii.gz", specks)
    with pytest.raises(InputError, match="A has 304 emboli, at most 255"):
        nifti_pairs.scans(tmp_path, VesselMasks())[0].load()
