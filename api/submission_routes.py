"""How a study comes in by HTTP, and how a job is stopped or tried again."""

from __future__ import annotations

import logging
import shutil
import uuid
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response, status
from fastapi import Path as PathParameter
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.authentication import Caller
from api.gateway import Gateway, OpenGateway
from api.job_id import JobId
from api.job_view import has_ended, job_path, job_view
from api.problem_responses import problem_responses
from api.schemas import JobSchema
from api.upload_stream import RAW_MEDIA_TYPES, ReceivedUpload, receive_upload
from imaging.errors import InputError, NotFound
from services.accounts.principal import Principal
from services.ingest.upload import inspect_upload, unpack_uploads
from services.store.rows import JobRow, Priority

log = logging.getLogger(__name__)

router = APIRouter(tags=["segment"])

MAX_WAIT_S = 600
_POLL_S = 0.3
_RETRY_AFTER_S = 5

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "DICOM files of one series, a zip of them, one NIfTI or one NRRD; content decides, not names",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "priority": {"type": "string", "enum": [priority.value for priority in Priority]},
                    },
                }
            },
            **{name: {"schema": {"type": "string", "format": "binary"}} for name in RAW_MEDIA_TYPES},
        },
    }
}


@router.post(
    "/segment",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Submit a study",
    response_model=JobSchema,
    responses=problem_responses(
        *(400, 409, 413, 415, 503, 507),
        beside={200: {"model": JobSchema, "description": "It ended within `wait`, or before this repetition"}},
    ),
    openapi_extra=_UPLOAD_BODY,
)
async def submit(
    request: Request,
    response: Response,
    gateway: OpenGateway,
    caller: Caller,
    priority: Annotated[Priority | None, Query(description="Also a form field; the query wins")] = None,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Answer when the job ended or after this, s")] = 0,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key with the same content gives the same job"),
    ] = None,
) -> JobSchema:
    """Take in an upload and queue it; `Location` names the job.

    Nothing is kept of an upload that is refused or breaks off. Where too many studies wait already the answer is 503
    (`queue_full`) before anything is read; with `priority=stat` in the query only STAT studies count.
    """
    with gateway.hold_idempotency_key(caller.tenant, idempotency_key):
        await run_in_threadpool(_make_sure_of_room, gateway, caller, priority or Priority.ROUTINE, idempotency_key)
        arriving = gateway.store.arriving_directory()
        try:
            received = await receive_upload(
                request,
                arriving,
                max_bytes=gateway.upload_max_bytes(caller),
                max_files=gateway.settings.upload_max_files,
                check_room=gateway.store.check_room,
            )
            chosen = priority or _priority(received.fields.get("priority"))
            taking_in = (gateway, caller, arriving, received, chosen, idempotency_key)
            job = await run_sync(_take_in, *taking_in, limiter=gateway.inspection_threads)
        finally:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(shutil.rmtree, arriving, ignore_errors=True)
    ended = await _wait_for_end(request, gateway, job.id, wait)
    response.status_code = status.HTTP_200_OK if ended else status.HTTP_202_ACCEPTED
    response.headers["Location"] = gateway.settings.gateway_url.rstrip("/") + job_path(job.id)
    if not ended:
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return await run_in_threadpool(job_view, gateway, job.id)


@router.delete(
    "/segment/{job_id}",
    summary="Cancel a job",
    response_model=JobSchema,
    responses=problem_responses(
        *(404, 409), beside={202: {"model": JobSchema, "description": "It runs, and stops soon"}}
    ),
)
def cancel(job_id: JobId, response: Response, gateway: OpenGateway) -> JobSchema:
    """Stop a job that has no result yet. Files that have come are kept; `can_retry` says whether they are all there."""
    if not has_ended(gateway.jobs.cancel(job_id)):
        response.status_code = status.HTTP_202_ACCEPTED
    return job_view(gateway, job_id)


@router.post(
    "/segment/{job_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Try a job again",
    response_model=JobSchema,
    responses=problem_responses(404, 409),
)
def retry(job_id: JobId, gateway: OpenGateway) -> JobSchema:
    """Queue a job with `can_retry` again, its attempts counted afresh; of others, send parked deliveries again."""
    job = gateway.jobs.retry(job_id)
    _enqueue(gateway, job)
    return job_view(gateway, job_id)


