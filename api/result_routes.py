"""The files of a result."""

from __future__ import annotations

import hashlib
import json

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from api.gateway import Gateway, OpenGateway
from api.job_id import JobId
from api.job_view import findings_of, has_ended, has_refusal, has_result
from api.problem_responses import problem_responses
from api.schemas import FindingsSchema
from imaging.errors import NotFound, StateConflict
from services.store.rows import JobRow, JobState

router = APIRouter(tags=["results"])

_MEDIA_TYPES = {
    "seg.dcm": "application/dicom",
    "sr.dcm": "application/dicom",
    "mask.nii.gz": "application/gzip",
    "artery.nii.gz": "application/gzip",
    "preview.png": "image/png",
}
_REVALIDATE = "private, no-cache"  # a job that is tried again may come to another result


@router.get(
    "/segment/{job_id}/findings",
    summary="The findings",
    response_model=FindingsSchema,
    responses=problem_responses(404, 409),
)
def get_findings(job_id: JobId, request: Request, gateway: OpenGateway) -> Response:
    """Outcome, lesions and provenance; for a study that is not analysable, the reasons."""
    job = gateway.jobs.get(job_id)
    findings = findings_of(job)
    if findings is None:
        raise _why_there_is_none(job, "findings")
    body = json.dumps(findings).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": _REVALIDATE}
    if _is_fresh(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _add_file_route(name: str, summary: str, description: str) -> None:
    content = {_MEDIA_TYPES[name]: {"schema": {"type": "string", "format": "binary"}}}

    @router.get(
        f"/segment/{{job_id}}/{name}",
        name=f"get_{name.replace('.', '_')}",
        summary=summary,
        description=description,
        response_class=FileResponse,
        responses=problem_responses(*(404, 409), beside={200: {"description": "The file", "content": content}}),
    )
    def get_file(job_id: JobId, request: Request, gateway: OpenGateway) -> Response:
        return _file(job_id, name, request, gateway)


_add_file_route("seg.dcm", "The DICOM SEG", "Segment 1 is the pulmonary artery, then one segment per embolus.")
_add_file_route(
    "sr.dcm", "The DICOM SR", "Measurements of every embolus; for a study that is not analysable, the coded reasons."
)
_add_file_route("mask.nii.gz", "The emboli as NIfTI", "A label map on the input's grid; the value is the lesion's id.")
_add_file_route("artery.nii.gz", "The pulmonary artery as NIfTI", "A mask on the input's grid.")
_add_file_route("preview.png", "A picture of the result", "For a look, not for reading.")


def _file(job_id: str, name: str, request: Request, gateway: Gateway) -> Response:
    job = gateway.jobs.get(job_id)
    if not (has_result(job) or (name == "sr.dcm" and has_refusal(job))):
        raise _why_there_is_none(job, name)
    if name.endswith(".dcm") and job.input_kind != "dicom":
        raise NotFound(
            f"job {job_id} was given as {job.input_kind}: a DICOM object needs a DICOM series to refer to",
            remedy="take mask.nii.gz and findings",
        )
    path = gateway.store.result_file(job_id, name)
    shown = "inline" if name == "preview.png" else "attachment"
    response = FileResponse(
        path,
        media_type=_MEDIA_TYPES[name],
        filename=f"{job_id}_{name}",
        content_disposition_type=shown,
        stat_result=path.stat(),
        headers={"Cache-Control": _REVALIDATE},
    )
    etag = response.headers["etag"]
    if _is_fresh(request, etag):
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": _REVALIDATE})
    return response


def _why_there_is_none(job: JobRow, name: str) -> Exception:
    if not has_ended(job):
        return StateConflict(
            f"job {job.id} is {job.state}: {name} is not there yet",
            code="not_finished",
            remedy=f"follow /segment/{job.id}/events",
        )
    remedy = ""
    if job.state == JobState.NOT_ANALYSABLE:
        remedy = f"/segment/{job.id}/findings has the reasons"
    elif job.state == JobState.FAILED:
        remedy = f"POST /segment/{job.id}/retry tries it again"
    return NotFound(f"job {job.id} is {job.state}: it has no {name}", remedy=remedy)


def _is_fresh(request: Request, etag: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in known or "*" in known
