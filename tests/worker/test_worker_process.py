"""Real worker processes on a real Redis: order, one at a time, the end by SIGTERM, and the end by SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import psutil
import pytest

from services.store.jobs import JobStore
from services.store.rows import JobRow, JobState, Priority, Stage
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from worker.node_name import every_node_name, node_name

ROOT = Path(__file__).parents[2]
QueueJob = Callable[..., JobRow]
Start = Callable[..., subprocess.Popen[bytes]]


def start_worker(start: Start, *, stage_s: float = 0.0) -> subprocess.Popen[bytes]:
    return start("tests/worker/threshold_worker.py", STAGE_S=str(stage_s))


def test_a_job_id_in_the_queue_is_all_a_worker_needs(
    start: Start, queue: TaskQueue, queue_job: QueueJob, jobs: JobStore, store: StudyStore
) -> None:
    job = queue_job()
    queue.enqueue(job.id, Priority.ROUTINE)

    start_worker(start)

    _wait_for(lambda: jobs.get(job.id).state == JobState.COMPLETED)
    assert store.result_file(job.id, "findings.json").is_file()


def test_stat_overtakes_routine(start: Start, queue: TaskQueue, queue_job: QueueJob, jobs: JobStore) -> None:
    routine = [queue_job() for _ in range(3)]
    stat = queue_job(priority=Priority.STAT)
    for job in routine:
        queue.enqueue(job.id, Priority.ROUTINE)
    queue.enqueue(stat.id, Priority.STAT)

    start_worker(start)

    _wait_for(lambda: all(jobs.get(job.id).state == JobState.COMPLETED for job in [stat, *routine]))
    began = [jobs.get(job.id).started_at for job in [stat, *routine]]
    assert began == sorted(began)  # type: ignore[type-var]


def test_sigterm_lets_the_job_in_hand_finish_and_leaves_the_next_in_the_queue(
    start: Start, queue: TaskQueue, queue_job: QueueJob, jobs: JobStore
) -> None:
    in_hand, waiting = queue_job(), queue_job()
    worker = start_worker(start, stage_s=0.7)
    queue.enqueue(in_hand.id, Priority.ROUTINE)
    queue.enqueue(waiting.id, Priority.ROUTINE)
    _wait_for(lambda: jobs.get(in_hand.id).stage == Stage.ROI)

    worker.terminate()

    assert worker.wait(timeout=15) == 0
    assert jobs.get(in_hand.id).state == JobState.COMPLETED
    assert jobs.get(waiting.id).state == JobState.QUEUED
    assert queue.waiting() == {waiting.id}


@pytest.mark.fault(
    "worker",
    "kill -9 of the worker, or of its pool's process, in the middle of a job",
    "the second attempt completes it",
)
@pytest.mark.parametrize("victim", ["worker", "its pool's process"])
def test_a_worker_killed_in_the_middle_costs_time_and_nothing_else(
    victim: str, start: Start, queue: TaskQueue, queue_job: QueueJob, jobs: JobStore
) -> None:
    job = queue_job()
    first = start_worker(start, stage_s=30.0)
    queue.enqueue(job.id, Priority.ROUTINE)
    _wait_for(lambda: jobs.get(job.id).stage == Stage.ROI)
    children = psutil.Process(first.pid).children()

    if victim == "worker":
        first.kill()
        first.wait()
        _wait_for(lambda: not any(_is_alive(child) for child in children))  # nobody is left to renew the lease
    else:
        os.kill(children[0].pid, signal.SIGKILL)
        first.terminate()
        first.wait(timeout=30)
    start("-m", "cli.app", "serve", "--only", "relay")
    start_worker(start)

    _wait_for(lambda: jobs.get(job.id).state == JobState.COMPLETED)
    assert jobs.get(job.id).attempts == 2


def test_a_worker_without_networks_ends_and_leaves_the_jobs_alone(
    start: Start, queue: TaskQueue, queue_job: QueueJob, jobs: JobStore, tmp_path: Path
) -> None:
    worker = start("-m", "worker.app", EMBOLENS_PACKAGE_DIR=str(tmp_path / "no package here"))

    assert worker.wait(timeout=60) != 0
    job = queue_job()
    queue.enqueue(job.id, Priority.ROUTINE)
    assert jobs.get(job.id).state == JobState.QUEUED
    assert "no package here" in (tmp_path / "processes.log").read_text()


def test_a_worker_whose_networks_fail_to_load_in_an_unforeseen_way_ends_too(start: Start, tmp_path: Path) -> None:
    worker = start("tests/worker/threshold_worker.py", LOADING_FAILS="PatientName is DOE^JANE")

    assert worker.wait(timeout=60) != 0
    log = (tmp_path / "processes.log").read_text()
    assert "unexpected RuntimeError" in log
    assert "DOE" not in log


def test_every_worker_on_a_machine_has_a_name_of_its_own() -> None:
    assert node_name(1) != node_name(2)


def test_workers_of_one_host_name_and_one_process_id_have_names_of_their_own() -> None:
    """As in two containers: one that crashes must not end the other's job."""
    command = [sys.executable, "-c", "from worker.node_name import node_name; print(node_name(1))"]
    names = [subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() for _ in "ab"]
    assert names[0] != names[1]
    assert all(fnmatchcase(name, every_node_name()) for name in names)


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _wait_for(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
