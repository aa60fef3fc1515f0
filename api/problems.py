"""Every error as a problem document (RFC 9457), mapped from the error tree in one place.

`type` is `urn:embolens:problem:<code>`; `code` and the codes in `reasons` are stable, the texts are for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from imaging.errors import (
    EmbolensError,
    InputError,
    InputTooLarge,
    IssuerUnavailable,
    NotAnalysable,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    Purged,
    QueueFull,
    QueueUnavailable,
    Reason,
    StateConflict,
    StorageFull,
    TooManyRequests,
)
from services.dicomweb.accept import NotAcceptable
from services.dicomweb.search_query import BAD_QUERY
from services.multipart import MALFORMED_MULTIPART
from services.store.disk_room import means_full, no_room

MEDIA_TYPE = "application/problem+json"

UNSUPPORTED_MEDIA_TYPE = "input.unsupported_media_type"
NO_INSTANCE_SENT = "dicomweb.no_instance"

# From the most special class to the most general: the first that fits decides.
_STATUS_OF_ERROR: tuple[tuple[type[EmbolensError], HTTPStatus], ...] = (
    (InputTooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NotAnalysable, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NotAuthenticated, HTTPStatus.UNAUTHORIZED),
    (NotPermitted, HTTPStatus.FORBIDDEN),
    (TooManyRequests, HTTPStatus.TOO_MANY_REQUESTS),
    (IssuerUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Purged, HTTPStatus.GONE),
    (NotFound, HTTPStatus.NOT_FOUND),
    (StateConflict, HTTPStatus.CONFLICT),
    (StorageFull, HTTPStatus.INSUFFICIENT_STORAGE),
    (QueueUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (QueueFull, HTTPStatus.SERVICE_UNAVAILABLE),
    (NotAcceptable, HTTPStatus.NOT_ACCEPTABLE),
)
_STATUS_OF_CODE = {
    MALFORMED_MULTIPART: HTTPStatus.BAD_REQUEST,
    BAD_QUERY: HTTPStatus.BAD_REQUEST,
    NO_INSTANCE_SENT: HTTPStatus.BAD_REQUEST,
    UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "idempotency_key_reused": HTTPStatus.UNPROCESSABLE_ENTITY,
}
_TITLES = {
    "input.too_large": "The upload is over a limit",
    "not_authenticated": "An API key or token is needed",
    "key.invalid": "The API key is not valid",
    "token.invalid": "The token is not valid",
    "token.expired": "The token has expired",
    "token.no_tenant": "The token names no tenant",
    "cross_origin": "The request is not of the worklist page",
    "missing_scope": "The key or token does not permit this",
    "too_many_requests": "Too many requests",
    "too_many_failed_logins": "Too many wrong keys or tokens",
    "issuer_unavailable": "The issuer of tokens does not answer",
    "not_found": "Not found",
    "purged": "Its files have been purged",
    "not_finished": "The job has no result yet",
    "state_conflict": "The job's state does not allow this",
    "idempotency_key_reused": "The Idempotency-Key belongs to another request",
    "idempotency_key_in_use": "A request with this Idempotency-Key is still being received",
    "storage_full": "No room left for the upload",
    "dicomweb.not_acceptable": "None of the accepted media types can be given",
    "dicomweb.bad_request": "The request is not understood",
    "dicomweb.no_instance": "The request has no instance",
    "queue_unavailable": "The queue does not answer",
    "queue_full": "Too many studies wait already",
    "database_unavailable": "The database does not answer",
    "request.invalid": "The request's parameters are not valid",
    "retrieve.unknown_node": "No such node to fetch from",
    "retrieve.unknown_rule": "No such rule",
    "not_ready": "The gateway cannot take studies now",
    "internal": "An error inside Embolens",
}
_RETRY_AFTER_S = {HTTPStatus.SERVICE_UNAVAILABLE: 10, HTTPStatus.INSUFFICIENT_STORAGE: 60}
_CLIENT_CLOSED_REQUEST = 499  # nobody reads this answer; the number is nginx's


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    remedy: str = "",
    reasons: Sequence[Reason] = (),
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> Response:
    """One problem document; `members` are extension members (RFC 9457 section 3.2)."""
    body: dict[str, Any] = {
        "type": f"urn:embolens:problem:{code}",
        "title": title or _title(code, status),
        "status": int(status),
        "detail": detail,
        "instance": request.url.path,
        "code": code,
    }
    if remedy:
        body["remedy"] = remedy
    if reasons:
        body["reasons"] = [reason.to_dict() for reason in reasons]
    return JSONResponse(body | members, status, headers=headers, media_type=MEDIA_TYPE)


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app`, ours and the framework's, with a problem document."""
    app.add_exception_handler(EmbolensError, _of_our_error)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http_exception)
    app.add_exception_handler(ClientDisconnect, _of_disconnect)
    for unanswered in (OperationalError, InterfaceError, TimeoutError):  # the last: no free connection in the pool
        app.add_exception_handler(unanswered, _of_database)
    app.add_exception_handler(OSError, _of_os_error)
    app.add_exception_handler(Exception, _of_anything)


