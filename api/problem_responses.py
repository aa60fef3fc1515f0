"""Problem documents in the OpenAPI description: which statuses a route answers with, and when."""

from __future__ import annotations

from typing import Any

from api.problems import MEDIA_TYPE

_MEANINGS = {
    400: "The body is malformed, or the query not understood",
    401: "No API key or token, or one that is not valid",
    403: "The key or token does not permit this",
    404: "No such job, file of a job, node, rule, retrieval or DICOM object",
    406: "None of the accepted media types can be given",
    409: "The job's state does not allow this, or the Idempotency-Key is in use",
    410: "It was here, and has been purged",
    413: "Over a limit of bytes or files",
    415: "A media type that is not taken",
    422: "Invalid parameters, or an input that cannot be analysed (with coded reasons)",
    429: "Too many requests, or too many wrong keys; Retry-After says when to go on",
    500: "An error inside Embolens",
    503: "Something the gateway depends on does not answer; or, with `Retry-After`, too many studies wait already",
    507: "No room left in the data directory",
}


Responses = dict[int | str, dict[str, Any]]


def problem_responses(*statuses: int, beside: Responses | None = None) -> Responses:
    """For a route's `responses`, beside its other answers; 422 and 500 belong to every route."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemSchema"}}}
    problems: Responses = {
        status: {"description": _MEANINGS[status], "content": content} for status in sorted({*statuses, 422, 500})
    }
    return (beside or {}) | problems
