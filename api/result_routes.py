"""The files of a result."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydicom import dcmread

from api.gateway import Gateway, OpenGateway
from api.job_id import JobId
from api.job_view import findings_of, has_ended, has_refusal, has_result
from api.problem_responses import Responses, problem_responses
from api.schemas import FindingsSchema
from imaging.errors import NotFound, StateConflict
from services.dicom.result_kind import KEY_IMAGE_STEM, REPORT_FILE
from services.store.rows import JobRow, JobState
from services.store.study_store import purged

router = APIRouter(tags=["results"])

_MEDIA_TYPES = {
    "seg.dcm": "application/dicom",
    "sr.dcm": "application/dicom",
    "mask.nii.gz": "application/gzip",
    "artery.nii.gz": "application/gzip",
    "preview.png": "image/png",
    "report.dcm": "application/dicom",
    "report.pdf": "application/pdf",
    "key-images.zip": "application/zip",
}
# Also of a study that is not analysable or failed; and what refers to DICOM images.
_OF_A_REFUSAL = ("sr.dcm", "report.dcm", "report.pdf", "key-images.zip")
_DICOM_OBJECTS = ("seg.dcm", *_OF_A_REFUSAL)
_REVALIDATE = "private, no-cache"  # a job that is tried again may come to another result


@router.get(
    "/segment/{job_id}/findings",
    summary="The findings",
    response_model=FindingsSchema,
    responses=problem_responses(404, 409),
)
def get_findings(job_id: JobId, request: Request, gateway: OpenGateway) -> Response:
    """Outcome, lesions and provenance; for a study that is not analysable or failed, the reasons."""
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


def _answer(name: str) -> Responses:
    content = {_MEDIA_TYPES[name]: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": "The file", "content": content}}


def _add_file_route(name: str, summary: str, description: str) -> None:
    @router.get(
        f"/segment/{{job_id}}/{name}",
        name=f"get_{name.replace('.', '_')}",
        summary=summary,
        description=description,
        response_class=FileResponse,
        responses=problem_responses(*(404, 409, 410), beside=_answer(name)),
    )
    def get_file(job_id: JobId, request: Request, gateway: OpenGateway) -> Response:
        return _file(job_id, name, request, gateway)


_add_file_route("seg.dcm", "The DICOM SEG", "Segment 1 is the pulmonary artery, then one segment per embolus.")
_add_file_route(
    "sr.dcm",
    "The DICOM SR",
    "Measurements of every embolus; for one that is not analysable or failed, the coded reasons.",
)
_add_file_route("report.dcm", "The report as DICOM", "The page of `report.pdf` as Encapsulated PDF.")
_add_file_route("mask.nii.gz", "The emboli as NIfTI", "A label map on the input's grid; the value is the lesion's id.")
_add_file_route("artery.nii.gz", "The pulmonary artery as NIfTI", "A mask on the input's grid.")
_add_file_route("preview.png", "A picture of the result", "For a look, not for reading.")


@router.get(
    "/segment/{job_id}/report.pdf",
    summary="The report as PDF",
    response_class=Response,
    responses=problem_responses(*(404, 409, 410), beside=_answer("report.pdf")),
)
def get_report_pdf(job_id: JobId, request: Request, gateway: OpenGateway) -> Response:
    """One page with pictures, as it is encapsulated in `report.dcm`."""
    _refuse_where_there_is_none(gateway.jobs.get(job_id), "report.pdf")
    return _made(_pdf_in(gateway.store.result_file(job_id, REPORT_FILE)), "report.pdf", job_id, request)


@router.get(
    "/segment/{job_id}/key-images.zip",
    summary="The key images",
    response_class=Response,
    responses=problem_responses(*(404, 409, 410), beside=_answer("key-images.zip")),
)
def get_key_images_zip(job_id: JobId, request: Request, gateway: OpenGateway) -> Response:
    """DICOM secondary captures of the overview and the most probable emboli, with outlines burnt in."""
    _refuse_where_there_is_none(gateway.jobs.get(job_id), "key-images.zip")
    first = gateway.store.result_file(job_id, f"{KEY_IMAGE_STEM}1.dcm")
    return _made(_zip_of(sorted(first.parent.glob(f"{KEY_IMAGE_STEM}*.dcm"))), "key-images.zip", job_id, request)


def _file(job_id: str, name: str, request: Request, gateway: Gateway) -> Response:
    _refuse_where_there_is_none(gateway.jobs.get(job_id), name)
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


def _refuse_where_there_is_none(job: JobRow, name: str) -> None:
    """Raises NotFound or StateConflict where the job cannot have such a file."""
    if not (has_result(job) or (name in _OF_A_REFUSAL and has_refusal(job))):
        raise _why_there_is_none(job, name)
    if job.results_purged_at is not None:
        raise purged(f"the result of job {job.id}", job.results_purged_at)
    if name in _DICOM_OBJECTS and job.input_kind != "dicom":
        raise NotFound(
            f"job {job.id} was given as {job.input_kind}: a DICOM object needs a DICOM series to refer to",
            remedy="take mask.nii.gz and findings",
        )


def _pdf_in(document: Path) -> bytes:
    """Of an Encapsulated PDF (PS3.3 C.24.2), without the byte that makes its length even."""
    instance = dcmread(document, force=True)
    return bytes(instance.EncapsulatedDocument[: instance.EncapsulatedDocumentLength])


def _zip_of(files: Sequence[Path]) -> bytes:
    """At most a dozen small files; the same bytes each time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _made(body: bytes, name: str, job_id: str, request: Request) -> Response:
    """What was made from files of the result, with its digest as version."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": _REVALIDATE}
    if _is_fresh(request, etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{job_id}_{name}"'
    return Response(body, media_type=_MEDIA_TYPES[name], headers=headers)


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
