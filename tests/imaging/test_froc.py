from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from imaging.froc import Froc, ScanCandidates, labels_at, lesions_within


def test_a_curve_worked_by_hand() -> None:
    """Two scans, three lesions. In the order of scores: hit A, false, hit A again, hit B with a false one, false."""
    one = ScanCandidates(scores=(0.9, 0.7, 0.6), hits=((1,), (1,), (2,)), lesions=(1, 2))
    other = ScanCandidates(scores=(0.8, 0.6, 0.2), hits=((), (), ()), lesions=(5,))
    threshold, per_scan, sensitivity = Froc([one, other]).curve()
    np.testing.assert_allclose(threshold, (0.9, 0.8, 0.6, 0.2))
    np.testing.assert_allclose(per_scan, (0.0, 0.5, 1.0, 1.5))
    np.testing.assert_allclose(sensitivity, (1 / 3, 1 / 3, 2 / 3, 2 / 3))


def test_sensitivity_at_a_rate_is_a_step_and_never_interpolated() -> None:
    froc = Froc([
        ScanCandidates((0.9, 0.7, 0.6), ((1,), (1,), (2,)), (1, 2)),
        ScanCandidates((0.8, 0.6, 0.2), ((), (), ()), (5,)),
    ])  # fmt: skip
    assert froc.sensitivity_at((0.0, 0.49, 0.5, 0.99, 1.0, 8.0)) == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )


def test_a_hit_tied_with_a_false_candidate_comes_only_together_with_it() -> None:
    froc = Froc([ScanCandidates((0.5, 0.5), ((1,), ()), (1,))])
    assert froc.sensitivity_at((0.9, 1.0)) == [0.0, 1.0]


def test_a_second_hit_on_a_lesion_is_neither_found_nor_false() -> None:
    froc = Froc([ScanCandidates((0.9, 0.8, 0.7), ((1,), (1,), (1,)), (1,))])
    _, per_scan, sensitivity = froc.curve()
    assert per_scan.max() == 0.0
    assert sensitivity.max() == 1.0


def test_a_mask_over_two_lesions_finds_both() -> None:
    assert Froc([ScanCandidates((0.9,), ((1, 2),), (1, 2))]).sensitivity_at((0.0,)) == [1.0]


def test_a_hit_on_a_lesion_that_does_not_count_is_no_false_positive() -> None:
    small_only = ScanCandidates((0.9, 0.8, 0.7), ((1,), (), (2,)), lesions=(2,))
    froc = Froc([small_only])
    assert froc.lesions == 1
    assert froc.sensitivity_at((0.0, 1.0)) == [0.0, 1.0]


def test_without_lesions_there_is_no_sensitivity_but_a_false_positive_rate() -> None:
    froc = Froc([ScanCandidates((0.9, 0.1), ((), ()), ())])
    assert all(math.isnan(value) for value in froc.sensitivity_at((1.0, 2.0)))
    assert froc.curve()[1].tolist() == [1.0, 2.0]
    rate, sensitivity = froc.operating_point(0.5)
    assert rate == 1.0
    assert math.isnan(sensitivity)


def test_without_candidates_nothing_is_found() -> None:
    froc = Froc([ScanCandidates((), (), (1, 2))])
    assert froc.sensitivity_at((0.5, 8.0)) == [0.0, 0.0]
    assert froc.operating_point(0.5) == (0.0, 0.0)
    assert Froc([]).curve()[0].size == 0


def _brute_force(scans: list[ScanCandidates], rate: float) -> float:
    """Tries every score as threshold and counts afresh: the definition, read aloud."""
    best = 0.0
    lesions = sum(len(scan.lesions) for scan in scans)
    for threshold in {score for scan in scans for score in scan.scores}:
        false, found = 0, 0
        for scan in scans:
            kept = [hits for score, hits in zip(scan.scores, scan.hits, strict=True) if score >= threshold]
            false += sum(1 for hits in kept if len(hits) == 0)
            found += len({hit for hits in kept for hit in hits} & set(scan.lesions))
        if false <= rate * len(scans):
            best = max(best, found / lesions)
    return best


@pytest.mark.parametrize("seed", range(25))
def test_the_curve_equals_the_definition_on_random_scans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scans = []
    for _ in range(int(rng.integers(1, 9))):
        lesions = tuple(range(1, int(rng.integers(0, 5)) + 1))
        count = int(rng.integers(0, 12))
        hits = tuple(
            tuple(sorted(set(rng.integers(1, 7, size=int(rng.integers(0, 3))).tolist()))) for _ in range(count)
        )
        scores = tuple(np.round(rng.random(count), 1).tolist())  # one decimal: plenty of ties
        scans.append(ScanCandidates(scores, hits, lesions))
    scans.append(ScanCandidates((0.5,), ((1,),), (1,)))
    froc = Froc(scans)
    for rate in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        assert froc.sensitivity_at((rate,))[0] == pytest.approx(_brute_force(scans, rate))


def test_counting_a_scan_twice_equals_having_it_twice() -> None:
    one = ScanCandidates((0.9, 0.4), ((1,), ()), (1, 2))
    other = ScanCandidates((0.8, 0.6), ((), (3,)), (3,))
    rates = (0.0, 1 / 3, 0.5, 1.0)
    weighted = Froc([one, other]).sensitivity_at(rates, np.array([2.0, 1.0]))
    assert weighted == pytest.approx(Froc([one, one, other]).sensitivity_at(rates))


def test_tolerance_grows_lesions_by_millimetres_on_anisotropic_voxels() -> None:
    truth = np.zeros((9, 15, 15), dtype=np.uint16)
    truth[4, 7, 7] = 3
    wide = lesions_within(truth, (2.0, 1.0, 1.0), 2.0)
    z, y, x = np.indices(truth.shape)
    within = (2.0 * (z - 4)) ** 2 + (y - 7.0) ** 2 + (x - 7.0) ** 2 <= 4.0
    np.testing.assert_array_equal(wide > 0, within)


def test_without_tolerance_touching_lesions_stay_two() -> None:
    truth = np.array([[[1, 1, 2, 2]]], dtype=np.uint16)
    assert set(np.unique(lesions_within(truth, (1.0, 1.0, 1.0), 0.0))) == {1, 2}


def test_tolerance_merges_neighbours_into_one_lesion() -> None:
    """Six voxels apart: two lesions at 2 mm, one at 5 mm, as scipy's dilation with a ball says too."""
    truth = np.zeros((13, 13, 30), dtype=np.uint16)
    truth[6, 6, 8], truth[6, 6, 15] = 1, 2
    z, y, x = np.indices((11, 11, 11)) - 5
    for tolerance, lesions in ((2, 2), (5, 1)):
        wide = lesions_within(truth, (1.0, 1.0, 1.0), float(tolerance))
        expected = binary_dilation(truth > 0, z**2 + y**2 + x**2 <= tolerance**2)
        np.testing.assert_array_equal(wide > 0, expected)
        assert int(wide.max()) == label(expected, np.ones((3, 3, 3)))[1] == lesions


def test_a_point_outside_the_map_hits_nothing() -> None:
    labels = np.ones((2, 2, 2), dtype=np.uint32)
    points = np.array([[0.4, 0.0, 1.4], [-1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert labels_at(labels, points) == [1, 0, 0]
    assert labels_at(labels, np.zeros((0, 3))) == []
