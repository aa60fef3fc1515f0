"""Storing result objects at a DICOMweb service: STOW-RS (PS3.18 section 10.5)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset

from imaging.errors import ConfigurationError, DeliveryError, DeliveryRefused
from services.delivery.destinations import DicomWeb
from services.delivery.sent_object import DUPLICATE, SentObject, status_text
from services.dicom.headers import MALFORMED
from services.dicomweb_client import dicomweb_client
from services.settings import Settings

_DICOM_JSON = "application/dicom+json"
_CHUNK_BYTES = 1024**2
_ANSWERED = frozenset({200, 202, 409})  # PS3.18 10.5.3.1: with a response about every instance
_UNAUTHORIZED = frozenset({401, 403})
_BUSY = frozenset({408, 425, 429, 502, 503, 504})


def store_at(service: DicomWeb, objects: Mapping[Path, str], settings: Settings) -> Iterator[SentObject]:
    """Post the files (path to SOP Instance UID) in one request, streamed, telling of each what the service said of it.

    Every path is told of once. Where the request as a whole is refused (too large, or one object spoils it, as in
    Orthanc), the objects go one by one. An object counts as delivered only where the response names it as stored: a
    login page with status 200 stores nothing.
    """
    left = []
    for path in objects:
        if path.is_file():
            left.append(path)
        else:
            yield SentObject(path, DeliveryError(f"cannot read the result file {path.name}"))
    if not left:
        return
    try:
        with dicomweb_client(service, settings) as client:
            response = _post(client, left)
            one_by_one = len(left) > 1 and response.status_code not in _ANSWERED | _UNAUTHORIZED | _BUSY
            while left:
                if one_by_one:
                    response = _post(client, left[:1])
                path = left.pop(0)
                yield _outcome(service, response, path, objects[path])
    except ConfigurationError as error:
        yield from (SentObject(path, DeliveryError(error.message, code=error.code)) for path in left)
    except (httpx.HTTPError, OSError) as error:
        failed = DeliveryError(f"{service.name} at {service.url}: {type(error).__name__}", remedy="does it answer?")
        yield from (SentObject(path, failed) for path in left)


def _post(client: httpx.Client, paths: Sequence[Path]) -> httpx.Response:
    boundary = uuid.uuid4().hex
    opening = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    closing = f"--{boundary}--\r\n".encode()
    length = sum(len(opening) + path.stat().st_size + 2 for path in paths) + len(closing)

    def body() -> Iterator[bytes]:
        for path in paths:
            yield opening
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
            yield b"\r\n"
        yield closing

    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(length),
        "Accept": _DICOM_JSON,
    }
    return client.post("studies", content=body(), headers=headers)


def _outcome(service: DicomWeb, response: httpx.Response, path: Path, sop_instance_uid: str) -> SentObject:
    status = response.status_code
    if status not in _ANSWERED:
        return SentObject(path, _error(service, status))
    try:
        said = _store_instances_response(response)
        failed = _item_of(said.get("FailedSOPSequence"), sop_instance_uid)
        stored = _item_of(said.get("ReferencedSOPSequence"), sop_instance_uid)
        reason = None if failed is None else int(failed.get("FailureReason") or 0)
        warning = 0 if stored is None else int(stored.get("WarningReason") or 0)
    except (*MALFORMED, UnicodeDecodeError):
        return SentObject(path, _unclear(service, status, "with nothing that could be read"))
    if reason == DUPLICATE:
        return SentObject(path, status=reason)
    if reason is not None:
        refused = DeliveryRefused(f"{service.name} refused the object ({status_text(reason)})")
        return SentObject(path, refused, reason)
    if stored is None:
        return SentObject(path, _unclear(service, status, "and says nothing of the object"))
    return SentObject(path, status=warning)


def _store_instances_response(response: httpx.Response) -> Dataset:
    """PS3.18 Annex I.2; some servers put the data set into a list."""
    parsed: Any = response.json()
    return Dataset.from_json(parsed[0] if isinstance(parsed, list) else parsed)


def _item_of(sequence: Sequence[Dataset] | None, sop_instance_uid: str) -> Dataset | None:
    return next((item for item in sequence or () if item.get("ReferencedSOPInstanceUID") == sop_instance_uid), None)


def _unclear(service: DicomWeb, status: int, how: str) -> DeliveryError:
    return DeliveryError(f"{service.name} answered {status} {how}", code="delivery.unclear_answer")


def _error(service: DicomWeb, status: int) -> DeliveryError:
    if status in _UNAUTHORIZED:
        return DeliveryError(
            f"{service.name} does not let us in (HTTP {status})",
            code="delivery.unauthorized",
            remedy="check token_file, or username and password_file",
        )
    if status in _BUSY:
        return DeliveryError(f"{service.name} cannot take objects now (HTTP {status})", code="delivery.unavailable")
    return DeliveryRefused(f"{service.name} refused the request (HTTP {status})")
