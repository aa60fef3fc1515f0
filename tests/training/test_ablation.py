from __future__ import annotations

import json
from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from tests.training.evaluation_records import record
from training.ablation import ENSEMBLE, UNET_ALONE, ablation_section, differences, read_training_results
from training.case_record import CaseRecord


def _scans(variant: str, found: int, scans: int = 20) -> list[CaseRecord]:
    """`scans` scans of one embolus, found in the first `found` of them, and one false candidate below that."""
    return [
        record(f"{i:02d}", (1.0,), [(0.9, 1 if i < found else 0)], variant=variant, dice=0.5 + 0.01 * (i < found))
        for i in range(scans)
    ]


def test_a_difference_is_paired_by_scan() -> None:
    at_1, at_2, mean = differences(_scans("a", 18), _scans("b", 12))
    assert at_1.value == at_2.value == pytest.approx(6 / 20)
    assert mean.low > 0.0
    same = differences(_scans("a", 12), _scans("b", 12))
    assert [(one.value, one.low, one.high) for one in same] == [(0.0, 0.0, 0.0)] * 3


def test_different_scans_have_no_difference() -> None:
    with pytest.raises(ConfigurationError, match="same scans"):
        differences(_scans("a", 3, 10), _scans("b", 3, 11))


@pytest.mark.parametrize(
    ("together", "verdict"), [(20, "is borne out"), (13, "is left open"), (12, "is not borne out")]
)
def test_the_claim_of_eight_percent_is_answered_by_the_better_of_the_two(
    together: int, verdict: str, tmp_path: Path
) -> None:
    records = [
        *_scans("full cascade", 20),
        *_scans(UNET_ALONE.format("tiny"), 12),
        *_scans(UNET_ALONE.format("attention"), 5),
        *_scans(ENSEMBLE, together),
    ]
    text = "\n".join(ablation_section(records, tmp_path))
    assert f"of at least\n0.08 {verdict}." in text
    assert f"{(together - 12) / 20:+.3f}" in text


def test_a_few_scans_settle_no_claim(tmp_path: Path) -> None:
    variants = (("full cascade", 4), (UNET_ALONE.format("tiny"), 0), (ENSEMBLE, 4))
    records = [record for name, found in variants for record in _scans(name, found, 4)]
    assert "0.08 is left open by 4 phantoms." in "\n".join(ablation_section(records, tmp_path))


def test_variants_are_compared_on_the_scans_that_all_of_them_have(tmp_path: Path) -> None:
    records = [*_scans("full cascade", 10, 20), *_scans("AANet alone", 4, 8)]
    text = "\n".join(ablation_section(records, tmp_path))
    assert "8 phantoms with 8 emboli" in text
    assert "| AANet alone | 0.500" in text


def test_without_variants_and_results_there_is_no_section(tmp_path: Path) -> None:
    assert ablation_section(_scans("full cascade", 10), tmp_path) == []


def test_results_of_trainings_are_read_and_shown(tmp_path: Path) -> None:
    rows = [
        {"name": "EMA", "metric": "Dice", "value": 0.61, "interval": [0.58, 0.64], "steps": 400, "seconds": 600},
        {"name": "raw weights", "metric": "Dice", "value": 0.55, "interval": None, "steps": 400, "seconds": 600},
    ]
    (tmp_path / "averages.json").write_text(json.dumps(rows))
    (tmp_path / "veins.json").write_text(json.dumps(rows[0] | {"name": "with veins"}))
    assert [one.name for one in read_training_results(tmp_path)["averages"]] == ["EMA", "raw weights"]
    text = "\n".join(ablation_section([], tmp_path))
    assert "| averages | EMA | Dice | 0.610 (0.580 to 0.640) | 400 | 10 |" in text
    assert "|  | raw weights | Dice | 0.550 | 400 | 10 |" in text
    assert "| veins | with veins |" in text


@pytest.mark.parametrize("content", ['{"name": "EMA"}', "[1]", "not json"])
def test_a_result_that_is_none_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"broken\.json"):
        read_training_results(tmp_path)
