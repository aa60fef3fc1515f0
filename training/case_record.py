"""What one evaluated scan contributes to the figures: one JSON line, from which every table can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from imaging.errors import ConfigurationError, NotAnalysable
from imaging.findings import Lesion
from imaging.froc import labels_at, lesions_within
from imaging.geometry import Box, to_canonical
from imaging.lesions import artery_level
from imaging.metrics import overlapping_pairs, voxel_dice
from imaging.result import SegmentationResult
from imaging.volume import Mask
from training.evaluation_scans import EvaluationScan

TOLERANCES_MM = (0.0, 2.0, 5.0)
OVERLAP = "overlap"
FULL_CASCADE = "full cascade"
CANDIDATES_FROM = 0.05  # score: a curve needs what lies below the threshold too


def point_rule(tolerance_mm: float) -> str:
    """Name of the rule by which a candidate's peak must lie within `tolerance_mm` of a lesion."""
    return f"{tolerance_mm:g} mm"


POINT = point_rule(0.0)
RULES = (*(point_rule(tolerance) for tolerance in TOLERANCES_MM), OVERLAP)


@dataclass(frozen=True, slots=True)
class TrueLesion:
    """An embolus that is there: its value in the label map, ml, and the artery it lies in."""

    label: int
    volume_ml: float
    level: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A lesion the cascade listed, and by each rule the labels of the true ones it hits."""

    score: float
    volume_ml: float
    level: str
    peak_lps_mm: tuple[float, float, float]
    hits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """One scan, one variant of the cascade. None stands for what is not known or does not apply.

    Attributes:
        package_sha256: which weights and settings this is about.
        variant: FULL_CASCADE or the name of an ablation.
        reasons: codes; on a scan that could not be analysed, why.
        scan_probability: None: not analysable.
        lesions: the true ones; None: emboli not known.
        lesions_at: by rule, how many lesions there are; tolerance merges neighbours.
        voxel_dice: of what is reported at the package's thresholds; None without emboli.
        artery_recall: share of the known artery's voxels that the found one has; some masks end at the hilum.
        roi_recall: share of the emboli's voxels inside the region of interest; None without emboli.
        roi_volume_ratio: the region's volume over that of the lungs' bounding box.
        seconds: of the cascade.
    """

    name: str
    kind: str
    package_sha256: str
    variant: str
    score_threshold: float
    scan_probability: float | None = None
    reasons: tuple[str, ...] = ()
    lesions: tuple[TrueLesion, ...] | None = None
    lesions_at: Mapping[str, int] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    voxel_dice: float | None = None
    artery_dice: float | None = None
    artery_recall: float | None = None
    roi_recall: float | None = None
    roi_volume_ratio: float | None = None
    seconds: float = 0.0

    @property
    def reported(self) -> tuple[Candidate, ...]:
        """What is called an embolus at the package's threshold."""
        return tuple(candidate for candidate in self.candidates if candidate.score >= self.score_threshold)

    @property
    def has_emboli(self) -> bool:
        return bool(self.lesions)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> CaseRecord:
        content: dict[str, Any] = json.loads(line)
        lesions = content.pop("lesions")
        candidates = content.pop("candidates")
        return cls(
            **(content | {"reasons": tuple(content["reasons"])}),
            lesions=None if lesions is None else tuple(TrueLesion(**lesion) for lesion in lesions),
            candidates=tuple(_candidate(candidate) for candidate in candidates),
        )


def _candidate(content: Mapping[str, Any]) -> Candidate:
    x, y, z = content["peak_lps_mm"]
    hits = {rule: tuple(labels) for rule, labels in content["hits"].items()}
    return Candidate(**{**content, "peak_lps_mm": (x, y, z), "hits": hits})


def read_records(folder: Path) -> list[CaseRecord]:
    """The records of every `*.jsonl` of a folder, by name; a last line cut short by a stop is not one yet.

    Raises:
        ConfigurationError: none there, or of more than one package.
    """
    records: dict[tuple[str, str], CaseRecord] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                record = CaseRecord.from_json(line)
                records.setdefault((record.variant, record.name), record)
    packages = {record.package_sha256 for record in records.values()}
    if len(packages) != 1:
        raise ConfigurationError(
            f"{folder} holds records of {len(packages)} packages",
            code="evaluation.records",
            remedy="evaluate each package into a folder of its own",
        )
    return sorted(records.values(), key=lambda record: (record.variant, record.name))


def judged(
    scan: EvaluationScan, result: SegmentationResult, region: Box | None, *, package_sha256: str, variant: str
) -> CaseRecord:
    """Compares a result with what is known about its scan.

    Args:
        region: the region of interest on the canonical grid; None: not of interest here.
    """
    findings = result.findings
    reported = result.embolus_labelmap.copy()
    reported[reported > len(findings.reported)] = 0  # ids run from the best score down
    candidates, lesions_at = _judged_candidates(scan, result)
    has_emboli = scan.embolus is not None and bool(scan.embolus.any())
    return CaseRecord(
        name=scan.name,
        kind=scan.kind,
        package_sha256=package_sha256,
        variant=variant,
        score_threshold=findings.score_threshold,
        scan_probability=findings.scan_probability,
        reasons=tuple(reason.code for reason in findings.reasons),
        lesions=true_lesions(scan, result.artery) if scan.embolus is not None else None,
        lesions_at=lesions_at,
        candidates=candidates,
        voxel_dice=voxel_dice(scan.embolus, reported) if scan.embolus is not None and has_emboli else None,
        artery_dice=None if scan.artery is None else voxel_dice(scan.artery, result.artery),
        artery_recall=None if scan.artery is None else _share_inside(scan.artery, result.artery),
        roi_recall=None if region is None or not has_emboli else _roi_recall(scan, region),
        roi_volume_ratio=None if region is None or scan.lung is None else _roi_volume_ratio(scan, scan.lung, region),
        seconds=sum(result.stage_seconds.values()),
    )


