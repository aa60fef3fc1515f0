from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imaging.errors import ConfigurationError, InputError
from tests.training.data_sets.made_scans import (
    EMBOLUS_HU,
    EMBOLUS_ZYX,
    made_affine,
    made_chest,
    made_emboli,
    made_lung,
    made_vessels,
    write_cad_pe,
    write_masks,
    write_nrrd,
)
from training.data_sets.cad_pe import held_out_scans, refuse_held_out, training_scans
from training.data_sets.vessel_masks import VesselMasks


def test_a_scan_is_read_with_its_emboli_where_they_are(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "001")
    (listed,) = training_scans(tmp_path, VesselMasks())
    scan = listed.load()
    assert listed.name == scan.name == "001"
    np.testing.assert_array_equal(scan.volume.hu, made_chest().hu)
    np.testing.assert_allclose(scan.volume.affine_lps, made_affine())
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])
    assert scan.volume.hu[EMBOLUS_ZYX] == EMBOLUS_HU
    assert (scan.artery, scan.vein, scan.lung) == (None, None, None)


def test_directions_of_the_file_are_heeded(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "001", flipped=True)
    scan = training_scans(tmp_path, VesselMasks())[0].load()
    np.testing.assert_array_equal(scan.volume.hu, made_chest().hu)
    np.testing.assert_allclose(scan.volume.affine_lps, made_affine())
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])


def test_a_reference_that_says_nothing_of_its_place_lies_on_the_image_index_by_index(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "images/001.nrrd", made_chest().hu, flipped=True)
    write_nrrd(tmp_path / "rs/001RefStd.nrrd", made_emboli(EMBOLUS_ZYX)[:, ::-1, ::-1], says_place=False)
    scan = training_scans(tmp_path, VesselMasks())[0].load()
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])


def test_each_integer_is_an_embolus_even_where_two_touch(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "images/001.nrrd", made_chest().hu)
    emboli = made_emboli((12, 20, 27), (12, 20, 28), (16, 20, 28), values=(7, 3, 9))
    write_nrrd(tmp_path / "rs/001RefStd.nrrd", emboli)
    scan = training_scans(tmp_path, VesselMasks())[0].load()
    assert [int(scan.embolus[place]) for place in ((12, 20, 27), (12, 20, 28), (16, 20, 28))] == [2, 1, 3]


def test_vessels_and_lungs_are_taken_where_they_are_marked(tmp_path: Path) -> None:
    write_cad_pe(tmp_path / "data", "001", "002", flipped=True)
    write_masks(tmp_path / "masks/vessel", "001")
    first, second = (scan.load() for scan in training_scans(tmp_path / "data", VesselMasks.below(tmp_path / "masks")))
    np.testing.assert_array_equal(first.artery, made_vessels() == 1)
    np.testing.assert_array_equal(first.vein, made_vessels() == 2)
    np.testing.assert_array_equal(first.lung, made_lung() == 1)
    assert second.artery is None


def test_vessels_known_to_be_faulty_do_not_count(tmp_path: Path) -> None:
    write_cad_pe(tmp_path / "data", "018")
    write_masks(tmp_path / "masks", "018")
    scan = training_scans(tmp_path / "data", VesselMasks.below(tmp_path / "masks"))[0].load()
    assert scan.artery is None
    assert scan.lung is not None


def test_the_held_out_scans_are_not_among_those_to_train_on(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "020", "021", "040", "e0032")
    assert [scan.name for scan in training_scans(tmp_path, VesselMasks())] == ["020", "e0032"]
    assert [scan.name for scan in held_out_scans(tmp_path, VesselMasks())] == ["021", "040"]


def test_a_folder_of_held_out_scans_only_is_refused_and_so_are_their_names(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "021")
    with pytest.raises(ConfigurationError, match="held out"):
        training_scans(tmp_path, VesselMasks())
    with pytest.raises(ConfigurationError, match="021, 040 of CAD-PE are held out and never trained on"):
        refuse_held_out(["001", "040", "021"])
    refuse_held_out(["001"])


def test_files_without_a_partner_are_all_named(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "001", "002", "003", "004")
    (tmp_path / "images/002.nrrd").unlink()
    (tmp_path / "rs/003RefStd.nrrd").unlink()
    (tmp_path / "rs/004RefStd.nrrd").rename(tmp_path / "rs/005RefStd.nrrd")
    with pytest.raises(ConfigurationError, match=r"without outlined emboli: 003, 004; without an image: 002, 005"):
        training_scans(tmp_path, VesselMasks())


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no scans in"):
        training_scans(tmp_path, VesselMasks())
    with pytest.raises(ConfigurationError, match="no masks"):
        VesselMasks.below(tmp_path)


def test_a_reference_of_another_size_or_place_is_refused(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "001")
    write_nrrd(tmp_path / "rs/001RefStd.nrrd", made_emboli(EMBOLUS_ZYX)[1:])
    (listed,) = training_scans(tmp_path, VesselMasks())
    with pytest.raises(InputError, match=r"001: the emboli have \(39, 48, 56\) voxels \(z, y, x\), the image"):
        listed.load()
    write_nrrd(tmp_path / "rs/001RefStd.nrrd", made_emboli(EMBOLUS_ZYX), flipped=True)
    write_nrrd(tmp_path / "images/001.nrrd", np.roll(made_chest().hu, 1, axis=0), says_place=False)
    with pytest.raises(InputError, match="voxels beside the image"):
        listed.load()


def test_emboli_that_lie_in_air_are_refused(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "001")
    write_nrrd(tmp_path / "rs/001RefStd.nrrd", made_emboli((15, 20, 10)))
    with pytest.raises(InputError, match="001: most of what is outlined as emboli is below -300 HU"):
        training_scans(tmp_path, VesselMasks())[0].load()


def test_a_file_that_is_no_nrrd_is_refused(tmp_path: Path) -> None:
    write_cad_pe(tmp_path, "001")
    (tmp_path / "images/001.nrrd").write_text("no image")
    with pytest.raises(InputError, match=r"001\.nrrd is no NRRD"):
        training_scans(tmp_path, VesselMasks())[0].load()
