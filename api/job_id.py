"""The job that a path names."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import Depends

from imaging.errors import NotFound


def possible_job_id(job_id: str) -> str:
    """The id as the database writes it. What is no UUID names no job, and the database is not asked.

    Raises:
        NotFound: no UUID.
    """
    try:
        return str(uuid.UUID(job_id))
    except ValueError:
        raise NotFound(f"no job {job_id[:64]!r}") from None


JobId = Annotated[str, Depends(possible_job_id)]
