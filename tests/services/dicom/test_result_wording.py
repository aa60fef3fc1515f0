from __future__ import annotations

from dataclasses import replace

import pytest

from imaging.errors import Reason
from imaging.findings import Findings, Outcome
from services.dicom.result_wording import headline, series_description
from tests.services.dicom.made_series import counting_volume, made_result


@pytest.mark.parametrize(
    ("emboli", "description"),
    [
        (0, "Embolens: no embolus found (research use only)"),
        (1, "Embolens: 1 embolus (research use only)"),
        (3, "Embolens: 3 emboli (research use only)"),
    ],
)
def test_the_series_description_says_what_was_found(emboli: int, description: str) -> None:
    assert series_description(made_result(counting_volume(), emboli=emboli).findings) == description
    assert len(description) <= 64


@pytest.mark.parametrize(
    ("emboli", "candidates", "description"),
    [
        (0, 4, "Embolens: no embolus found, 4 candidates (research use only)"),
        (0, 999, "Embolens: no embolus found, 999 candidates (research use only)"),
        (1, 1, "Embolens: 1 embolus, 1 candidate (research use only)"),
    ],
)
def test_candidates_are_not_called_emboli(emboli: int, candidates: int, description: str) -> None:
    [lesion] = made_result(counting_volume(), emboli=1).findings.lesions
    lesions = (lesion,) * emboli + (replace(lesion, score=0.1),) * candidates
    outcome = Outcome.EMBOLUS_FOUND if emboli else Outcome.NO_EMBOLUS
    findings = Findings(outcome, scan_probability=0.1, lesions=lesions, score_threshold=0.5)
    assert series_description(findings) == description
    assert len(description) <= 64


def test_a_scan_that_was_not_analysable_is_never_worded_as_a_negative() -> None:
    findings = Findings(Outcome.NOT_ANALYSABLE, reasons=(Reason("contrast.too_low", "90 HU"),))
    assert series_description(findings) == "Embolens: not analysable (research use only)"
    assert headline(findings) == "Not analysable: nothing is said about emboli"


def test_a_failure_is_worded_neither_as_a_negative_nor_as_the_scans_fault() -> None:
    findings = Findings(Outcome.FAILED, reasons=(Reason("worker_killed", "the process was killed"),))
    assert series_description(findings) == "Embolens: failed, not analysed (research use only)"
    assert headline(findings) == "Not analysed, for a technical failure: nothing is said about emboli"
