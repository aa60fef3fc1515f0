"""From a stage's progress to the job's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from services.store.rows import Stage
from worker.job_progress import STAGE_WEIGHTS, JobProgress, overall_fraction


def test_every_stage_has_a_share_and_the_shares_make_a_whole() -> None:
    assert list(STAGE_WEIGHTS) == list(Stage)
    assert sum(STAGE_WEIGHTS.values()) == pytest.approx(1.0)


def test_progress_only_grows_from_stage_to_stage() -> None:
    fractions = [overall_fraction(stage, fraction) for stage in Stage for fraction in (0.0, 0.5, 1.0)]

    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, pytest.approx(1.0))


def test_a_report_that_the_database_does_not_take_stops_nothing() -> None:
    class Jobs:
        def report_progress(self, *_: object) -> None:
            raise OperationalError("UPDATE jobs", None, Exception("locked"))

    jobs: Any = Jobs()
    lease: Any = SimpleNamespace(check=lambda: None)
    progress = JobProgress(jobs, "job", "owner", lease)

    progress("roi", 0.0)

    assert set(progress.done()) == {"roi"}


def test_a_stage_is_reported_at_once_and_the_rest_at_most_twice_a_second() -> None:
    reports: list[tuple[Stage, float]] = []

    class Jobs:
        def report_progress(self, job_id: str, owner: str, stage: Stage, progress: float) -> None:
            reports.append((stage, progress))

    jobs: Any = Jobs()
    lease: Any = SimpleNamespace(check=lambda: None)
    progress = JobProgress(jobs, "job", "owner", lease)
    for step in range(100):
        progress("roi", step / 100)
    progress("unet", 0.0)

    assert [stage for stage, _ in reports] == [Stage.ROI, Stage.UNET]
    assert set(progress.done()) == {"roi", "unet"}
