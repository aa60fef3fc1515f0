"""What the DICOMweb routes read from a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request

from services.dicomweb.resource_urls import ResourceUrls

_UID = r"^[0-9]+(\.[0-9]+)*$"

StudyUid = Annotated[str, Path(alias="study", max_length=64, pattern=_UID, description="Study Instance UID")]
SeriesUid = Annotated[str, Path(alias="series", max_length=64, pattern=_UID, description="Series Instance UID")]
InstanceUid = Annotated[str, Path(alias="instance", max_length=64, pattern=_UID, description="SOP Instance UID")]
AcceptParameter = Annotated[
    str | None, Query(alias="accept", description="Instead of the Accept header (PS3.18 8.3.3.1)")
]


def accept_of(request: Request, parameter: str | None) -> str:
    """What the client takes."""
    return parameter if parameter is not None else ", ".join(request.headers.getlist("accept"))


def urls_of(request: Request, gateway_url: str) -> ResourceUrls:
    """URLs as this client reaches them."""
    return ResourceUrls(gateway_url or str(request.base_url))
