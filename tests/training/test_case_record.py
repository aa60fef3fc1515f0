from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from imaging.errors import ConfigurationError, NotAnalysable, Reason
from imaging.findings import ArteryLevel, Findings, Lesion, Outcome
from imaging.geometry import Box
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from tests.training.evaluation_records import record
from training.case_record import FULL_CASCADE, OVERLAP, POINT, CaseRecord, judged, not_analysed, read_records
from training.evaluation_scans import GROWN, EvaluationScan

AFFINE = np.array([[0.0, 0.0, 1.0, -20.0], [0.0, 1.0, 0.0, 5.0], [2.0, 0.0, 0.0, 100.0], [0.0, 0.0, 0.0, 1.0]])


def _scan() -> EvaluationScan:
    """2 x 1 x 1 mm voxels: a wide artery with embolus 1, a thin one with embolus 2, 24 and 8 voxels large."""
    artery = np.zeros((20, 40, 60), dtype=bool)
    artery[2:18, 5:25, 5:25] = True
    artery[2:18, 34:36, 40:42] = True
    embolus = np.zeros(artery.shape, dtype=np.uint16)
    embolus[8:10, 14:17, 14:18] = 1
    embolus[10:12, 34:36, 40:42] = 2
    lung = np.zeros(artery.shape, dtype=bool)
    lung[2:18, 2:38, 2:58] = True
    hu = np.where(artery, 300, -800).astype(np.int16)
    return EvaluationScan("7-grown", GROWN, CtVolume(hu, AFFINE), embolus, artery, lung)


def _lesion(scan: EvaluationScan, number: int, score: float, peak_zyx: tuple[int, int, int]) -> Lesion:
    x, y, z = scan.volume.point_lps_mm(peak_zyx)
    peak = (float(x), float(y), float(z))
    return Lesion(number, score, 0.02, peak, peak, 3.0, 40.0, ArteryLevel.LOBAR)


def _result(scan: EvaluationScan) -> SegmentationResult:
    """Found: embolus 1 cut in half; something 2 mm off embolus 2; below the threshold something far away."""
    labels = np.zeros(scan.volume.shape_zyx, dtype=np.uint16)
    labels[8, 14:17, 14:18] = 1
    labels[10, 34:36, 44:46] = 2
    labels[4, 30, 30] = 3
    lesions = (
        _lesion(scan, 1, 0.9, (8, 15, 16)),
        _lesion(scan, 2, 0.8, (10, 34, 43)),
        _lesion(scan, 3, 0.2, (4, 30, 30)),
    )
    findings = Findings(
        Outcome.EMBOLUS_FOUND,
        reasons=(Reason("contrast.low", "200 HU"),),
        scan_probability=0.9,
        lesions=lesions,
        score_threshold=0.5,
    )
    artery = np.array(scan.artery)
    artery[2:10] = False
    return SegmentationResult(labels, artery, findings, {"roi": 1.0, "fuse": 2.5})


def _judged() -> CaseRecord:
    scan = _scan()
    region = Box((0, 0, 0), (11, 40, 60))
    return judged(scan, _result(scan), region, package_sha256="ab", variant=FULL_CASCADE)


def test_candidates_hit_by_their_peak_within_the_tolerance_and_by_their_mask() -> None:
    on_embolus, beside, elsewhere = _judged().candidates
    assert on_embolus.hits[POINT] == (1,)
    assert on_embolus.hits[OVERLAP] == (1,)
    assert beside.hits[POINT] == ()
    assert len(beside.hits["2 mm"]) == 1
    assert beside.hits[OVERLAP] == ()
    assert elsewhere.hits == {POINT: (), "2 mm": (), "5 mm": (), OVERLAP: ()}


def test_true_emboli_have_their_volume_and_the_level_of_the_artery_around_them() -> None:
    one, other = _judged().lesions or ()
    assert (one.label, one.volume_ml, one.level) == (1, pytest.approx(24 * 2 / 1000), ArteryLevel.CENTRAL)
    assert (other.label, other.volume_ml, other.level) == (2, pytest.approx(8 * 2 / 1000), ArteryLevel.SUBSEGMENTAL)


def test_dice_counts_what_is_reported_and_not_the_candidates_below_the_threshold() -> None:
    found, true, common = 12 + 4, 24 + 8, 12
    assert _judged().voxel_dice == pytest.approx(2 * common / (found + true))
    assert len(_judged().reported) == 2


