"""A job whose process of the pool died with it: the worker, which knows at once, gives it back."""

from __future__ import annotations

import logging
import os
import re
import signal
import uuid

from celery.exceptions import TimeLimitExceeded, WorkerLostError
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import EmbolensError
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import JobState
from worker.node_name import node_name

log = logging.getLogger(__name__)

TIME_LIMIT = "time_limit"
TOOK_TOO_LONG = "the analysis took longer than a job may (EMBOLENS_JOB_TIMEOUT_S)"
WORKER_KILLED = "worker_killed"
WORKER_CRASHED = "worker_crashed"


def lease_owner() -> str:
    """A fencing token for a claim by this process of a pool: the worker's name, and what no other claim has."""
    return f"{_owned_by(os.getppid())}{uuid.uuid4().hex[:8]}"


def give_back(worker_pid: int, error: BaseException, settings: Settings) -> None:
    """End the attempt at the job that this worker's process had now, instead of when the lease runs out."""
    match error:
        case TimeLimitExceeded():
            code, message = TIME_LIMIT, TOOK_TOO_LONG
        case WorkerLostError():
            code, message = cause_of_death(str(error))
        case EmbolensError():
            code, message = error.code, error.message
        case _:
            code, message = "internal", f"unexpected {type(error).__name__}"
    database = Database.of(settings)  # none that the pool's next process would share
    try:
        ended = JobStore(database).fail_for_lost_process(
            _owned_by(worker_pid), code=code, message=message, max_attempts=settings.max_attempts
        )
    except SQLAlchemyError as problem:
        log.error("%s; the lease of its job has to run out first (%s)", message, type(problem).__name__)
        return
    finally:
        database.close()
    for job_id, state in ended.items():
        log.error("job %s: %s; it is %s%s", job_id, message, state, " again" if state is JobState.QUEUED else "")


def cause_of_death(said: str) -> tuple[str, str]:
    """Code and message from how the pool words the end of a process: "... signal 9 (SIGKILL) ..."."""
    if by_signal := re.search(r"signal (\d+)", said):
        number = int(by_signal[1])
        if number == signal.SIGKILL:
            return WORKER_KILLED, "the process was killed (SIGKILL), probably because memory ran out"
        known = {one.value: one.name for one in signal.Signals}
        return WORKER_CRASHED, f"the process crashed ({known.get(number, f'signal {number}')})"
    by_itself = re.search(r"exitcode (\d+)", said)
    return WORKER_CRASHED, f"the process ended by itself (exit code {by_itself[1] if by_itself else 'unknown'})"


def _owned_by(worker_pid: int) -> str:
    return f"{node_name(worker_pid)}:"
