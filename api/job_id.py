"""The job that a path names: one that the caller may see."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import Depends

from api.authentication import Caller
from api.gateway import OpenGateway
from imaging.errors import NotFound


def visible_job_id(job_id: str, gateway: OpenGateway, caller: Caller) -> str:
    """The id as the database writes it. What is no UUID names no job, and the database is not asked.

    Raises:
        NotFound: no UUID, no such job, or another tenant's: the answer is the same.
    """
    known = checked_job_id(job_id)
    if not caller.sees(gateway.jobs.get(known).tenant):
        raise NotFound(f"no job {known!r}")
    return known


def checked_job_id(job_id: str) -> str:
    """The id as the database writes it. Raises NotFound where it is no UUID."""
    try:
        return str(uuid.UUID(job_id))
    except ValueError:
        raise NotFound(f"no job {job_id[:64]!r}") from None


JobId = Annotated[str, Depends(visible_job_id)]
