from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imaging.errors import ConfigurationError, NotAnalysable, Reason
from imaging.volume import CtVolume
from models.cascade import Cascade
from models.packages import default_package_directory
from tests.training.evaluation_records import record
from training.case_record import FULL_CASCADE, read_records
from training.evaluate import Shard, card_figures, record_scans, summary
from training.evaluation_scans import ANATOMIES, GROWN, REAL, EvaluationScan, PlannedScan


def test_summary_counts_by_size_and_averages_over_scans() -> None:
    one = record("1", (0.5, 2.0, 0.05), [(0.9, 1), (0.8, 2), (0.6, 0), (0.4, 3)], dice=0.8, artery_dice=0.9,
                 roi_recall=1.0, seconds=10.0)  # fmt: skip
    other = record("2", (0.6,), [(0.2, 0)], dice=0.0, artery_dice=0.7, roi_recall=0.98, seconds=20.0)
    healthy = record("3", (), [(0.6, 0), (0.7, 0)], artery_dice=0.8, seconds=30.0)
    figures = summary([one, other, healthy])
    assert figures["lesion_sensitivity_by_size"] == {
        "0-0.1 ml": [0, 1], "0.1-0.3 ml": [0, 0], "0.3-1 ml": [1, 2], "1-10 ml": [1, 1], "10-inf ml": [0, 0],
    }  # fmt: skip
    assert figures["scans"] == 3
    assert figures["emboli"] == 4
    assert figures["false_positives_per_scan"] == 1.0
    assert figures["voxel_dice_mean"] == pytest.approx(0.4), "only over scans with emboli"
    assert figures["artery_dice_mean"] == pytest.approx(0.8)
    assert figures["roi_recall_min"] == 0.98
    assert figures["seconds_median"] == 20.0


def test_card_figures_are_of_phantoms_and_the_full_cascade() -> None:
    others = [record("r", None, kind=REAL), record("1", (1.0,), variant="AANet alone")]
    figures = card_figures([record("1", (1.0,)), record("2", kind=ANATOMIES), *others])
    assert {kind: some["scans"] for kind, some in figures.items()} == {"all": 2, GROWN: 1, ANATOMIES: 1}


def test_shards_share_the_scans_out() -> None:
    assert Shard.parse("1/3") == Shard(1, 3)
    for text in ("3/3", "1", "a/b", "-1/2", ""):
        with pytest.raises(ConfigurationError, match="shard"):
            Shard.parse(text)


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade.load(default_package_directory(), device="cpu", threads=1)


@pytest.fixture
def plan() -> Callable[[str], PlannedScan]:
    """Scans without lungs, which the real cascade refuses within a moment, and a list of which were loaded."""
    loaded: list[str] = []

    def planned(name: str) -> PlannedScan:
        def load() -> EvaluationScan:
            loaded.append(name)
            if name == "unreadable":
                raise NotAnalysable([Reason("geometry.missing_slices", "3 of 40 are missing")])
            volume = CtVolume(np.full((70, 70, 70), 40, np.int16), np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
            return EvaluationScan(name, REAL, volume)

        return PlannedScan(name, REAL, load)

    planned.loaded = loaded  # type: ignore[attr-defined]
    return planned


def test_a_scan_that_cannot_be_analysed_is_recorded_with_its_reason(
    cascade: Cascade, plan: Callable[[str], PlannedScan], tmp_path: Path
) -> None:
    record_scans({FULL_CASCADE: cascade}, [plan("a"), plan("unreadable")], tmp_path, shard=Shard(), pictures=1)
    empty, unreadable = read_records(tmp_path)
    assert empty.reasons == ("coverage.no_lung",)
    assert unreadable.reasons == ("geometry.missing_slices",)
    assert empty.scan_probability is None
    assert empty.package_sha256 == cascade.package.sha256


def test_shards_write_files_of_their_own_and_a_run_that_was_cut_short_goes_on(
    cascade: Cascade, plan: Callable[[str], PlannedScan], tmp_path: Path
) -> None:
    plans = [plan(name) for name in "abcd"]
    record_scans({FULL_CASCADE: cascade}, plans, tmp_path, shard=Shard(1, 2))
    assert plan.loaded == ["b", "d"]  # type: ignore[attr-defined]
    path = tmp_path / "cases-1-of-2.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:30])  # killed while it wrote
    record_scans({FULL_CASCADE: cascade, "AANet alone": cascade}, plans[:3], tmp_path, shard=Shard(0, 1))
    record_scans({FULL_CASCADE: cascade}, plans, tmp_path, shard=Shard(1, 2))
    assert plan.loaded == ["b", "d", "a", "b", "c", "d"]  # type: ignore[attr-defined]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert [(one.variant, one.name) for one in read_records(tmp_path)] == [
        *(("AANet alone", name) for name in "abc"),
        *((FULL_CASCADE, name) for name in "abcd"),
    ]
