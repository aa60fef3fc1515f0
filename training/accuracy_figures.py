"""From the records of an evaluation to figures with intervals, and which of the aims they reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imaging.bootstrap import Estimate, Weights, estimates, weighted_mean
from imaging.findings import ArteryLevel
from imaging.froc import Froc, ScanCandidates
from imaging.metrics import scan_auc
from training.case_record import OVERLAP, POINT, CaseRecord, TrueLesion
from training.evaluation_scans import INSERTED, PHANTOMS, REAL

FALSE_POSITIVE_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
Wanted = Callable[[TrueLesion], bool]


def smaller_than(ml: float) -> Wanted:
    return lambda lesion: lesion.volume_ml < ml


def between(low_ml: float, high_ml: float) -> Wanted:
    return lambda lesion: low_ml <= lesion.volume_ml < high_ml


def at_least(ml: float) -> Wanted:
    return lambda lesion: lesion.volume_ml >= ml


def in_artery(level: ArteryLevel) -> Wanted:
    return lambda lesion: lesion.level == level.value


SIZE_CLASSES: Mapping[str, Wanted] = {
    "below 0.1 ml": smaller_than(0.1),
    "0.1 to 0.3 ml": between(0.1, 0.3),
    "below 0.3 ml": smaller_than(0.3),
    "0.3 to 1 ml": between(0.3, 1.0),
    "1 to 10 ml": between(1.0, 10.0),
    "10 ml and more": at_least(10.0),
}
LEVEL_CLASSES: Mapping[str, Wanted] = {level.value: in_artery(level) for level in ArteryLevel}


def labelled(records: Sequence[CaseRecord], kinds: Sequence[str]) -> list[CaseRecord]:
    """The scans of these kinds whose emboli are known."""
    return [record for record in records if record.kind in kinds and record.lesions is not None]


def froc_of(records: Sequence[CaseRecord], rule: str = POINT, wanted: Wanted | None = None) -> Froc:
    """The curve over labelled scans.

    Args:
        rule: one of `case_record.RULES`.
        wanted: only these lesions count; at a tolerance lesions have merged, and there is no telling which is which.

    Raises:
        ValueError: `wanted` together with a tolerance.
    """
    if wanted is not None and rule not in (POINT, OVERLAP):
        raise ValueError(f"lesions at {rule} have no size or level of their own")
    return Froc([_scan_candidates(record, rule, wanted) for record in records])


def _scan_candidates(record: CaseRecord, rule: str, wanted: Wanted | None) -> ScanCandidates:
    if rule in (POINT, OVERLAP):
        lesions = tuple(lesion.label for lesion in record.lesions or () if wanted is None or wanted(lesion))
    else:
        lesions = tuple(range(1, record.lesions_at.get(rule, 0) + 1))
    return ScanCandidates(
        scores=tuple(candidate.score for candidate in record.candidates),
        hits=tuple(candidate.hits[rule] for candidate in record.candidates),
        lesions=lesions,
    )


def sensitivities(
    records: Sequence[CaseRecord],
    rule: str = POINT,
    wanted: Wanted | None = None,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
) -> tuple[Estimate, ...]:
    """Lesion sensitivity at each rate of false positives per scan."""
    froc = froc_of(records, rule, wanted)
    return estimates(lambda weights: froc.sensitivity_at(rates, weights), len(records))


def at_default_threshold(
    records: Sequence[CaseRecord], rule: str = POINT, wanted: Wanted | None = None
) -> tuple[Estimate, Estimate]:
    """(lesion sensitivity, false positives per scan) of what the package reports."""
    if not records:
        nothing = Estimate(float("nan"), float("nan"), float("nan"))
        return nothing, nothing
    froc = froc_of(records, rule, wanted)
    # One package has one threshold; scans that were not analysed have none and hold no candidates.
    threshold = min(record.score_threshold for record in records)

    def statistic(weights: Weights) -> tuple[float, float]:
        per_scan, sensitivity = froc.operating_point(threshold, weights)
        return sensitivity, per_scan

    sensitivity, per_scan = estimates(statistic, len(records))
    return sensitivity, per_scan


def mean_over_scans(values: Sequence[float | None]) -> Estimate:
    """Mean of what is known."""
    known = [float("nan") if value is None else value for value in values]
    (estimate,) = estimates(lambda weights: [weighted_mean(known, weights)], len(known))
    return estimate


def false_positives_without_emboli(records: Sequence[CaseRecord]) -> Estimate:
    """Reported lesions per scan that holds none."""
    return mean_over_scans([float(len(record.reported)) for record in records if not record.has_emboli])


def auc(records: Sequence[CaseRecord]) -> Estimate:
    """Scan AUC; a scan that could not be analysed raised no suspicion."""
    scores = [record.scan_probability or 0.0 for record in records]
    positive = [record.has_emboli for record in records]
    (estimate,) = estimates(lambda weights: [scan_auc(scores, positive, weights)], len(records))
    return estimate


@dataclass(frozen=True, slots=True)
class Aim:
    """What was aimed at, and what was measured.

    Attributes:
        bound: the least, or with `is_limit` the most, that reaches the aim.
        digits: after the point, that `measured` is worth printing with.
        measured: nan where there was nothing to measure it on.
    """

    what: str
    bound: float
    measured: Estimate
    is_limit: bool = False
    digits: int = 3

    @property
    def verdict(self) -> str:
        if not self.measured.known:
            return "not measured"
        rounded = round(self.measured.value, 4)
        return "reached" if (rounded <= self.bound if self.is_limit else rounded >= self.bound) else "**missed**"


def aims(records: Sequence[CaseRecord]) -> list[Aim]:
    """The aims set for a package, with what it measures; `records` of the full cascade on scans of all kinds."""
    phantoms = labelled(records, PHANTOMS)
    inserted = labelled(records, (INSERTED,))
    at_1, at_2, at_4 = sensitivities(phantoms, rates=(1.0, 2.0, 4.0))
    (small_at_2,) = sensitivities(phantoms, wanted=smaller_than(0.3), rates=(2.0,))
    (inserted_at_2,) = sensitivities(inserted, wanted=at_least(0.5), rates=(2.0,))
    return [
        Aim("lesion sensitivity at 1 false positive per scan, 0 mm", 0.90, at_1),
        Aim("lesion sensitivity at 2 false positives per scan, 0 mm", 0.93, at_2),
        Aim("lesion sensitivity at 4 false positives per scan, 0 mm", 0.95, at_4),
        Aim("the same for emboli under 0.3 ml, at 2", 0.75, small_at_2),
        Aim(
            "false positives per embolus-free phantom, default threshold",
            0.5,
            false_positives_without_emboli(phantoms),
            is_limit=True,
        ),
        Aim("scan AUC", 0.97, auc(phantoms)),
        Aim("artery Dice, mean over phantoms", 0.88, mean_over_scans([r.artery_dice for r in phantoms])),
        Aim("embolus voxels inside the lung ROI, worst phantom", 1.0, worst([r.roi_recall for r in phantoms], min)),
        Aim(
            "lung ROI's volume over that of the lungs' bounding box, mean",
            1.25,
            mean_over_scans([r.roi_volume_ratio for r in phantoms]),
            is_limit=True,
        ),
        *_aims_on_real_ct([record for record in records if record.kind == REAL]),
        Aim("emboli of at least 0.5 ml inserted into real contrast CT, at 2", 0.75, inserted_at_2),
    ]


def _aims_on_real_ct(records: Sequence[CaseRecord]) -> list[Aim]:
    found = [
        Aim(f"findings in real CT `{record.name}`, default threshold", 2.0, exactly(len(record.reported)), True, 0)
        for record in records
        if record.scan_probability is not None
    ]
    arteries = [
        Aim(f"artery Dice in real CT `{record.name}`", 0.75, exactly(record.artery_dice))
        for record in records
        if record.artery_dice is not None
    ]
    return [*found, *arteries]


def exactly(value: float) -> Estimate:
    """A count or a measurement of one scan, which no other scan can move."""
    return Estimate(float(value), float("nan"), float("nan"))


def worst(values: Sequence[float | None], of: Callable[[Sequence[float]], float]) -> Estimate:
    """The least or largest of what is known; an extreme has no bootstrap interval."""
    known = [value for value in values if value is not None]
    return exactly(of(known)) if known else exactly(float(np.nan))
