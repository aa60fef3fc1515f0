from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from imaging.errors import ConfigurationError, InputError
from imaging.volume import CtVolume
from training.evaluation_scans import (
    ANATOMIES,
    GROWN,
    INSERTED,
    REAL,
    labelled_scans,
    phantom_scans,
    read_scan,
    scans_in,
)
from training.recipe import Recipe

RECIPE = Path(__file__).parents[2] / "training/recipes/phantom-v3.toml"
CHEST_CT = Path(__file__).parents[3] / "shared/data/chest_ct"


def test_phantoms_have_test_seeds_and_only_held_out_anatomies(tmp_path: Path) -> None:
    recipe = Recipe.read(RECIPE)
    plans = phantom_scans(recipe, tmp_path, 8, 6)
    seeds = [int(plan.name.split("-")[0]) for plan in plans]
    assert len(set(seeds)) == 14
    assert min(seeds) >= recipe.data.test_seed
    assert {plan.kind for plan in plans[:8]} == {plan.kind for plan in plans[8:]} == {GROWN, ANATOMIES}
    built_on = {plan.name.split("-")[1] for plan in plans if plan.kind == ANATOMIES}
    assert built_on <= set(recipe.data.held_out_anatomies)


def test_asking_for_more_scans_renames_none() -> None:
    recipe = Recipe.read(RECIPE)
    few, many = ({plan.name for plan in phantom_scans(recipe, None, *count)} for count in ((2, 2), (7, 4)))
    assert few < many


def test_a_rich_phantom_holds_emboli_and_a_negative_none() -> None:
    recipe = Recipe.read(RECIPE)
    coarse = replace(
        recipe.data, length_mm=220.0, field_of_view_mm=(320.0, 330.0), spacing_z_mm=(3.0, 3.1), spacing_yx_mm=(2.4, 2.5)
    )
    rich, negative = (plan.load() for plan in phantom_scans(replace(recipe, data=coarse), None, 1, 1))
    assert rich.embolus is not None
    assert negative.embolus is not None
    assert rich.embolus.max() >= 1
    assert not negative.embolus.any()
    assert rich.artery is not None
    assert not (np.asarray(rich.embolus) > 0)[~rich.artery].any()


def _write_nifti(path: Path, array_zyx: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.nifti1.save(nibabel.nifti1.Nifti1Image(array_zyx.transpose(2, 1, 0), np.diag([1.0, 1.5, 2.0, 1.0])), path)


def test_a_folder_of_nifti_gives_image_and_masks_on_one_grid(tmp_path: Path) -> None:
    hu = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    embolus, artery = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
    embolus[2, 3, 4], embolus[6, 7, 8], artery[2:4, 3, 4] = 1, 1, 1
    _write_nifti(tmp_path / "one/ct.nii.gz", hu)
    _write_nifti(tmp_path / "one/embolus.nii.gz", embolus)
    _write_nifti(tmp_path / "one/pulmonary_artery.nii.gz", artery)
    (plan,) = scans_in(tmp_path, INSERTED)
    scan = plan.load()
    assert (scan.name, scan.kind) == ("one", INSERTED)
    np.testing.assert_array_equal(scan.volume.hu, hu)
    assert scan.embolus is not None
    assert {int(scan.embolus[2, 3, 4]), int(scan.embolus[6, 7, 8])} == {1, 2}, "two that do not touch are two"
    np.testing.assert_array_equal(scan.artery, artery > 0)


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    _write_nifti(tmp_path / "one/ct.nii.gz", np.zeros((8, 9, 10), np.int16))
    _write_nifti(tmp_path / "one/embolus.nii.gz", np.zeros((8, 9, 11), np.uint8))
    with pytest.raises(InputError, match=r"embolus\.nii\.gz"):
        read_scan(tmp_path / "one", REAL)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no scans"):
        scans_in(tmp_path, REAL)


def test_an_archive_is_read_like_the_folder_in_it(tmp_path: Path) -> None:
    hu = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    _write_nifti(tmp_path / "packed/image.nii.gz", hu)
    (tmp_path / "scans").mkdir()
    with tarfile.open(tmp_path / "scans/scan-1.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "packed", "packed")
    (plan,) = scans_in(tmp_path / "scans", REAL)
    scan = plan.load()
    assert scan.name == "scan-1"
    np.testing.assert_array_equal(scan.volume.hu, hu)


@pytest.mark.skipif(not CHEST_CT.is_dir(), reason="no shared/data/chest_ct beside the checkout")
def test_the_crop_of_a_real_scan_comes_with_its_artery() -> None:
    scan = next(plan for plan in scans_in(CHEST_CT, REAL) if plan.name == "totalseg_pulmonary_crop").load()
    assert scan.artery is not None
    assert scan.embolus is None
    assert np.median(scan.volume.hu[scan.artery]) > 500, "the mask lies on the opacified artery"


def test_anything_that_yields_volumes_and_label_maps_can_be_judged() -> None:
    volume = CtVolume(np.zeros((4, 5, 6), np.int16), np.eye(4)[[2, 1, 0, 3]])
    labels, artery = np.ones((4, 5, 6), np.uint16), np.ones((4, 5, 6), bool)
    bare, full = (plan.load() for plan in labelled_scans([("a", volume, labels), ("b", volume, labels, artery)]))
    assert (bare.kind, bare.artery) == (INSERTED, None)
    assert full.artery is artery
    assert full.embolus is labels
