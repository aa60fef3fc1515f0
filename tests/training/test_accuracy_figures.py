from __future__ import annotations

import math

import pytest

from imaging.findings import ArteryLevel
from tests.training.evaluation_records import overlapping, record
from training.accuracy_figures import (
    Aim,
    aims,
    at_default_threshold,
    at_least,
    auc,
    exactly,
    false_positives_without_emboli,
    in_artery,
    labelled,
    mean_over_scans,
    sensitivities,
    smaller_than,
)
from training.case_record import OVERLAP, POINT
from training.evaluation_scans import ANATOMIES, GROWN, INSERTED, REAL

RICH = record("1", (0.2, 2.0, 12.0), [(0.9, 2), (0.8, 0), (0.6, 3), (0.3, 1)], dice=0.8)
OTHER = record("2", (0.1,), [(0.7, 0), (0.2, 1)], kind=ANATOMIES, dice=0.4, level="segmental")
HEALTHY = record("3", (), [(0.95, 0), (0.4, 0)], probability=0.6)
SCANS = (RICH, OTHER, HEALTHY)


def _values(estimates: object) -> list[float]:
    return [estimate.value for estimate in estimates]  # type: ignore[attr-defined]


def test_sensitivity_counts_false_candidates_of_all_scans() -> None:
    # falling scores: 0.95 false, 0.9 found, 0.8 false, 0.7 false, 0.6 found, 0.4 false, 0.3 found, 0.2 found
    assert _values(sensitivities(SCANS, rates=(0.3, 1 / 3, 1.0, 4 / 3))) == [0.0, 0.25, 0.5, 1.0]


def test_a_class_of_emboli_is_judged_with_everybodys_false_candidates() -> None:
    assert _values(sensitivities(SCANS, wanted=smaller_than(0.3), rates=(1.0, 4 / 3))) == [0.0, 1.0]
    assert _values(sensitivities(SCANS, wanted=at_least(10.0), rates=(2 / 3, 1.0))) == [0.0, 1.0]
    assert _values(sensitivities(SCANS, wanted=in_artery(ArteryLevel.SEGMENTAL), rates=(1.0, 4 / 3))) == [0.0, 1.0]
    assert math.isnan(_values(sensitivities(SCANS, wanted=in_artery(ArteryLevel.CENTRAL), rates=(1.0,)))[0])


def test_lesions_merged_by_a_tolerance_have_no_class() -> None:
    with pytest.raises(ValueError, match="2 mm"):
        sensitivities(SCANS, "2 mm", smaller_than(0.3))


def test_the_default_threshold_splits_found_from_missed() -> None:
    sensitivity, false = at_default_threshold(SCANS)
    assert sensitivity.value == pytest.approx(2 / 4)
    assert false.value == pytest.approx(3 / 3)


def test_a_mask_across_two_emboli_finds_both_and_its_peak_beside_them_is_false() -> None:
    scan = [overlapping(record("1", (0.5, 0.5), [(0.9, 0)]), (1, 2))]
    assert [estimate.value for estimate in at_default_threshold(scan, OVERLAP)] == [1.0, 0.0]
    assert [estimate.value for estimate in at_default_threshold(scan, POINT)] == [0.0, 1.0]


def test_false_positives_without_emboli_are_those_reported_in_scans_that_hold_none() -> None:
    assert false_positives_without_emboli(SCANS).value == 1.0
    assert not false_positives_without_emboli([RICH]).known


def test_auc_takes_a_scan_that_cannot_be_analysed_for_unsuspicious() -> None:
    suspected, missed = record("a", (1.0,), probability=0.9), record("b", (1.0,), probability=None)
    assert auc([suspected, missed, HEALTHY]).value == 0.5


def test_means_leave_out_what_is_not_known() -> None:
    assert mean_over_scans([0.8, None, 0.4]).value == pytest.approx(0.6)
    assert not mean_over_scans([]).known


def test_only_scans_of_the_kind_whose_emboli_are_known_are_judged() -> None:
    unknown = record("real", None, kind=REAL)
    assert labelled([*SCANS, unknown], (GROWN, REAL)) == [RICH, HEALTHY]


@pytest.mark.parametrize(
    ("measured", "is_limit", "verdict"),
    [(0.9, False, "reached"), (0.8999, False, "**missed**"), (0.9, True, "reached"), (0.91, True, "**missed**")],
)
def test_an_aim_is_reached_or_missed_by_what_was_measured(measured: float, is_limit: bool, verdict: str) -> None:
    assert Aim("", 0.9, exactly(measured), is_limit).verdict == verdict


def test_an_aim_without_a_measurement_is_neither() -> None:
    assert Aim("", 0.9, exactly(math.nan)).verdict == "not measured"


def test_aims_name_each_real_scan_and_use_inserted_emboli_of_half_a_millilitre_and_more() -> None:
    real = record("LIDC", None, [(0.9, 0), (0.8, 0), (0.7, 0), (0.1, 0)], kind=REAL, artery_dice=0.8)
    refused = record("thick", None, kind=REAL, probability=None)
    inserted = record("in", (0.1, 0.6), [(0.9, 2)], kind=INSERTED)
    verdicts = {aim.what: (aim.measured.value, aim.verdict) for aim in aims([*SCANS, real, refused, inserted])}
    assert verdicts["findings in real CT `LIDC`, default threshold"] == (3.0, "**missed**")
    assert verdicts["artery Dice in real CT `LIDC`"] == (0.8, "reached")
    assert not any("thick" in what for what in verdicts)
    assert verdicts["emboli of at least 0.5 ml inserted into real contrast CT, at 2"] == (1.0, "reached")
    assert verdicts["lesion sensitivity at 1 false positive per scan, 0 mm"] == (0.5, "**missed**")
