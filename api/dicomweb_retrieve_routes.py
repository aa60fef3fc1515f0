"""WADO-RS: instances, their metadata, bulk data, frames and pictures (PS3.18 section 10.4)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.authentication import Caller
from api.dicomweb_request import AcceptParameter, InstanceUid, SeriesUid, StudyUid, accept_of, urls_of
from api.gateway import Gateway, OpenGateway
from api.problem_responses import problem_responses
from imaging.errors import InputError, NotFound
from services.accounts.principal import Principal
from services.dicomweb.accept import DICOM_JSON, check_takes, media_ranges, not_acceptable
from services.dicomweb.frame_form import OCTET_STREAM, frame_form
from services.dicomweb.frames import Frames
from services.dicomweb.instance_file import DICOM, given_syntax, instance_file, wanted_syntaxes
from services.dicomweb.json_model import as_bytes
from services.dicomweb.metadata import bulk_data, instance_metadata
from services.dicomweb.multipart_related import Part, RelatedBody, related_body
from services.dicomweb.rendered import FORMATS, Rendering, read_viewport, read_window, rendered
from services.dicomweb.resource_urls import PREFIX
from services.dicomweb.search_query import BAD_QUERY
from services.store.rows import HeldInstanceRow

router = APIRouter(tags=["dicomweb"], prefix=PREFIX)

_STUDY = "/studies/{study}"
_SERIES = f"{_STUDY}/series/{{series}}"
_INSTANCE = f"{_SERIES}/instances/{{instance}}"
_MOST_JOBS = 50  # looked at where something is not in the index

FrameList = Annotated[str, Path(description="Frame numbers from 1, separated by commas", max_length=4096)]
WindowParameter = Annotated[str | None, Query(description="center,width,function: linear, linear-exact, sigmoid")]
ViewportParameter = Annotated[str | None, Query(description="width,height in pixels; the picture is scaled into it")]
QualityParameter = Annotated[int, Query(ge=1, le=100, description="Of a JPEG")]


def _description(*media_types: str, binary: bool = True) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"} if binary else {"type": "array", "items": {"type": "object"}}
    content = {media_type: {"schema": schema} for media_type in media_types}
    return {
        "response_class": Response,
        "responses": problem_responses(
            *(400, 404, 406, 410, 503), beside={200: {"description": "As accepted", "content": content}}
        ),
    }


_DICOM = _description(f'multipart/related; type="{DICOM}"')
_METADATA = _description(DICOM_JSON, binary=False)
_BULK = _description(f'multipart/related; type="{OCTET_STREAM}"', OCTET_STREAM)
_FRAMES = _description(f'multipart/related; type="{OCTET_STREAM}"', 'multipart/related; type="image/*"')
_RENDERED = _description(*FORMATS)


@router.get(_STUDY, summary="Retrieve a study", **_DICOM)
def retrieve_study(
    study: StudyUid, request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """All its instances: those that came in and those of results.

    Without a `transfer-syntax` in Accept they are given in Explicit VR Little Endian; `transfer-syntax=*` gives each as
    it is stored.
    """
    return _instances(gateway, caller, accept_of(request, accept), study)


@router.get(_SERIES, summary="Retrieve a series", **_DICOM)
def retrieve_series(
    study: StudyUid,
    series: SeriesUid,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """In the order of instance numbers."""
    return _instances(gateway, caller, accept_of(request, accept), study, series)


@router.get(_INSTANCE, summary="Retrieve an instance", **_DICOM)
def retrieve_instance(
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """A multipart body of one part."""
    return _instances(gateway, caller, accept_of(request, accept), study, series, instance)


@router.get(f"{_STUDY}/metadata", summary="Metadata of a study", **_METADATA)
def retrieve_study_metadata(
    study: StudyUid, request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """Headers in the DICOM JSON Model; pixel data and other big values are named by BulkDataURI."""
    return _metadata(request, gateway, caller, accept, study)


@router.get(f"{_SERIES}/metadata", summary="Metadata of a series", **_METADATA)
def retrieve_series_metadata(
    study: StudyUid,
    series: SeriesUid,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """In the order of instance numbers."""
    return _metadata(request, gateway, caller, accept, study, series)


@router.get(f"{_INSTANCE}/metadata", summary="Metadata of an instance", **_METADATA)
def retrieve_instance_metadata(
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """An array of one."""
    return _metadata(request, gateway, caller, accept, study, series, instance)


@router.get(f"{_INSTANCE}/bulkdata/{{tag}}", summary="A big value of an instance", **_BULK)
def retrieve_bulk_data(
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    tag: Annotated[str, Path(pattern="^[0-9A-Fa-f]{8}$", description="As the metadata's BulkDataURI names it")],
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """Pixel data (decoded), an encapsulated PDF, a long private value."""
    accepted = accept_of(request, accept)
    taking = [wanted for wanted in media_ranges(accepted) if wanted.takes(OCTET_STREAM)]
    if not taking:
        raise not_acceptable(accepted, (OCTET_STREAM,))
    (row,) = _held(gateway, caller, study, series, instance)
    content = bulk_data(gateway.index.path(row), tag)
    if taking[0].multipart:
        return _streamed(related_body(OCTET_STREAM, iter([Part(OCTET_STREAM, content)])))
    return _streamed(RelatedBody(OCTET_STREAM, chain([next(content)], content)))


@router.get(f"{_INSTANCE}/frames/{{frames}}", summary="Frames of an instance", **_FRAMES)
def retrieve_frames(
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    frames: FrameList,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """Decoded as application/octet-stream; compressed as they are stored with `transfer-syntax=*` or their own type."""
    indices = _indices(frames)
    (row,) = _held(gateway, caller, study, series, instance)
    source = Frames(gateway.index.path(row))
    for index in indices:
        source.check_has(index)
    form = frame_form(source, media_ranges(accept_of(request, accept)), indices[0])
    parts = (Part(form.content_type, (form.content(index),)) for index in indices)
    return _streamed(related_body(form.media_type, parts))


@router.get(f"{_INSTANCE}/rendered", summary="An instance as a picture", **_RENDERED)
def retrieve_rendered_instance(
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    window: WindowParameter = None,
    viewport: ViewportParameter = None,
    quality: QualityParameter = 90,
    accept: AcceptParameter = None,
) -> Response:
    """The first frame. SR and PDF have no picture (406)."""
    wanted = _rendering(accept_of(request, accept), window, viewport, quality)
    return _rendered(gateway, caller, study, series, instance, 0, wanted)


@router.get(f"{_INSTANCE}/frames/{{frame}}/rendered", summary="A frame as a picture", **_RENDERED)
def retrieve_rendered_frame(
    study: StudyUid,
    series: SeriesUid,
    instance: InstanceUid,
    frame: Annotated[int, Path(ge=1, description="From 1")],
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    window: WindowParameter = None,
    viewport: ViewportParameter = None,
    quality: QualityParameter = 90,
    accept: AcceptParameter = None,
) -> Response:
    """Without `window`, in the window that the image names; segments of a SEG are white."""
    wanted = _rendering(accept_of(request, accept), window, viewport, quality)
    return _rendered(gateway, caller, study, series, instance, frame - 1, wanted)


def _held(gateway: Gateway, caller: Principal, *uids: str) -> list[HeldInstanceRow]:
    """The instances below a resource. A study or series is looked at anew; an instance that is known stays one.

    Raises:
        NotFound: there is none.
    """
    names_an_instance = len(uids) == 3
    if names_an_instance:
        try:
            return list(gateway.index.instances(*uids, tenant=caller.sees_tenant))
        except NotFound:
            gateway.index.update(most_jobs=_MOST_JOBS)
    else:
        gateway.index.update(most_jobs=_MOST_JOBS)
    return list(gateway.index.instances(*uids, tenant=caller.sees_tenant))


def _instances(gateway: Gateway, caller: Principal, accept: str, *uids: str) -> Response:
    wanted = wanted_syntaxes(media_ranges(accept))
    if not wanted:
        raise not_acceptable(accept, (f'multipart/related; type="{DICOM}"',))
    rows = _held(gateway, caller, *uids)
    syntaxes = [given_syntax(wanted, row.transfer_syntax_uid) for row in rows]

    def parts() -> Iterator[Part]:
        with gateway.store.reading({row.place for row in rows}):
            for row, syntax in zip(rows, syntaxes, strict=True):
                content = instance_file(gateway.index.path(row), syntax, row.transfer_syntax_uid)
                yield Part(f"{DICOM}; transfer-syntax={syntax}", content)

    return _streamed(related_body(DICOM, parts()))


def _metadata(request: Request, gateway: Gateway, caller: Principal, accept: str | None, *uids: str) -> Response:
    media_type = check_takes(accept_of(request, accept), DICOM_JSON, "application/json")
    rows = _held(gateway, caller, *uids)
    urls = urls_of(request, gateway.settings.gateway_url)

    def chunks() -> Iterator[bytes]:
        with gateway.store.reading({row.place for row in rows}):
            for number, row in enumerate(rows):
                url = urls.instance(row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid)
                yield (b"," if number else b"[") + as_bytes(instance_metadata(gateway.index.path(row), url))
        yield b"]"

    content = chunks()
    return _streamed(RelatedBody(media_type, chain([next(content)], content)))


def _rendered(
    gateway: Gateway, caller: Principal, study: str, series: str, instance: str, index: int, wanted: Rendering
) -> Response:
    (row,) = _held(gateway, caller, study, series, instance)
    return Response(rendered(Frames(gateway.index.path(row)), index, wanted), media_type=wanted.media_type)


def _rendering(accept: str, window: str | None, viewport: str | None, quality: int) -> Rendering:
    return Rendering(
        media_type=check_takes(accept, *FORMATS),
        window=None if window is None else read_window(window),
        viewport=None if viewport is None else read_viewport(viewport),
        quality=quality,
    )


def _indices(frames: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", frames):
        raise InputError(f"frames {frames[:100]!r}", code=BAD_QUERY, remedy="frames/1,2,3: numbers from 1")
    return [int(number) - 1 for number in frames.split(",")]


def _streamed(body: RelatedBody) -> Response:
    return StreamingResponse(body.chunks, headers={"Content-Type": body.content_type})
