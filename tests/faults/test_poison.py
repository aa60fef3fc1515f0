"""Studies that harm the worker which works on them: each costs its own job and nothing else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable

import pytest

from services.store.jobs import JobStore
from services.store.rows import JobRow, JobState, Priority
from services.task_queue import TaskQueue
from tests.worker.conftest import jobs, queue, queue_job, start, store  # noqa: F401

Start = Callable[..., subprocess.Popen[bytes]]
HARM = {
    3001: ("worker_crashed", "SIGSEGV"),
    3002: ("worker_killed", "SIGKILL"),
    3003: ("out_of_memory", "more memory"),
}
DELAY = {3004: ("time_limit", "longer than a job may"), 3005: ("time_limit", "longer than a job may")}


@pytest.fixture
def poisoned(
    start: Start,  # noqa: F811
    queue: TaskQueue,  # noqa: F811
    queue_job: Callable[..., JobRow],  # noqa: F811
    jobs: JobStore,  # noqa: F811
) -> Callable[..., list[JobRow]]:
    """The failed jobs of such studies, worked on by one worker that outlived them and analysed two others."""

    def work_on(studies: Iterable[int], **settings: str) -> list[JobRow]:
        ids = [queue_job(poison_hu=hu).id for hu in studies]
        harmless = queue_job().id
        settings |= {"EMBOLENS_LEASE_S": "300"}  # nobody may have to wait for it
        worker = start("tests/worker/threshold_worker.py", **settings)
        start("-m", "cli.app", "serve", "--only", "relay", **settings)
        for job_id in [*ids, harmless]:
            queue.enqueue(job_id, Priority.ROUTINE)
        _wait_for(lambda: all(jobs.get(job_id).state == JobState.FAILED for job_id in ids))
        last = queue_job().id
        queue.enqueue(last, Priority.ROUTINE)
        for job_id in (harmless, last):
            _wait_for(lambda job_id=job_id: jobs.get(job_id).state == JobState.COMPLETED)  # type: ignore[misc]
            assert jobs.get(job_id).attempts == 1
        assert worker.poll() is None
        return [jobs.get(job_id) for job_id in ids]

    return work_on


@pytest.mark.fault(
    area="poison studies",
    broken="studies that make the process crash (SIGSEGV), have it killed (SIGKILL) or take all its memory",
    promise="each is tried 3 times and failed with its cause; the worker lives on and analyses the other studies",
)
def test_a_study_that_harms_its_process_fails_with_the_cause_and_the_next_is_analysed(
    poisoned: Callable[..., list[JobRow]],
) -> None:
    ended = poisoned(HARM, EMBOLENS_WORKER_MEMORY_BYTES=str(1 << 29))

    assert [(job.error_code, job.attempts) for job in ended] == [(code, 3) for code, _ in HARM.values()]
    for job, (_, said) in zip(ended, HARM.values(), strict=True):
        assert said in (job.error_message or "")


@pytest.mark.fault(
    area="poison studies",
    broken="studies whose analysis never ends, in Python and as in C code that hears no signal",
    promise="each attempt is ended by the time limit, the job failed after the last; the other studies are analysed",
)
def test_a_study_that_takes_for_ever_fails_by_the_time_limit_and_the_next_is_analysed(
    poisoned: Callable[..., list[JobRow]],
) -> None:
    ended = poisoned(DELAY, EMBOLENS_JOB_TIMEOUT_S="1", EMBOLENS_MAX_ATTEMPTS="2")

    assert [(job.error_code, job.attempts) for job in ended] == [(code, 2) for code, _ in DELAY.values()]
    for job, (_, said) in zip(ended, DELAY.values(), strict=True):
        assert said in (job.error_message or "")


def _wait_for(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
