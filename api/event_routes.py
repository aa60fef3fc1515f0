"""A job's progress as server-sent events."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.gateway import Gateway, OpenGateway
from api.job_id import JobId
from api.job_view import progress_view
from api.problem_responses import Responses, problem_responses
from api.schemas import ProgressSchema
from services.store.rows import FINAL_STATES

router = APIRouter(tags=["segment"])

_POLL_S = 0.3
_KEEP_ALIVE_S = 15.0
_RECONNECT_MS = 2000
_EXAMPLE = """\
id: 5d41402abc4b2a76
event: progress
data: {"state":"running","stage":"unet","progress":0.4,"queue_position":null,"outcome":null}

"""
_ANSWERS: Responses = {
    200: {
        "description": "Event `progress` on each change, event `end` at the final state; data is a ProgressSchema",
        "content": {"text/event-stream": {"example": _EXAMPLE}},
    },
    204: {"description": "A reconnect after `end`: there is nothing more to say"},
}


@router.get(
    "/segment/{job_id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses=problem_responses(404, beside=_ANSWERS),
)
async def events(
    job_id: JobId, gateway: OpenGateway, last_event_id: Annotated[str | None, Header(max_length=64)] = None
) -> Response:
    """The present state at once, then each change. With `Last-Event-ID`, only what is new since then."""
    now = await run_in_threadpool(progress_view, gateway, job_id)
    if now.state in FINAL_STATES and _event_id(now) == last_event_id:
        return Response(status_code=204)  # makes an EventSource stop reconnecting
    return StreamingResponse(
        _stream(gateway, job_id, last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _stream(gateway: Gateway, job_id: str, last_event_id: str | None) -> AsyncIterator[str]:
    yield f"retry: {_RECONNECT_MS}\n\n"
    spoke_at = time.monotonic()
    while not gateway.is_stopping():
        now = await run_in_threadpool(progress_view, gateway, job_id)
        event_id = _event_id(now)
        if event_id != last_event_id:
            last_event_id = event_id
            event = "end" if now.state in FINAL_STATES else "progress"
            yield f"id: {event_id}\nevent: {event}\ndata: {now.model_dump_json()}\n\n"
            spoke_at = time.monotonic()
        if now.state in FINAL_STATES:
            return
        if time.monotonic() - spoke_at > _KEEP_ALIVE_S:
            yield ": still here\n\n"
            spoke_at = time.monotonic()
        await anyio.sleep(_POLL_S)


def _event_id(progress: ProgressSchema) -> str:
    """Names what was said, so that a reconnect, even to another process, does not hear it twice."""
    return hashlib.sha256(progress.model_dump_json().encode()).hexdigest()[:16]
