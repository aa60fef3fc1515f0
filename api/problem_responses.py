"""Problem documents in the OpenAPI description: which statuses a route answers with, and when."""

from __future__ import annotations

from typing import Any

from api.problems import MEDIA_TYPE

_MEANINGS = {
    400: "The multipart body is malformed",
    404: "No such job, or the job has no such file; no such node, rule or retrieval",
    409: "The job's state does not allow this, or the Idempotency-Key is in use",
    413: "Over a limit of bytes or files",
    415: "Neither multipart/form-data nor one of the raw media types",
    422: "Invalid parameters, or an input that cannot be analysed (with coded reasons)",
    500: "An error inside Embolens",
    503: "Something the gateway depends on does not answer",
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
