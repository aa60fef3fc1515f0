"""STOW-RS: instances come in by HTTP and go the way of those that come by C-STORE (PS3.18 section 10.5)."""

from __future__ import annotations

import shutil
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response, status
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from api.authentication import Caller
from api.dicomweb_request import AcceptParameter, StudyUid, accept_of, urls_of
from api.gateway import Gateway, OpenGateway
from api.problem_responses import problem_responses
from api.problems import MEDIA_TYPE, NO_INSTANCE_SENT, UNSUPPORTED_MEDIA_TYPE, retry_after
from api.upload_stream import feed_body
from imaging.errors import InputError
from services.accounts.principal import Principal
from services.dicomweb.accept import DICOM_JSON, check_takes
from services.dicomweb.json_model import dicom_json
from services.dicomweb.resource_urls import PREFIX
from services.ingest.stow_receiver import StowReceiver
from services.multipart import MultipartReader
from services.store.rows import Priority

router = APIRouter(tags=["dicomweb"], prefix=PREFIX)

_PART_TYPE = "application/dicom"
_PART_HEADERS_BYTES = 1024
_ANSWER = {
    DICOM_JSON: {"schema": {"type": "object", "description": "Store Instances Response Module (PS3.18 Annex I)"}}
}
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemSchema"}}}
_DESCRIPTION: dict[str, Any] = {
    "status_code": status.HTTP_200_OK,
    "response_class": Response,
    "responses": problem_responses(
        *(400, 406, 413, 415, 503),
        beside={
            200: {"description": "All instances are held", "content": _ANSWER},
            202: {"description": "Some are held; those refused are in the Failed SOP Sequence", "content": _ANSWER},
        },
    )
    | {
        409: {"description": "None is held; the Failed SOP Sequence says why", "content": _ANSWER},
        507: {
            "description": "None is held, and some for lack of room (A700): try again later",
            "content": _ANSWER | _PROBLEM,
        },
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "DICOM files (PS3.10), a part each: CT, Enhanced CT, Legacy Converted Enhanced CT",
            "content": {'multipart/related; type="application/dicom"': {"schema": {"type": "string"}}},
        }
    },
}


@router.post("/studies", summary="Store instances", **_DESCRIPTION)
async def store_instances(
    request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """Take CT instances in (STOW-RS). Their series becomes a job when it has been quiet for a while.

    An instance in the Referenced SOP Sequence lies on disk. The same instance again changes nothing.
    """
    return await _store(request, gateway, caller, None, accept)


@router.post("/studies/{study}", summary="Store instances of a study", **_DESCRIPTION)
async def store_instances_of_study(
    study: StudyUid, request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """As `POST /dicom-web/studies`; instances of another study are refused."""
    return await _store(request, gateway, caller, study, accept)


async def _store(
    request: Request, gateway: Gateway, caller: Principal, study: str | None, accept: str | None
) -> Response:
    check_takes(accept_of(request, accept), DICOM_JSON, "application/json")
    boundary = _boundary(request.headers.get("content-type", ""))
    await run_in_threadpool(gateway.line.make_sure_of_room, Priority.ROUTINE)
    limits, max_bytes = gateway.settings, gateway.upload_max_bytes(caller)
    directory = gateway.store.arriving_directory()
    receiver = StowReceiver(
        gateway.store,
        gateway.jobs,
        gateway.held,
        directory,
        urls_of(request, limits.gateway_url),
        study_instance_uid=study,
        calling_address=request.client.host if request.client else None,
        max_bytes=max_bytes,
        max_parts=limits.upload_max_files,
        tenant=caller.tenant,
    )
    request.state.received = receiver.received  # for the audit trail, also of a request that breaks off
    try:
        await feed_body(
            request,
            MultipartReader(boundary, receiver),
            max_bytes=max_bytes,
            max_bytes_around=limits.upload_max_files * _PART_HEADERS_BYTES,
        )
    finally:
        receiver.close()
        try:
            await run_in_threadpool(receiver.count_arrivals)
        finally:
            await run_in_threadpool(shutil.rmtree, directory, ignore_errors=True)
    refused = len(receiver.failed) + len(receiver.unreadable)
    if not (receiver.stored or refused):
        raise InputError(
            "the body has no part", code=NO_INSTANCE_SENT, remedy=f"send one {_PART_TYPE} part for every instance"
        )
    code = HTTPStatus.OK if not refused else HTTPStatus.ACCEPTED if receiver.stored else HTTPStatus.CONFLICT
    if code is HTTPStatus.CONFLICT and receiver.lacked_room:  # it would be for good
        code = HTTPStatus.INSUFFICIENT_STORAGE
    return Response(dicom_json(receiver.answer()), code, headers=retry_after(code), media_type=DICOM_JSON)


def _boundary(content_type: str) -> bytes:
    media_type, options = parse_options_header(content_type)
    part_type = options.get(b"type", _PART_TYPE.encode()).decode("latin-1").lower()
    if media_type != b"multipart/related" or part_type != _PART_TYPE:
        raise InputError(
            f"Content-Type {content_type!r}",
            code=UNSUPPORTED_MEDIA_TYPE,
            remedy=f'send multipart/related; type="{_PART_TYPE}"',
        )
    return options.get(b"boundary", b"")
