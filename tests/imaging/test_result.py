"""The cascade's answer, and what the intake adds to it."""

from __future__ import annotations

import numpy as np

from imaging.errors import Reason
from imaging.findings import Findings, Outcome
from imaging.result import SegmentationResult


def test_warnings_from_the_intake_come_first_and_none_is_said_twice() -> None:
    left_out, contrast = Reason("input.files_ignored", "1 file"), Reason("contrast.low", "180 HU")
    findings = Findings(Outcome.NO_EMBOLUS, reasons=(contrast,), scan_probability=0.1)
    result = SegmentationResult(np.zeros((2, 2, 2), np.uint16), np.zeros((2, 2, 2), bool), findings)

    assert result.with_reasons([left_out, contrast]).findings.reasons == (left_out, contrast)
    assert result.findings.reasons == (contrast,)
