"""Jobs as the API shows them.

What is looked at all day is written as JSON at once. It is what the schemas say: tests read it with them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from api.gateway import Gateway
from api.schemas import JobSchema, ProgressSchema
from imaging.errors import NotFound, Reason
from imaging.findings import Findings, Outcome
from services.delivery.sent_object import status_text, warning_of
from services.store.rows import FINAL_STATES, DeliveryState, JobRow, JobState
from services.store.shown_job import ShownDelivery, ShownJob

_TRIED_AGAIN = (DeliveryState.PENDING, DeliveryState.STORED)
_WITH_RESULT = (JobState.DELIVERING, JobState.COMPLETED)


def job_path(job_id: str) -> str:
    return f"/segment/{job_id}"


def has_ended(job: JobRow) -> bool:
    return job.state in FINAL_STATES


def has_result(job: JobRow | ShownJob) -> bool:
    """Segmentation files and findings are there, though a destination may still wait for them."""
    return job.state in _WITH_RESULT


def has_refusal(job: JobRow | ShownJob) -> bool:
    """It is written why nothing is said: a worker found that nothing can be, or the work failed."""
    return job.state in (JobState.NOT_ANALYSABLE, JobState.FAILED) and job.findings is not None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as JSON, for those who see its tenant's jobs."""

    tenant: str
    json: bytes


def job_view(gateway: Gateway, job_id: str) -> JobSchema:
    """Raises NotFound."""
    view = job_views(gateway, [job_id]).get(job_id)
    if view is None:
        raise NotFound(f"no job {job_id!r}")
    return JobSchema.model_validate_json(view.json)


def job_views(gateway: Gateway, job_ids: Collection[str]) -> dict[str, JobView]:
    """Of those jobs that there are, by id. As many queries for many as for one, unless jobs could be tried again."""
    jobs = gateway.jobs.shown(job_ids)
    positions = _positions(gateway, jobs)
    deliveries = gateway.outbox.shown_of(job_ids)
    return {
        job.id: JobView(job.tenant, _json(_job(gateway, job, positions.get(job.id), deliveries.get(job.id, []))))
        for job in jobs
    }


def page_view(gateway: Gateway, jobs: Sequence[ShownJob], following: str | None) -> bytes:
    """One page of the worklist, as JSON; `following` is the cursor of the next one."""
    positions = _positions(gateway, jobs)
    lines = [_summary(job, positions.get(job.id)) for job in jobs]
    return _json({"jobs": lines, "next": following})


def _positions(gateway: Gateway, jobs: Sequence[ShownJob]) -> dict[str, int]:
    """Places in the queue; of nobody else where one of these alone waits."""
    queued = [job for job in jobs if job.state == JobState.QUEUED]
    if len(queued) > 1:
        return gateway.jobs.queue_positions()
    return {job.id: position for job in queued if (position := gateway.jobs.queue_position(job)) is not None}


def _job(gateway: Gateway, job: ShownJob, position: int | None, deliveries: Sequence[ShownDelivery]) -> dict[str, Any]:
    """What `JobSchema` says."""
    return _summary(job, position) | {
        "expected_wait_s": None if position is None else gateway.line.expected_wait_s(position),
        "completion_reason": job.completion_reason,
        "supersedes": job.supersedes,
        "attempts": job.attempts,
        "can_retry": gateway.jobs.can_retry(job),
        "inputs_purged_at": job.inputs_purged_at,
        "results_purged_at": job.results_purged_at,
        "stage_seconds": job.stage_seconds,
        "findings": findings_of(job),
        "deliveries": [_delivery(one) for one in deliveries],
    }


def _json(shown: dict[str, Any]) -> bytes:
    return to_json(shown, inf_nan_mode="null")


def progress_view(gateway: Gateway, job_id: str) -> ProgressSchema:
    """Raises NotFound."""
    job = gateway.jobs.get(job_id)
    return ProgressSchema.model_validate(
        {
            "state": job.state,
            "stage": job.stage,
            "progress": job.progress,
            "queue_position": gateway.jobs.queue_position(job),
            "outcome": job.outcome,
        }
    )


def findings_of(job: JobRow | ShownJob) -> dict[str, Any] | None:
    """The findings; for a series that was set aside before any worker saw it, those that say so."""
    if job.findings is not None or job.state != JobState.NOT_ANALYSABLE:
        return job.findings
    reasons = tuple(Reason(reason["code"], reason["text"]) for reason in job.reasons)
    return Findings(Outcome.NOT_ANALYSABLE, reasons=reasons).to_dict()


def _summary(job: ShownJob, queue_position: int | None) -> dict[str, Any]:
    """What `JobSummarySchema` says."""
    findings = job.findings if has_result(job) else None
    error = None if job.error_code is None else {"code": job.error_code, "message": job.error_message or ""}
    return {
        "id": job.id,
        "state": job.state,
        "stage": job.stage,
        "progress": job.progress,
        "queue_position": queue_position,
        "deliveries_parked": job.deliveries_parked,
        "priority": job.priority,
        "source": job.source,
        "input_kind": job.input_kind,
        "calling_ae_title": job.calling_ae_title,
        "study_instance_uid": job.study_instance_uid,
        "series_instance_uid": job.series_instance_uid,
        "instance_count": job.instance_count,
        "outcome": job.outcome,
        "lesion_count": None if findings is None else len(findings["lesions"]),
        "scan_probability": None if findings is None else findings["scan_probability"],
        "clot_burden_ml": None if findings is None else findings["clot_burden_ml"],
        "reasons": job.reasons,
        "error": error,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "queued_at": job.queued_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "links": _links(job),
    }


def _links(job: ShownJob) -> dict[str, str | None]:
    path = job_path(job.id)
    with_result = has_result(job)
    with_files = job.results_purged_at is None
    has_findings = with_result or job.state == JobState.NOT_ANALYSABLE or has_refusal(job)
    with_result &= with_files
    has_report = (with_result or (has_refusal(job) and with_files)) and job.input_kind == "dicom"
    return {
        "self": path,
        "events": f"{path}/events",
        "findings": f"{path}/findings" if has_findings else None,
        "seg": f"{path}/seg.dcm" if with_result and job.input_kind == "dicom" else None,
        "sr": f"{path}/sr.dcm" if has_report else None,
        "report": f"{path}/report.pdf" if has_report else None,
        "key_images": f"{path}/key-images.zip" if has_report else None,
        "mask": f"{path}/mask.nii.gz" if with_result else None,
        "artery": f"{path}/artery.nii.gz" if with_result else None,
        "preview": f"{path}/preview.png" if with_result else None,
    }


def _delivery(row: ShownDelivery) -> dict[str, Any]:
    """What `DeliverySchema` says."""
    return {
        "id": row.id,
        "destination": row.destination,
        "state": row.state,
        "attempts": row.attempts,
        "sop_instance_uid": row.sop_instance_uid,
        "message_id": row.message_id,
        "last_attempt_at": row.last_attempt_at,
        "last_error": row.last_error,
        "dimse_status": None if row.dimse_status is None else status_text(row.dimse_status),
        "status_comment": row.status_comment,
        "warning": None if row.last_error is not None or row.dimse_status is None else warning_of(row.dimse_status),
        "next_attempt_at": row.next_attempt_at if row.state in _TRIED_AGAIN else None,
        "delivered_at": row.delivered_at,
        "committed_at": row.committed_at,
    }
