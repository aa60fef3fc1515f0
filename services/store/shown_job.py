"""Jobs and their deliveries as they are shown: columns without rows, since they are looked at all day.

SQLAlchemy takes twice as long to make a row that could be changed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select

from services.store.rows import DeliveryState, JobRow, OutboxRow


class ShownJob(NamedTuple):
    """The columns of `JobRow` that the API shows, or that say what it shows, and how many deliveries are parked."""

    id: str
    tenant: str
    state: str
    priority: str
    source: str
    input_kind: str
    calling_ae_title: str | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    instance_count: int
    inputs_digest: str | None
    completion_reason: str | None
    supersedes: str | None
    stage: str | None
    progress: float
    stage_seconds: dict[str, float]
    attempts: int
    outcome: str | None
    findings: dict[str, Any] | None
    reasons: list[dict[str, str]]
    error_code: str | None
    error_message: str | None
    created_at: datetime
    updated_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    inputs_purged_at: datetime | None
    results_purged_at: datetime | None
    deliveries_parked: int


class ShownDelivery(NamedTuple):
    """Of `OutboxRow`, likewise."""

    id: int
    job_id: str
    destination: str
    sop_instance_uid: str | None
    message_id: str | None
    state: str
    attempts: int
    next_attempt_at: datetime
    last_attempt_at: datetime | None
    last_error: str | None
    dimse_status: int | None
    status_comment: str | None
    delivered_at: datetime | None
    committed_at: datetime | None


_PARKED = select(func.count()).where(OutboxRow.job_id == JobRow.id, OutboxRow.state == DeliveryState.PARKED.value)
SELECT_SHOWN_JOBS = select(
    *(getattr(JobRow, name) for name in ShownJob._fields if name != "deliveries_parked"),
    _PARKED.correlate(JobRow).scalar_subquery().label("deliveries_parked"),
)
SELECT_SHOWN_DELIVERIES = select(*(getattr(OutboxRow, name) for name in ShownDelivery._fields))
