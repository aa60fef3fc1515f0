from __future__ import annotations

import json
from pathlib import Path

from models.packages import default_package_directory, load_package
from tests.cli.conftest import REPOSITORY, Embolens
from tests.training.evaluation_records import record

RECIPE = REPOSITORY / "training/recipes/phantom-v3.toml"


def test_the_report_and_the_cards_figures_come_from_the_records_of_all_shards(
    embolens: Embolens, tmp_path: Path
) -> None:
    package = load_package(default_package_directory())
    records = tmp_path / "records"
    records.mkdir()
    for shard, lesions_ml in enumerate(((2.0,), ())):
        one = record(str(shard), lesions_ml, [(0.9, 1)] if lesions_ml else [], package=package.sha256, dice=0.8)
        (records / f"cases-{shard}-of-2.jsonl").write_text(one.to_json() + "\n")
    finished = embolens(
        "evaluate", "--package", package.directory, "--recipe", RECIPE, "--records", records, "--report-only",
        "--output", tmp_path / "docs/accuracy.md",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "2 phantoms: 1 with 1 emboli, 1 without" in (tmp_path / "docs/accuracy.md").read_text(encoding="utf-8")
    assert json.loads((records / "figures.json").read_text())["all"]["lesion_sensitivity_by_size"]["1-10 ml"] == [1, 1]


def test_a_shard_that_does_not_exist_is_refused_before_anything_is_made(embolens: Embolens, tmp_path: Path) -> None:
    finished = embolens(
        "evaluate", "--package", default_package_directory(), "--recipe", RECIPE, "--records", tmp_path / "records",
        "--shard", "3/3",
    )  # fmt: skip
    assert finished.returncode == 1
    assert "shard '3/3'" in finished.stderr
    assert not (tmp_path / "records").exists()


def test_without_records_there_is_no_report(embolens: Embolens, tmp_path: Path) -> None:
    finished = embolens(
        "evaluate", "--package", default_package_directory(), "--recipe", RECIPE, "--records", tmp_path,
        "--report-only", "--output", tmp_path / "accuracy.md",
    )  # fmt: skip
    assert finished.returncode == 1
    assert "records of 0 packages" in finished.stderr
    assert not (tmp_path / "accuracy.md").exists()
