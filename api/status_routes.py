"""What jobs there are and how far each is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.asked_together import AskedOnce, AskedTogether
from api.authentication import Caller
from api.gateway import Gateway
from api.job_id import checked_job_id
from api.job_view import JobView, job_views, page_view
from api.page_cursor import cursor_after, place_of
from api.problem_responses import problem_responses
from api.schemas import JobPageSchema, JobSchema
from imaging.errors import NotFound
from services.store.jobs import JobFilter
from services.store.rows import JobRow, JobState, Priority, Source
from services.store.shown_job import ShownJob

router = APIRouter(tags=["segment"])

MAX_PAGE = 500
_PAGES_AT_ONCE = 2  # a page that takes long holds up no other
Uid = Annotated[str | None, Query(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]


@dataclass(frozen=True, slots=True)
class _PageAsked:
    wanted: JobFilter
    limit: int
    cursor: str | None


class StatusReads:
    """What the clients of one gateway look at, asked for once where many ask; answers are JSON.

    Every open worklist page asks for the same lines every other second.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.jobs = AskedTogether(self._jobs)
        self.pages = AskedOnce(self._page, at_once=_PAGES_AT_ONCE)

    def _jobs(self, job_ids: Collection[str]) -> dict[str, JobView]:
        return job_views(self._gateway, job_ids)

    def _page(self, asked: _PageAsked) -> bytes:
        after = None if asked.cursor is None else _row_at(asked.cursor)
        found = self._gateway.jobs.shown_page(asked.wanted, limit=asked.limit + 1, after=after)
        jobs = found[: asked.limit]
        return page_view(self._gateway, jobs, _next(jobs[-1]) if len(found) > asked.limit else None)


@router.get("/segment", summary="List jobs", response_model=JobPageSchema, responses=problem_responses())
async def list_jobs(
    request: Request,
    caller: Caller,
    state: JobState | None = None,
    source: Source | None = None,
    priority: Priority | None = None,
    study_instance_uid: Uid = None,
    series_instance_uid: Uid = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
) -> Response:
    """Newest first, studies that came by C-STORE among those that were uploaded."""
    wanted = JobFilter(state, source, priority, study_instance_uid, series_instance_uid, tenant=caller.sees_tenant)
    page = await _reads(request).pages.ask(_PageAsked(wanted, limit, cursor))
    return Response(page, media_type="application/json")


@router.get("/segment/{job_id}", summary="Look at a job", response_model=JobSchema, responses=problem_responses(404))
async def get_job(job_id: str, request: Request, caller: Caller) -> Response:
    """State, stage, progress, findings, deliveries, and where the result files are."""
    known = checked_job_id(job_id)
    view = await _reads(request).jobs.ask(known)
    if view is None or not caller.sees(view.tenant):
        raise NotFound(f"no job {known!r}")
    return Response(view.json, media_type="application/json")


def _reads(request: Request) -> StatusReads:
    reads: StatusReads = request.app.state.reads
    return reads


def _next(last: ShownJob) -> str:
    return cursor_after(last.created_at, last.id)


def _row_at(cursor: str) -> JobRow:
    created_at, job_id = place_of(cursor)
    return JobRow(id=job_id, created_at=created_at)
