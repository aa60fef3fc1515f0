"""What the sweep makes good."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis import Redis
from sqlalchemy import select, update

from services.delivery.sweep import Sweep
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore, utc_now
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue

SWEEP_S = 3.0


@pytest.fixture
def queue(redis_url: str) -> Iterator[TaskQueue]:
    Redis.from_url(redis_url).flushall()
    queue = TaskQueue(redis_url)
    yield queue
    queue.close()


@pytest.fixture
def sweep(settings: Settings, store: StudyStore, jobs: JobStore, queue: TaskQueue) -> Sweep:
    return Sweep(settings.model_copy(update={"sweep_s": SWEEP_S}), store, jobs, queue)


def let_pass(seconds: float, database: Database) -> None:
    """As if every job had last changed so much earlier."""
    with database.write() as session:
        for job in session.scalars(select(JobRow)):
            job.updated_at -= timedelta(seconds=seconds)


def queued_job(jobs: JobStore, series: str = "1.2.3") -> JobRow:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid=series, calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test", priority=Priority.STAT)
    return jobs.get(job.id)


def test_jobs_are_enqueued_again_after_redis_was_emptied(
    sweep: Sweep, jobs: JobStore, queue: TaskQueue, database: Database, redis_url: str
) -> None:
    job = queued_job(jobs)
    queue.enqueue(job.id, Priority.STAT)
    Redis.from_url(redis_url).flushall()
    assert job.id not in queue.waiting()
    sweep.run()
    assert job.id not in queue.waiting()  # queued a moment ago: its message may be on the way
    let_pass(SWEEP_S + 1.0, database)
    sweep.run()
    assert job.id in queue.waiting()
    sweep.run()
    assert Redis.from_url(redis_url).llen("stat") == 1


def test_a_job_whose_worker_went_silent_is_given_back_to_the_queue(
    sweep: Sweep, jobs: JobStore, queue: TaskQueue, database: Database
) -> None:
    job = queued_job(jobs)
    jobs.claim(job.id, "worker", lease_s=0.05)
    time.sleep(0.1)
    sweep.run()
    assert jobs.get(job.id).state == "queued"
    let_pass(SWEEP_S + 1.0, database)
    sweep.run()
    assert job.id in queue.waiting()


def test_a_failed_attempt_is_followed_by_the_next_after_a_wait_that_grows(
    sweep: Sweep, jobs: JobStore, queue: TaskQueue, database: Database
) -> None:
    job = queued_job(jobs)

    def is_enqueued(waited_s: float) -> bool:
        with database.write() as session:
            for one in session.scalars(select(JobRow)):
                one.updated_at -= timedelta(seconds=waited_s)
                assert one.not_before is not None
                one.not_before -= timedelta(seconds=waited_s)
        sweep.run()
        return job.id in queue.waiting()

    for longest_s in (5, 15):
        jobs.claim(job.id, "worker", lease_s=60)
        jobs.fail(job.id, "worker", code="internal", message="disk", max_attempts=9)
        assert not is_enqueued(longest_s - 1)
    assert is_enqueued(2)


def test_as_many_messages_as_jobs_are_enough_whosever_ids_they_carry(
    sweep: Sweep, jobs: JobStore, queue: TaskQueue, database: Database, redis_url: str
) -> None:
    made = [queued_job(jobs, series) for series in ("1.2.3", "1.2.4", "1.2.5")]
    for job in made[:2]:
        queue.enqueue(job.id, Priority.STAT)
    jobs.claim(made[1].id, "a worker that got another job's message", lease_s=60)
    let_pass(SWEEP_S + 1.0, database)
    sweep.run()
    assert queue.waiting() == {made[0].id, made[1].id}  # two messages, and two jobs wait
    Redis.from_url(redis_url).lpop("stat")
    sweep.run()
    assert len(queue.waiting()) == 2


def test_a_job_directory_that_no_job_knows_is_removed_after_a_day(
    settings: Settings, store: StudyStore, jobs: JobStore, queue: TaskQueue, database: Database
) -> None:
    names = {name: str(uuid.uuid4()) for name in ("stale", "fresh", "older than the database")}
    known = queued_job(jobs).id
    ages_days = {names["stale"]: 2, names["fresh"]: 0, names["older than the database"]: 9, known: 2}
    for name, days in ages_days.items():
        directory = store.job_directory(name)
        (directory / "input").mkdir(parents=True)
        os.utime(directory, (time.time() - days * 86400,) * 2)

    def left_after_sweep() -> set[str]:
        Sweep(settings, store, jobs, queue).run()
        return {path.name for path in (store.data_dir / "jobs").iterdir()}

    assert left_after_sweep() == set(ages_days)  # the database is younger than all of them
    with database.write() as session:
        session.execute(update(JobRow).values(created_at=utc_now() - timedelta(days=5)))
    assert left_after_sweep() == set(ages_days) - {names["stale"]}


def test_without_redis_the_sweep_goes_on_and_says_so_once(
    settings: Settings, store: StudyStore, jobs: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    queue = TaskQueue(f"redis://127.0.0.1:{free_port()}/0")
    sweep = Sweep(settings, store, jobs, queue)
    job = queued_job(jobs)
    jobs.claim(job.id, "worker", lease_s=0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            sweep.run()
    assert jobs.get(job.id).state == "queued"
    assert caplog.text.count("Redis does not answer") == 1
    queue.close()


def test_what_a_dead_process_was_writing_is_removed_after_a_day(sweep: Sweep, store: StudyStore) -> None:
    arriving = store.data_dir / "arriving"
    (arriving / "fresh").write_bytes(b"x")
    (arriving / "stale").write_bytes(b"x")
    (arriving / "stale_directory").mkdir()
    (arriving / "stale_directory" / "file").write_bytes(b"x")
    two_days_ago = time.time() - 2 * 86400
    for name in ("stale", "stale_directory"):
        os.utime(arriving / name, (two_days_ago, two_days_ago))
    sweep.run()
    assert [path.name for path in arriving.iterdir()] == ["fresh"]
