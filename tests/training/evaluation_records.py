"""Records of evaluated scans, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from training.case_record import FULL_CASCADE, OVERLAP, RULES, Candidate, CaseRecord, TrueLesion
from training.evaluation_scans import GROWN

PACKAGE = "ab" * 32


def record(
    name: str,
    lesions_ml: Sequence[float] | None = (),
    candidates: Sequence[tuple[float, int]] = (),
    *,
    kind: str = GROWN,
    variant: str = FULL_CASCADE,
    package: str = PACKAGE,
    level: str = "lobar",
    dice: float | None = None,
    probability: float | None = 0.5,
    **more: float,
) -> CaseRecord:
    """A scan with emboli 1..n of these volumes and candidates (score, embolus that it hits by every rule or 0)."""
    known = lesions_ml is not None
    return CaseRecord(
        name=name,
        kind=kind,
        package_sha256=package,
        variant=variant,
        score_threshold=0.5,
        scan_probability=probability,
        lesions=tuple(TrueLesion(i, ml, level) for i, ml in enumerate(lesions_ml, start=1)) if known else None,
        lesions_at={rule: len(lesions_ml) for rule in RULES} if known else {},
        candidates=tuple(
            Candidate(score, 0.4, level, (1.0, 2.0, 3.0), dict.fromkeys(RULES, (hit,) if hit else ()))
            for score, hit in candidates
        ),
        voxel_dice=dice,
        **more,
    )


def overlapping(one: CaseRecord, labels: tuple[int, ...]) -> CaseRecord:
    """The same scan, its first candidate covering these emboli by mask, and none by its peak."""
    from dataclasses import replace

    first = replace(one.candidates[0], hits={rule: labels if rule == OVERLAP else () for rule in RULES})
    return replace(one, candidates=(first, *one.candidates[1:]))