def status_of(error: EmbolensError) -> HTTPStatus:
    """The HTTP status of an error of the tree; what no caller can mend is a 500."""
    if error.code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[error.code]
    for error_type, status in _STATUS_OF_ERROR:
        if isinstance(error, error_type):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


def retry_after(status: HTTPStatus) -> dict[str, str]:
    """The header that says when to try again, of answers that another moment may change."""
    return {"Retry-After": str(_RETRY_AFTER_S[status])} if status in _RETRY_AFTER_S else {}


def _title(code: str, status: int) -> str:
    if code in _TITLES:
        return _TITLES[code]
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return "This upload cannot be analysed"
    return HTTPStatus(status).phrase


def problem_of(request: Request, error: EmbolensError) -> Response:
    """An error of the tree as a problem document."""
    reasons = error.reasons if isinstance(error, NotAnalysable) else ()
    status = status_of(error)
    headers = _headers_of(error)
    return problem(request, status, error.code, error.message, remedy=error.remedy, reasons=reasons, headers=headers)


def _headers_of(error: EmbolensError) -> dict[str, str]:
    """What a client that reads no problem documents learns (RFC 9110 section 10.2.3, RFC 6750 section 3)."""
    if isinstance(error, NotAuthenticated):
        shown = "" if error.code == NotAuthenticated.default_code else ', error="invalid_token"'
        return {"WWW-Authenticate": f'Bearer realm="embolens"{shown}'}
    if isinstance(error, NotPermitted):
        return {"WWW-Authenticate": 'Bearer realm="embolens", error="insufficient_scope"'}
    if isinstance(error, TooManyRequests | QueueFull):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    return retry_after(status_of(error))


async def _of_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EmbolensError)
    return problem_of(request, error)


async def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = [
        Reason(f"request.{fault['type']}", f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}")
        for fault in error.errors()
    ]
    detail = "; ".join(reason.text for reason in reasons)
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, "request.invalid", detail, reasons=reasons)


async def _of_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).name.lower()
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(_methods_of(request))}
    return problem(request, error.status_code, code, str(error.detail), headers=headers)


def _methods_of(request: Request) -> list[str]:
    """What the path answers to, by all routes there are for it; the framework names those of the first alone."""
    routes = [one for one in iter_route_contexts(request.app.routes) if one.path_regex.match(request.url.path)]
    return sorted({method for route in routes for method in route.methods or ()})


async def _of_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _of_database(request: Request, error: Exception) -> Response:
    if means_full(error):
        return await _of_our_error(request, no_room())
    return answer_without_database(request)


def answer_without_database(request: Request) -> Response:
    detail = "the database did not answer"
    remedy = "try again, an upload with the same Idempotency-Key; if it stays so, see /health/ready"
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return problem(request, status, "database_unavailable", detail, remedy=remedy, headers=retry_after(status))


async def _of_os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if not means_full(error):
        raise error
    return await _of_our_error(request, no_room())


async def _of_anything(request: Request, error: Exception) -> Response:
    detail = "the error was logged; its text is not shown because it may quote the study"
    return problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)
