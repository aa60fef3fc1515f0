"""Conversion between DICOM, NIfTI and SEG of what is sent, without a job: nothing of it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Annotated, Any, BinaryIO

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from api.authentication import Caller
from api.gateway import Gateway, OpenGateway
from api.problem_responses import problem_responses
from api.upload_stream import RAW_MEDIA_TYPES, receive_upload
from imaging.errors import InputTooLarge
from services.dicom.conversion_options import ConversionOptions, Drawn, LabelSegOptions
from services.dicom.conversion_process import COMMAND, Converted, converted, request_of
from services.dicom.seg_options import SegType
from services.ingest.upload import unpack_uploads

router = APIRouter(tags=["convert"])

WARNINGS_HEADER = "Embolens-Warnings"
_CHUNK_BYTES = 1024**2
_POLL_S = 0.3
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "DICOM files, a zip of them, a NIfTI or NRRD; content decides, not names",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "patient_id": {"type": "string", "description": "In DICOM files; default: of the image"},
                        "patient_name": {"type": "string", "description": "In DICOM files"},
                    },
                }
            },
            **{name: {"schema": {"type": "string", "format": "binary"}} for name in RAW_MEDIA_TYPES},
        },
    }
}
_MADE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file made",
        "headers": {
            WARNINGS_HEADER: {"description": "Codes of warnings, by commas", "schema": {"type": "string"}},
        },
        "content": {
            name: {"schema": {"type": "string", "format": "binary"}}
            for name in ("application/zip", "application/gzip", "application/dicom")
        },
    }
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """The query; names of patients are form fields, since addresses are logged."""

    round: Annotated[bool, Query(description="HU whole, and -1024 where lower or padding")] = False
    resample: Annotated[bool, Query(description="Take the nearest labels of a label map on another grid")] = False
    segment: Annotated[int | None, Query(ge=1, description="The one segment of a SEG to take")] = None
    seg_type: Annotated[SegType, Query(description="Of the SEG")] = SegType.BINARY
    drawn: Annotated[Drawn, Query(description="What the labels show")] = Drawn.TISSUE
    algorithm: Annotated[str, Query(max_length=64, description="What drew the labels; empty: a hand")] = ""

    def options(self, fields: dict[str, str]) -> ConversionOptions:
        return ConversionOptions(
            rounded=self.round,
            resample=self.resample,
            only_segment=self.segment,
            patient_id=fields.get("patient_id") or None,
            patient_name=fields.get("patient_name", ""),
            seg=LabelSegOptions(self.seg_type, self.drawn, self.algorithm),
        )


@router.post(
    "/convert",
    summary="Convert between DICOM, NIfTI and SEG",
    response_class=StreamingResponse,
    responses=problem_responses(*(400, 413, 415, 507), beside=_MADE),
    openapi_extra=_BODY,
)
async def convert(
    request: Request, gateway: OpenGateway, caller: Caller, asked: Annotated[_Asked, Depends()]
) -> Response:
    """What is sent decides: a NIfTI or NRRD becomes a zip of a DICOM series, a CT series a NIfTI, a label map with its
    CT series a SEG, a SEG (alone or with its series) a label map. Nothing is kept."""
    limits = gateway.settings
    arriving = gateway.store.arriving_directory()
    try:
        received = await receive_upload(
            request,
            arriving,
            max_bytes=gateway.upload_max_bytes(caller),
            max_files=limits.upload_max_files,
            check_room=gateway.store.check_room,
        )
        unpack = partial(
            unpack_uploads,
            max_bytes=limits.unpacked_max_bytes,
            max_files=limits.upload_max_files,
            max_ratio=limits.unpacked_max_ratio,
            check_room=gateway.store.check_room,
        )
        files = await run_sync(unpack, received.files, limiter=gateway.inspection_threads)
        made = await _converted(request, gateway, files, arriving, asked.options(received.fields))
        file = made.path.open("rb")
        size = made.path.stat().st_size
    finally:  # the file made stays readable while it is open, and nothing is left when the client goes away
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(shutil.rmtree, arriving, ignore_errors=True)
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{made.path.name}"'}
    if made.warnings:
        headers[WARNINGS_HEADER] = ", ".join(dict.fromkeys(warning.code for warning in made.warnings))
    return StreamingResponse(_chunks(file), media_type=made.media_type, headers=headers)


async def _converted(
    request: Request, gateway: Gateway, files: list[Path], arriving: Path, options: ConversionOptions
) -> Converted:
    """The conversion in its own process, as many at once as the settings allow; killed where nobody waits for it.

    Raises:
        EmbolensError: as the conversion; `input.conversion_too_long`.
        ClientDisconnect: the client went away, or this gateway stops.
    """
    limits = gateway.settings
    directory = arriving / "converted"
    directory.mkdir()
    asked = request_of(files, directory, options, max_memory_bytes=limits.convert_memory_bytes)
    done = None
    async with gateway.conversions, anyio.create_task_group() as tasks:
        tasks.start_soon(_end_when_nobody_waits, request, gateway, tasks.cancel_scope)
        with anyio.move_on_after(limits.convert_timeout_s) as time:
            done = await anyio.run_process(COMMAND, input=asked, stdout=PIPE, stderr=DEVNULL, check=False)
        tasks.cancel_scope.cancel()
    if time.cancelled_caught:
        text = f"the conversion took longer than {limits.convert_timeout_s:g} s"
        raise InputTooLarge(text, code="input.conversion_too_long")
    if done is None:
        raise ClientDisconnect
    return converted(done.stdout)


async def _end_when_nobody_waits(request: Request, gateway: Gateway, conversion: anyio.CancelScope) -> None:
    while not (gateway.is_stopping() or await request.is_disconnected()):
        await anyio.sleep(_POLL_S)
    conversion.cancel()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