def test_artery_and_region_of_interest_are_compared_with_the_truth() -> None:
    judged_record = _judged()
    artery = np.array(_scan().artery)
    kept = int(artery[10:].sum())
    assert judged_record.artery_recall == pytest.approx(kept / artery.sum())
    assert judged_record.artery_dice == pytest.approx(2 * kept / (kept + artery.sum()))
    assert judged_record.roi_recall == pytest.approx((24 + 4) / 32), "one of two slices of embolus 2 lies outside"
    assert judged_record.roi_volume_ratio == pytest.approx(11 * 40 * 60 / (16 * 36 * 56))
    assert judged_record.seconds == 3.5


def test_the_region_is_on_the_canonical_grid_whatever_the_scans_orientation() -> None:
    scan = _scan()
    flipped_affine = AFFINE.copy()
    flipped_affine[:3, 0] *= -1
    flipped_affine[:3, 3] = scan.volume.point_lps_mm((19, 0, 0))
    flipped = replace(
        scan,
        volume=CtVolume(np.ascontiguousarray(scan.volume.hu[::-1]), flipped_affine),
        embolus=np.ascontiguousarray(np.asarray(scan.embolus)[::-1]),
        artery=np.ascontiguousarray(np.asarray(scan.artery)[::-1]),
        lung=np.ascontiguousarray(np.asarray(scan.lung)[::-1]),
    )
    nothing = Findings(Outcome.NO_EMBOLUS, scan_probability=0.1, score_threshold=0.5)
    empty = SegmentationResult(
        np.zeros(scan.volume.shape_zyx, np.uint16), np.zeros(scan.volume.shape_zyx, bool), nothing
    )
    region = Box((0, 0, 0), (11, 40, 60))
    recalls = [judged(one, empty, region, package_sha256="ab", variant="x").roi_recall for one in (scan, flipped)]
    assert recalls == [pytest.approx(28 / 32)] * 2


def test_without_emboli_or_truth_there_is_nothing_to_find() -> None:
    scan = _scan()
    healthy = replace(scan, embolus=np.zeros(scan.volume.shape_zyx, np.uint16))
    of_healthy = judged(healthy, _result(scan), None, package_sha256="ab", variant=FULL_CASCADE)
    assert of_healthy.lesions == ()
    assert of_healthy.voxel_dice is None
    assert of_healthy.roi_recall is None
    assert not any(hits for candidate in of_healthy.candidates for hits in candidate.hits.values())
    unknown = judged(
        replace(scan, embolus=None, artery=None), _result(scan), None, package_sha256="ab", variant=FULL_CASCADE
    )
    assert unknown.lesions is None
    assert unknown.artery_dice is None
    assert len(unknown.reported) == 2


def test_emboli_of_a_scan_that_is_refused_count_as_missed() -> None:
    refusal = NotAnalysable([Reason("coverage.no_lung", "none")])
    scan = _scan()
    refused = not_analysed(scan.name, GROWN, refusal, package_sha256="ab", variant=FULL_CASCADE, scan=scan)
    assert refused.lesions == _judged().lesions
    assert refused.lesions_at == _judged().lesions_at == {POINT: 2, "2 mm": 2, "5 mm": 2, OVERLAP: 2}
    assert (refused.voxel_dice, refused.roi_recall) == (0.0, 0.0)
    assert refused.candidates == ()
    everywhere = Box((0, 0, 0), scan.volume.shape_zyx)
    contrast = NotAnalysable([Reason("contrast.too_low", "none")])
    seen = not_analysed(
        scan.name, GROWN, contrast, package_sha256="ab", variant=FULL_CASCADE, scan=scan, region=everywhere
    )
    assert seen.roi_recall == 1.0, "the detector saw the lungs; it was the contrast that was refused"


def test_a_record_survives_its_json_line() -> None:
    refusal = NotAnalysable([Reason("coverage.no_lung", "none")])
    for one in (_judged(), not_analysed("crop", "real", refusal, package_sha256="ab", variant=FULL_CASCADE)):
        assert CaseRecord.from_json(one.to_json()) == one


def test_records_of_shards_are_read_together_and_an_unfinished_line_is_none(tmp_path: Path) -> None:
    one, other = record("1", (0.5,)), record("2")
    (tmp_path / "cases-0-of-2.jsonl").write_text(other.to_json() + "\n" + one.to_json()[:40])
    (tmp_path / "cases-1-of-2.jsonl").write_text(one.to_json() + "\n" + other.to_json() + "\n")
    assert read_records(tmp_path) == [one, other]


def test_records_of_two_packages_do_not_make_one_report(tmp_path: Path) -> None:
    lines = [record("1", package="a").to_json(), record("2", package="b").to_json()]
    (tmp_path / "cases.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigurationError, match="2 packages"):
        read_records(tmp_path)
    with pytest.raises(ConfigurationError, match="0 packages"):
        read_records(tmp_path / "nowhere")
