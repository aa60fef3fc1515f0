"""What is said about a scan: lesions, outcome, and who says so. The JSON names here are a public contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from imaging.errors import Reason

RESEARCH_USE_ONLY = "Research use only. Networks trained on synthetic emboli. Not for diagnosis."


class Outcome(StrEnum):
    EMBOLUS_FOUND = "embolus_found"
    NO_EMBOLUS = "no_embolus"
    NOT_ANALYSABLE = "not_analysable"
    FAILED = "failed"


class ArteryLevel(StrEnum):
    """Where along the pulmonary artery tree a lesion lies, by the local lumen's calibre."""

    CENTRAL = "central"
    LOBAR = "lobar"
    SEGMENTAL = "segmental"
    SUBSEGMENTAL = "subsegmental"


Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Lesion:
    """One embolus.

    Attributes:
        id: 1-based; the value of its voxels in the label map, and its place in the list (highest score first).
        score: calibrated probability that this is an embolus, 0..1.
        volume_ml: voxel volume of the mask, ml.
        centroid_lps_mm / peak_lps_mm: centre of mass / most probable voxel, patient LPS, mm.
        max_diameter_mm: largest distance between two voxel centres of the lesion plus one voxel, mm.
        mean_hu: mean HU in the mask.
        sop_instance_uid: the source image that shows the peak; None for NIfTI input.
    """

    id: int
    score: float
    volume_ml: float
    centroid_lps_mm: Point
    peak_lps_mm: Point
    max_diameter_mm: float
    mean_hu: float
    artery_level: ArteryLevel
    sop_instance_uid: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "score": round(self.score, 4),
            "volume_ml": round(self.volume_ml, 4),
            "centroid_lps_mm": [round(value, 2) for value in self.centroid_lps_mm],
            "peak_lps_mm": [round(value, 2) for value in self.peak_lps_mm],
            "max_diameter_mm": round(self.max_diameter_mm, 2),
            "mean_hu": round(self.mean_hu, 1),
            "artery_level": self.artery_level.value,
            "sop_instance_uid": self.sop_instance_uid,
        }


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything said about one scan; `to_dict` is `findings.json`.

    `reasons` says why a scan was not analysed: because nothing can be said about it, or because our work on it failed.
    On the other outcomes it carries warnings about the image. `scan_probability` is None exactly when the scan was not
    analysed. Lesions that score below `score_threshold`
    are candidates that were asked for: they decide nothing and count for nothing.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...] = ()
    scan_probability: float | None = None
    lesions: tuple[Lesion, ...] = ()
    score_threshold: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.analysed != (self.scan_probability is not None):
            raise ValueError("scan_probability must be given exactly when the scan was analysed")
        if not self.analysed and not self.reasons:
            raise ValueError("a scan that was not analysed needs coded reasons")
        if (self.outcome is Outcome.EMBOLUS_FOUND) != bool(self.reported):
            raise ValueError(f"{self.outcome} does not go with {len(self.reported)} reported lesions")
        if not self.analysed and self.lesions:
            raise ValueError(f"{len(self.lesions)} lesions in a scan that was not analysed")

    @property
    def analysed(self) -> bool:
        return self.outcome in (Outcome.EMBOLUS_FOUND, Outcome.NO_EMBOLUS)

    @property
    def reported(self) -> tuple[Lesion, ...]:
        """The lesions that are called emboli; the others are candidates."""
        return tuple(lesion for lesion in self.lesions if lesion.score >= self.score_threshold)

    @property
    def clot_burden_ml(self) -> float:
        return sum(lesion.volume_ml for lesion in self.reported)

    def to_dict(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome.value,
            "reasons": [reason.to_dict() for reason in self.reasons],
            "scan_probability": None if self.scan_probability is None else round(self.scan_probability, 4),
            "clot_burden_ml": round(self.clot_burden_ml, 4) if self.analysed else None,
            "lesions": [lesion.to_dict() for lesion in self.lesions],
            "provenance": dict(self.provenance),
            "notice": RESEARCH_USE_ONLY,
        }
