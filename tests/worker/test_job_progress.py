"""From a stage's progress to the job's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from services.store.rows import Stage
from worker.job_progress import STAGE_WEIGHTS, JobProgress, overall_fraction


def test_every_stage_has_a_share_and_the_shares_make_a_whole() -> None:
    assert list(STAGE_WEIGHTS) == list(Stage)
    assert sum(STAGE_WEIGHTS.values()) == pytest.approx(1.0)


def test_progress_only_grows_from_stage_to_stage() -> None:
    fractions = [overall_fraction(stage, fraction) for stage in Stage for fraction in (0.0, 0.5, 1.0)]

    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, pytest.approx(1.0))


def test_stages_are_timed_and_what_is_reached_is_left_with_the_lease() -> None:
    asked = []
    lease: Any = SimpleNamespace(check=lambda: asked.append(1), reached=None)
    progress = JobProgress(lease)
    for step in range(100):
        progress("roi", step / 100)
    assert lease.reached == (Stage.ROI, pytest.approx(overall_fraction(Stage.ROI, 0.99)))
    progress("unet", 0.0)

    assert lease.reached == (Stage.UNET, overall_fraction(Stage.UNET, 0.0))
    assert set(progress.done()) == {"roi", "unet"}
    assert len(asked) == 101
