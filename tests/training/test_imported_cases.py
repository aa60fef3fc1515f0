"""Scans of a data set become cases on the 1 mm grid that train.py trains on, or scans to judge by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.data_sets.made_scans import (
    CASE_SHAPE,
    CASE_START,
    EMBOLUS_HU,
    EMBOLUS_IN_CASE,
    EMBOLUS_ZYX,
    made_affine,
    made_chest,
    made_emboli,
    made_vessels,
    recipe_data,
    write_cad_pe,
    write_masks,
    write_pair,
)
from training.arguments import cases_in, main
from training.cases import ARTERY, LUNG, UNKNOWN_VESSELS, VEIN, TrainingCase
from training.data_sets import cad_pe, nifti_pairs
from training.data_sets.vessel_masks import VesselMasks
from training.evaluation_scans import LABELLED, scans_in
from training.imported_cases import import_cases, import_for_evaluation


def imported_case(tmp_path: Path, masks: VesselMasks) -> TrainingCase:
    write_cad_pe(tmp_path / "data", "001", flipped=True)
    (imported,) = import_cases(cad_pe.training_scans(tmp_path / "data", masks), tmp_path / "cases", recipe_data())
    assert (imported.name, imported.emboli, imported.refusal) == ("001", 1, None)
    (case,) = cases_in(tmp_path / "cases")
    return case


def test_a_known_voxel_lands_at_the_known_place(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", "001")
    case = imported_case(tmp_path, VesselMasks.below(tmp_path / "masks"))
    assert case.name == "001"
    assert case.hu.shape == case.anatomy.shape == case.embolus.shape == CASE_SHAPE
    expected = np.zeros(CASE_SHAPE, np.uint8)
    expected[EMBOLUS_IN_CASE] = 1
    np.testing.assert_array_equal(case.embolus, expected)
    z, y, x = (span.start for span in EMBOLUS_IN_CASE)
    assert case.hu[z + 2, y + 1, x + 1] < EMBOLUS_HU + 0.25 * (300 - EMBOLUS_HU)
    assert case.hu[z + 2, y + 1, x + 8] == 300
    assert bool((case.embolus[tuple(case.embolus_points.T)] == 1).all())


def test_marked_vessels_become_the_anatomy_with_the_clot_in_the_artery(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", "001")
    case = imported_case(tmp_path, VesselMasks.below(tmp_path / "masks"))
    assert set(np.unique(case.anatomy)) == {0, LUNG, ARTERY, VEIN}
    assert bool((case.anatomy[EMBOLUS_IN_CASE] == ARTERY).all())
    volume_mm3 = 5 * 4 * 4
    assert np.count_nonzero(case.anatomy == ARTERY) == np.count_nonzero(made_vessels() == 1) * volume_mm3
    assert np.count_nonzero(case.anatomy == VEIN) == np.count_nonzero(made_vessels() == 2) * volume_mm3
    assert bool((case.anatomy[12 : 12 + 28 * 5, 12 : 12 + 24 * 4, 12 : 12 + 16 * 4] == LUNG).all())


def test_without_marked_vessels_and_lungs_the_case_says_so_and_thresholds_find_the_lungs(tmp_path: Path) -> None:
    case = imported_case(tmp_path, VesselMasks())
    assert set(np.unique(case.anatomy)) == {UNKNOWN_VESSELS, UNKNOWN_VESSELS + LUNG}
    assert np.abs(np.array(case.hu.shape) - CASE_SHAPE).max() <= 4
    centre = np.argwhere(case.embolus).mean(axis=0)
    expected = [n * mm + (mm - 1) / 2 - start for n, mm, start in zip(EMBOLUS_ZYX, (5, 4, 4), CASE_START, strict=True)]
    np.testing.assert_allclose(centre, expected, atol=2)


def test_roi_boxes_surround_both_lungs(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", "001")
    case = imported_case(tmp_path, VesselMasks.below(tmp_path / "masks"))
    with_lung = case.roi_boxes[case.roi_boxes[:, 2] > 0]
    # x 8..48 of 56, y 12..36 of 48
    np.testing.assert_allclose(with_lung, np.tile([28 / 56, 24 / 48, 40 / 56, 24 / 48], (len(with_lung), 1)))
    assert 0 < len(with_lung) < len(case.roi_boxes) == 25, "200 mm, a slice every 8"


def test_cases_that_are_there_are_passed_over_and_refused_scans_are_named(tmp_path: Path) -> None:
    for name in "AB":
        write_pair(tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz")
    write_pair(tmp_path / "C.nii.gz", tmp_path / "C_label.nii.gz", made_emboli((15, 20, 10)))  # in the lung
    scans = nifti_pairs.scans(tmp_path, VesselMasks())
    first = list(import_cases(scans[:1], tmp_path / "cases", recipe_data()))
    rest = list(import_cases(scans, tmp_path / "cases", recipe_data()))
    assert [one.name for one in first] == ["A"]
    assert [(one.name, one.refusal is None) for one in rest] == [("B", True), ("C", False)]
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == ["A", "B"]


def test_train_trains_on_imported_cases(tmp_path: Path, tiny_recipe: Path) -> None:
    for name in "ABC":
        write_pair(tmp_path / f"data/{name}.nii.gz", tmp_path / f"data/{name}_label.nii.gz")
    for imported in import_cases(
        nifti_pairs.scans(tmp_path / "data", VesselMasks()), tmp_path / "cases", recipe_data()
    ):
        assert imported.refusal is None
    weights = main(
        [
            *("--recipe", str(tiny_recipe), "--data", str(tmp_path / "cases"), "--threads", "1", "--device", "cpu"),
            *("--model", "aanet", "--epochs", "1", "--batch_size", "1"),
            *("--save_path", str(tmp_path / "saved"), "--log_path", str(tmp_path / "logs")),
        ]
    )
    assert weights.is_file()
    assert (tmp_path / "saved/aanet/test/C.png").is_file()


def test_scans_for_evaluation_are_read_by_the_evaluation_and_by_no_training(tmp_path: Path) -> None:
    write_cad_pe(tmp_path / "data", "001", "021", flipped=True)
    write_masks(tmp_path / "masks", "021")
    masks = VesselMasks.below(tmp_path / "masks")
    (imported,) = import_for_evaluation(cad_pe.held_out_scans(tmp_path / "data", masks), tmp_path / "scans")
    assert imported.name == "021"
    (planned,) = scans_in(tmp_path / "scans", LABELLED)
    scan = planned.load()
    np.testing.assert_array_equal(scan.volume.hu, made_chest().hu)
    np.testing.assert_allclose(scan.volume.affine_lps, made_affine(), atol=1e-4)
    assert scan.embolus is not None
    np.testing.assert_array_equal(np.argwhere(scan.embolus), [EMBOLUS_ZYX])
    np.testing.assert_array_equal(scan.artery, made_vessels() == 1)
    with pytest.raises(Exception, match="no training cases"):
        cases_in(tmp_path / "scans")
