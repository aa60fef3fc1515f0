"""What is said about a scan in words, the same in every object: "not analysable" and "failed" are no negatives."""

from __future__ import annotations

from imaging.errors import Reason
from imaging.findings import Findings, Lesion, Outcome

NOTICE = "Embolens: research use only, not for diagnosis"  # where there is no room for RESEARCH_USE_ONLY
_PREFIX, _SUFFIX = "Embolens: ", " (research use only)"


def series_description(findings: Findings) -> str:
    """What a reader sees in the PACS's list of series; at most 64 characters (LO)."""
    if findings.outcome is Outcome.NOT_ANALYSABLE:
        return f"{_PREFIX}not analysable{_SUFFIX}"
    if findings.outcome is Outcome.FAILED:
        return f"{_PREFIX}failed, not analysed{_SUFFIX}"
    count = len(findings.reported)
    found = _count(count, "embolus", "emboli") if count else "no embolus found"
    return f"{_PREFIX}{found}{_candidates(findings)}{_SUFFIX}"


def headline(findings: Findings) -> str:
    """One line: what was found, how much of it and how sure the networks are."""
    if findings.outcome is Outcome.NOT_ANALYSABLE:
        return "Not analysable: nothing is said about emboli"
    if findings.outcome is Outcome.FAILED:
        return "Not analysed, for a technical failure: nothing is said about emboli"
    count = len(findings.reported)
    if not count:
        return f"No embolus found{_candidates(findings)}"
    highest = max(lesion.score for lesion in findings.reported)
    found = f"{_count(count, 'embolus', 'emboli')} found{_candidates(findings)}"
    return f"{found}, {findings.clot_burden_ml:.1f} ml, highest score {highest:.2f}"


def lesion_line(lesion: Lesion) -> str:
    return (
        f"Embolus {lesion.id}: {lesion.artery_level.value}, {lesion.volume_ml:.2f} ml, "
        f"{lesion.max_diameter_mm:.0f} mm, {lesion.mean_hu:.0f} HU, score {lesion.score:.2f}"
    )


def reason_line(reason: Reason) -> str:
    """In ASCII: a text may name a file, and the study's character set need not have its letters."""
    return f"{reason.code}: {reason.text}".encode("ascii", "backslashreplace").decode()


def _candidates(findings: Findings) -> str:
    count = len(findings.lesions) - len(findings.reported)
    return f", {_count(count, 'candidate', 'candidates')}" if count else ""


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
