"""`embolens import-cases`: what it writes, what it refuses, what it says."""

from __future__ import annotations

from pathlib import Path

from cli.exit_codes import ExitCode
from tests.cli.conftest import Embolens
from tests.training.data_sets.made_scans import made_emboli, write_cad_pe, write_fumpe, write_pair
from training.arguments import cases_in
from training.evaluation_scans import LABELLED, scans_in


def test_a_data_set_becomes_cases(embolens: Embolens, tmp_path: Path) -> None:
    write_fumpe(tmp_path / "fumpe", "PAT001", "PAT002")
    done = embolens("import-cases", "fumpe", tmp_path / "fumpe", "--output", tmp_path / "cases")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "PAT001: 1 emboli" in done.stdout
    assert [case.name for case in cases_in(tmp_path / "cases")] == ["PAT001", "PAT002"]


def test_held_out_scans_come_for_evaluation_only(embolens: Embolens, tmp_path: Path) -> None:
    write_cad_pe(tmp_path / "cad-pe", "001", "021")
    to_train_on = ("import-cases", "cad-pe", tmp_path / "cad-pe", "--output", tmp_path / "cases")
    refused = embolens(*to_train_on, "--only", "021")
    assert refused.returncode == ExitCode.FAILURE
    assert "021 of CAD-PE are held out" in refused.stderr
    assert "[training.held_out]" in refused.stderr
    assert embolens(*to_train_on).returncode == ExitCode.DONE
    assert [case.name for case in cases_in(tmp_path / "cases")] == ["001"]
    to_judge_by = ("import-cases", "cad-pe", tmp_path / "cad-pe", "--output", tmp_path / "scans", "--evaluation")
    assert embolens(*to_judge_by).returncode == ExitCode.DONE
    assert [scan.name for scan in scans_in(tmp_path / "scans", LABELLED)] == ["021"]


def test_scans_left_out_are_named_with_their_reason_and_the_others_are_taken(
    embolens: Embolens, tmp_path: Path
) -> None:
    write_pair(tmp_path / "A.nii.gz", tmp_path / "A_label.nii.gz", made_emboli((15, 20, 10)))  # in the lung
    write_pair(tmp_path / "B.nii.gz", tmp_path / "B_label.nii.gz")
    done = embolens("import-cases", "nifti", tmp_path, "--output", tmp_path / "cases")
    assert done.returncode == ExitCode.NOT_ANALYSABLE
    assert "A left out: A: most of what is outlined" in done.stderr
    assert "1 of 2 scans are in" in done.stdout
    assert [case.name for case in cases_in(tmp_path / "cases")] == ["B"]