def not_analysed(
    scan_name: str,
    kind: str,
    refusal: NotAnalysable,
    *,
    package_sha256: str,
    variant: str,
    scan: EvaluationScan | None = None,
    region: Box | None = None,
) -> CaseRecord:
    """A scan about which nothing may be said; what is known to be in it (`scan`) counts as missed.

    The region of interest is judged all the same: the refusal may be for something else. None: no lung was seen.
    """
    record = CaseRecord(
        name=scan_name,
        kind=kind,
        package_sha256=package_sha256,
        variant=variant,
        score_threshold=1.0,
        reasons=tuple(reason.code for reason in refusal.reasons),
    )
    if scan is None or scan.embolus is None:
        return record
    lesions = true_lesions(scan, np.zeros(scan.volume.shape_zyx, dtype=bool))
    missed = 0.0 if lesions else None
    _, lesions_at = _hits_of(scan, ())
    recall = _roi_recall(scan, region) if lesions and region is not None else missed
    return replace(record, lesions=lesions, lesions_at=lesions_at, voxel_dice=missed, roi_recall=recall)


def true_lesions(scan: EvaluationScan, found_artery: Mask) -> tuple[TrueLesion, ...]:
    """The emboli of a labelled scan; the artery level is that of the true artery, of the found one where that is
    not known."""
    if scan.embolus is None:
        return ()
    artery = found_artery if scan.artery is None else scan.artery
    lesions = []
    for label, box in enumerate(find_objects(scan.embolus), start=1):
        if box is None:
            continue
        mask = scan.embolus[box] == label
        volume_ml = int(np.count_nonzero(mask)) * scan.volume.voxel_volume_mm3 / 1000.0
        lesions.append(TrueLesion(label, volume_ml, artery_level(artery, box, mask, scan.volume).value))
    return tuple(lesions)


def _judged_candidates(
    scan: EvaluationScan, result: SegmentationResult
) -> tuple[tuple[Candidate, ...], dict[str, int]]:
    """The candidates with their hits, and by rule how many lesions there were to hit."""
    lesions = result.findings.lesions
    hits, counts = _hits_of(scan, lesions)
    if scan.embolus is not None:
        pairs = overlapping_pairs(scan.embolus, result.embolus_labelmap)
        for one, lesion in zip(hits, lesions, strict=True):
            one[OVERLAP] = tuple(truth for truth, predicted in pairs if predicted == lesion.id)
    return tuple(_as_candidate(lesion, one) for lesion, one in zip(lesions, hits, strict=True)), counts


def _hits_of(
    scan: EvaluationScan, lesions: Sequence[Lesion]
) -> tuple[list[dict[str, tuple[int, ...]]], dict[str, int]]:
    """By the rules for points: what each peak hits, and how many there are to hit; nothing where emboli are unknown."""
    hits: list[dict[str, tuple[int, ...]]] = [{} for _ in lesions]
    counts: dict[str, int] = {}
    if scan.embolus is None:
        return hits, counts
    peaks = scan.volume.index_zyx(np.array([lesion.peak_lps_mm for lesion in lesions]).reshape(-1, 3))
    for tolerance in TOLERANCES_MM:
        wide = lesions_within(scan.embolus, scan.volume.spacing_zyx_mm, tolerance)
        counts[point_rule(tolerance)] = int(np.count_nonzero(np.bincount(wide.ravel())[1:]))
        for one, label in zip(hits, labels_at(wide, peaks), strict=True):
            one[point_rule(tolerance)] = (label,) if label else ()
    return hits, counts | {OVERLAP: counts[POINT]}


def _as_candidate(lesion: Lesion, hits: Mapping[str, tuple[int, ...]]) -> Candidate:
    return Candidate(lesion.score, lesion.volume_ml, lesion.artery_level.value, lesion.peak_lps_mm, hits)


def _share_inside(mask: Mask, other: Mask) -> float | None:
    total = int(np.count_nonzero(mask))
    return int(np.count_nonzero(mask & other)) / total if total else None


def _roi_recall(scan: EvaluationScan, region: Box) -> float | None:
    _, order = to_canonical(scan.volume)
    inside = np.zeros(scan.volume.shape_zyx, dtype=bool)
    order.apply(inside)[region.slices] = True  # a view: flips and transposes copy nothing
    return _share_inside(np.asarray(scan.embolus) > 0, inside)


def _roi_volume_ratio(scan: EvaluationScan, lung: Mask, region: Box) -> float:
    _, order = to_canonical(scan.volume)
    (lung_box,) = find_objects(order.apply(lung).astype(np.uint8))
    lung_voxels = float(np.prod([axis.stop - axis.start for axis in lung_box]))
    return float(np.prod(region.shape_zyx)) / lung_voxels
