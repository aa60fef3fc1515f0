"""QIDO-RS: which studies, series and instances are here (PS3.18 section 10.6)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from api.authentication import Caller
from api.dicomweb_request import AcceptParameter, SeriesUid, StudyUid, accept_of, urls_of
from api.gateway import Gateway, OpenGateway
from api.problem_responses import problem_responses
from services.accounts.principal import Principal
from services.dicomweb.accept import DICOM_JSON, check_takes
from services.dicomweb.json_model import as_bytes
from services.dicomweb.resource_urls import PREFIX
from services.dicomweb.search import search
from services.dicomweb.search_query import MATCHED, MOST_RESULTS, Level, read_query

router = APIRouter(tags=["dicomweb"], prefix=PREFIX)

_MOST_JOBS = 50  # looked at before a search; the relay keeps the index up to date, so there are rarely more than a few
_ITEMS = {"schema": {"type": "array", "items": {"type": "object"}}}

_NUMBER = {"schema": {"type": "integer", "minimum": 0}}


def _parameter(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": "string"}}


def _description(level: Level) -> dict[str, Any]:
    matched = [_parameter(name, one.matching.value) for name, one in MATCHED.items() if one.level <= level]
    return {
        "response_class": Response,
        "responses": problem_responses(
            *(400, 406, 503),
            beside={
                200: {
                    "description": "What matches; a Warning header where there is more",
                    "content": {DICOM_JSON: _ITEMS},
                },
                204: {"description": "Nothing matches"},
            },
        ),
        "openapi_extra": {
            "parameters": [
                *matched,
                _parameter("includefield", "Keywords or tags, separated by commas, or all"),
                _parameter("limit", f"At most {MOST_RESULTS}") | _NUMBER,
                _parameter("offset", "Results to leave out at the beginning") | _NUMBER,
                _parameter("fuzzymatching", "Not done; true gives a Warning header"),
            ]
        },
    }


@router.get("/studies", summary="Search for studies", **_description(Level.STUDY))
def search_studies(request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None) -> Response:
    """What came in and the results, whichever way they came. An attribute is named by its keyword or its tag."""
    return _search(request, gateway, caller, Level.STUDY, accept)


@router.get("/series", summary="Search for series", **_description(Level.SERIES))
def search_series(request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None) -> Response:
    """Series of all studies."""
    return _search(request, gateway, caller, Level.SERIES, accept)


@router.get("/studies/{study}/series", summary="Search for series of a study", **_description(Level.SERIES))
def search_series_of_study(
    study: StudyUid, request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """Those of the scanner and those that were made of them."""
    return _search(request, gateway, caller, Level.SERIES, accept, study_instance_uid=study)


@router.get("/instances", summary="Search for instances", **_description(Level.INSTANCE))
def search_instances(
    request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """Instances of all studies."""
    return _search(request, gateway, caller, Level.INSTANCE, accept)


@router.get("/studies/{study}/instances", summary="Search for instances of a study", **_description(Level.INSTANCE))
def search_instances_of_study(
    study: StudyUid, request: Request, gateway: OpenGateway, caller: Caller, accept: AcceptParameter = None
) -> Response:
    """Instances of all its series."""
    return _search(request, gateway, caller, Level.INSTANCE, accept, study_instance_uid=study)


@router.get(
    "/studies/{study}/series/{series}/instances",
    summary="Search for instances of a series",
    **_description(Level.INSTANCE),
)
def search_instances_of_series(
    study: StudyUid,
    series: SeriesUid,
    request: Request,
    gateway: OpenGateway,
    caller: Caller,
    accept: AcceptParameter = None,
) -> Response:
    """In the order of their instance numbers."""
    return _search(
        request, gateway, caller, Level.INSTANCE, accept, study_instance_uid=study, series_instance_uid=series
    )


def _search(
    request: Request, gateway: Gateway, caller: Principal, level: Level, accept: str | None, **within: str
) -> Response:
    media_type = check_takes(accept_of(request, accept), DICOM_JSON, "application/json")
    query = read_query(level, request.query_params.multi_items())
    not_indexed = gateway.index.update(most_jobs=_MOST_JOBS)
    found = search(
        gateway.database, query, urls_of(request, gateway.settings.gateway_url), tenant=caller.sees_tenant, **within
    )
    warnings = []
    if found.remaining:
        warnings.append(f"There are {found.remaining} additional results that can be requested")
    if query.fuzzy:
        warnings.append("The fuzzymatching parameter is not supported. Only literal matching has been performed.")
    if not_indexed:
        warnings.append(f"The index is being made: {not_indexed} jobs are not in it yet, ask again")
    headers = {"Warning": ", ".join(f'299 embolens "{text}"' for text in warnings)} if warnings else {}
    if not found.results and not not_indexed:
        return Response(status_code=204, headers=headers)
    return Response(as_bytes(found.results), media_type=media_type, headers=headers)
