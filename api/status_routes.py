"""What jobs there are and how far each is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.authentication import Caller
from api.gateway import OpenGateway
from api.job_id import JobId
from api.job_view import job_view, summaries
from api.page_cursor import cursor_after, place_of
from api.problem_responses import problem_responses
from api.schemas import JobPageSchema, JobSchema
from services.store.jobs import JobFilter
from services.store.rows import JobRow, JobState, Priority, Source

router = APIRouter(tags=["segment"])

MAX_PAGE = 500
Uid = Annotated[str | None, Query(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]


@router.get("/segment", summary="List jobs", response_model=JobPageSchema, responses=problem_responses())
def list_jobs(
    gateway: OpenGateway,
    caller: Caller,
    state: JobState | None = None,
    source: Source | None = None,
    priority: Priority | None = None,
    study_instance_uid: Uid = None,
    series_instance_uid: Uid = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
) -> JobPageSchema:
    """Newest first, studies that came by C-STORE among those that were uploaded."""
    wanted = JobFilter(state, source, priority, study_instance_uid, series_instance_uid, tenant=caller.sees_tenant)
    after = None if cursor is None else _row_at(cursor)
    found = gateway.jobs.page(wanted, limit=limit + 1, after=after)
    jobs = found[:limit]
    return JobPageSchema(jobs=summaries(gateway, jobs), next=_next(jobs[-1]) if len(found) > limit else None)


@router.get("/segment/{job_id}", summary="Look at a job", response_model=JobSchema, responses=problem_responses(404))
def get_job(job_id: JobId, gateway: OpenGateway) -> JobSchema:
    """State, stage, progress, findings, deliveries, and where the result files are."""
    return job_view(gateway, job_id)


def _next(last: JobRow) -> str:
    return cursor_after(last.created_at, last.id)


def _row_at(cursor: str) -> JobRow:
    created_at, job_id = place_of(cursor)
    return JobRow(id=job_id, created_at=created_at)
