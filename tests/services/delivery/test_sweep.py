"""What the sweep makes good."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
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

SWEEP_S, LEASE_S = 3.0, 10.0


@pytest.fixture
def queue(redis_url: str) -> Iterator[TaskQueue]:
    Redis.from_url(redis_url).flushall()
    queue = TaskQueue(redis_url)
    yield queue
    queue.close()


@dataclass
class Clock:
    """What the sweep measures with."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sweep(settings: Settings, store: StudyStore, jobs: JobStore, queue: TaskQueue, clock: Clock) -> Sweep:
    return Sweep(settings.model_copy(update={"sweep_s": SWEEP_S, "lease_s": LEASE_S}), store, jobs, queue, clock)


def sweep_for(seconds: float, sweep: Sweep, clock: Clock) -> None:
    """As the relay does, so long."""
    until = clock.seconds + seconds
    while clock.seconds < until:
        clock.seconds = min(until, clock.seconds + SWEEP_S)
        sweep.run()


def queued_job(jobs: JobStore, series: str = "1.2.3") -> JobRow:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid=series, calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test", priority=Priority.STAT)
    return jobs.get(job.id)


def test_jobs_are_enqueued_again_after_redis_was_emptied(
    sweep: Sweep, clock: Clock, jobs: JobStore, queue: TaskQueue, redis_url: str
) -> None:
    job = queued_job(jobs)
    queue.enqueue(job.id, Priority.STAT)
    Redis.from_url(redis_url).flushall()
    assert job.id not in queue.waiting()
    sweep.run()
    assert job.id not in queue.waiting()  # queued a moment ago: its message may be on the way
    sweep_for(SWEEP_S, sweep, clock)
    assert job.id in queue.waiting()
    sweep.run()
    assert Redis.from_url(redis_url).llen("stat") == 1


@pytest.mark.parametrize("clock_set_by_h", [-1, 0, 1])
def test_a_job_whose_worker_went_silent_is_given_back_to_the_queue(
    sweep: Sweep, clock: Clock, jobs: JobStore, queue: TaskQueue, database: Database, clock_set_by_h: int
) -> None:
    job = queued_job(jobs)
    jobs.claim(job.id, "worker", lease_s=LEASE_S)
    with database.write() as session:  # what the clock said when these were written
        for row in session.scalars(select(JobRow)):
            row.updated_at -= timedelta(hours=clock_set_by_h)
            assert row.lease_expires_at is not None
            row.lease_expires_at -= timedelta(hours=clock_set_by_h)
    sweep.run()
    sweep_for(LEASE_S, sweep, clock)
    assert jobs.get(job.id).state == "running"
    sweep_for(SWEEP_S, sweep, clock)
    assert jobs.get(job.id).state == "queued"
    sweep_for(SWEEP_S, sweep, clock)
    assert job.id in queue.waiting()


def test_a_lease_is_not_over_while_its_worker_renews_it(sweep: Sweep, clock: Clock, jobs: JobStore) -> None:
    job = queued_job(jobs)
    jobs.claim(job.id, "worker", lease_s=LEASE_S)
    for _ in range(5):
        sweep_for(LEASE_S, sweep, clock)
        jobs.renew_lease(job.id, "worker", lease_s=LEASE_S)
    assert jobs.get(job.id).state == "running"


def test_time_in_which_the_sweep_could_not_look_is_nobodys_silence(sweep: Sweep, clock: Clock, jobs: JobStore) -> None:
    job = queued_job(jobs)
    jobs.claim(job.id, "worker", lease_s=LEASE_S)
    sweep.run()
    clock.seconds += 10 * LEASE_S  # the database was locked, or this process stopped
    sweep.run()
    assert jobs.get(job.id).state == "running"


def test_a_failed_attempt_is_followed_by_the_next_after_a_wait_that_grows(
    sweep: Sweep, clock: Clock, jobs: JobStore, queue: TaskQueue, database: Database
) -> None:
    job = queued_job(jobs)

    def is_enqueued(waited_s: float) -> bool:
        with database.write() as session:
            for one in session.scalars(select(JobRow)):
                assert one.not_before is not None
                one.not_before -= timedelta(seconds=waited_s)
        sweep_for(waited_s, sweep, clock)
        return job.id in queue.waiting()

    for longest_s in (5, 15):
        jobs.claim(job.id, "worker", lease_s=60)
        jobs.fail(job.id, "worker", code="internal", message="disk", max_attempts=9)
        sweep.run()
        assert not is_enqueued(longest_s - 1)
    assert is_enqueued(2)


def test_as_many_messages_as_jobs_are_enough_whosever_ids_they_carry(
    sweep: Sweep, clock: Clock, jobs: JobStore, queue: TaskQueue, redis_url: str
) -> None:
    made = [queued_job(jobs, series) for series in ("1.2.3", "1.2.4", "1.2.5")]
    for job in made[:2]:
        queue.enqueue(job.id, Priority.STAT)
    jobs.claim(made[1].id, "a worker that got another job's message", lease_s=60)
    sweep.run()
    sweep_for(SWEEP_S + 1.0, sweep, clock)
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
    clock = Clock()
    sweep = Sweep(settings.model_copy(update={"sweep_s": SWEEP_S, "lease_s": 2.0}), store, jobs, queue, clock)
    job = queued_job(jobs)
    jobs.claim(job.id, "worker", lease_s=2.0)
    with caplog.at_level(logging.WARNING):
        sweep.run()
        sweep_for(3 * SWEEP_S, sweep, clock)
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