@router.post(
    "/segment/{job_id}/deliveries/{delivery_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Send one delivery again",
    response_model=JobSchema,
    responses=problem_responses(404, 409),
)
def retry_delivery(
    job_id: JobId, delivery_id: Annotated[int, PathParameter(ge=1, le=2**31 - 1)], gateway: OpenGateway
) -> JobSchema:
    """Send what is parked, or waits for its next attempt, now, with its attempts counted afresh; others stay parked.

    Of what is stored its node is asked again to commit. What is due within 20 s comes by itself.
    """
    gateway.outbox.retry(job_id, delivery_id)
    return job_view(gateway, job_id)


def _take_in(
    gateway: Gateway,
    caller: Principal,
    arriving: Path,
    received: ReceivedUpload,
    priority: Priority,
    idempotency_key: str | None,
) -> JobRow:
    """From files that arrived to a queued job; with a key that was used before, that job."""
    if idempotency_key is not None:
        earlier = gateway.jobs.by_idempotency_key(idempotency_key, received.content_digest, tenant=caller.tenant)
        if earlier is not None:
            return earlier
    limits = gateway.settings
    files = unpack_uploads(
        received.files,
        max_bytes=limits.unpacked_max_bytes,
        max_files=limits.upload_max_files,
        max_ratio=limits.unpacked_max_ratio,
        check_room=gateway.store.check_room,
    )
    contents = inspect_upload(files, gateway.rules.selection)
    _keep_only(arriving, contents.files)
    job_id = str(uuid.uuid4())
    final = gateway.store.upload_directory(job_id)
    submitted = False
    try:
        gateway.store.replace_directory(arriving, final)
        gateway.store.write_inputs(job_id, [final / file.relative_to(arriving) for file in contents.files])
        job, submitted = gateway.jobs.submit(
            job_id,
            input_kind=contents.kind,
            inputs_digest=received.content_digest,  # the files' names are our own and say nothing of what is in them
            instance_count=contents.instance_count,
            priority=priority,
            study_instance_uid=contents.study_instance_uid,
            series_instance_uid=contents.series_instance_uid,
            idempotency_key=idempotency_key,
            request_digest=received.content_digest,
            warnings=contents.warnings,
            tenant=caller.tenant,
        )
    finally:
        if not submitted:
            _remove_unless_recorded(gateway, job_id)
    _enqueue(gateway, job)
    return job


def _make_sure_of_room(gateway: Gateway, caller: Principal, priority: Priority, idempotency_key: str | None) -> None:
    """Raises QueueFull, except for the repetition of a request whose job is there."""
    key = idempotency_key
    if key is None or gateway.jobs.by_idempotency_key(key, None, tenant=caller.tenant) is None:
        gateway.line.make_sure_of_room(priority)


def _remove_unless_recorded(gateway: Gateway, job_id: str) -> None:
    """Take the job's files away, unless its row is there: a commit may succeed although its connection breaks."""
    try:
        gateway.jobs.get(job_id)
    except NotFound:
        gateway.store.remove_job(job_id)
    except SQLAlchemyError:
        log.warning("job %s: its files are kept, since the database does not say whether it has the job", job_id)


def _keep_only(directory: Path, files: tuple[Path, ...]) -> None:
    kept = set(files)
    for path in directory.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def _enqueue(gateway: Gateway, job: JobRow) -> None:
    gateway.queue.enqueue(job.id, Priority(job.priority))


def _priority(given: str | None) -> Priority:
    if not given:
        return Priority.ROUTINE
    try:
        return Priority(given)
    except ValueError:
        raise InputError(f"priority {given!r}", code="input.invalid_priority", remedy="use stat or routine") from None


async def _wait_for_end(request: Request, gateway: Gateway, job_id: str, seconds: float) -> bool:
    """Whether the job has ended, at the latest after `seconds`, or when the client or the server goes away."""
    with anyio.move_on_after(seconds):
        while not has_ended(await run_in_threadpool(gateway.jobs.get, job_id)):
            if gateway.is_stopping() or await request.is_disconnected():
                break
            await anyio.sleep(_POLL_S)
    return has_ended(await run_in_threadpool(gateway.jobs.get, job_id))
