"""Which job starts next, and when another one will; the bound on starvation is in tests/faults/test_overload.py."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, event, update

from imaging.errors import QueueFull
from services.store.database import Database
from services.store.figures import figures_of
from services.store.jobs import Delivery, JobStore, utc_now
from services.store.rows import DeliveryState, JobRow, JobState, Priority
from services.store.waiting_line import WaitingLine

STAT, ROUTINE = Priority.STAT, Priority.ROUTINE
FINDINGS = {"outcome": "no_embolus", "reasons": []}


def queued(jobs: JobStore, priority: Priority = ROUTINE) -> JobRow:
    job, _ = jobs.submit(str(uuid.uuid4()), input_kind="nifti", inputs_digest="d", instance_count=1, priority=priority)
    return job


def test_stat_goes_first_until_a_routine_job_is_overdue(database: Database, jobs: JobStore) -> None:
    patient = WaitingLine(database, routine_longest_wait_s=1800.0)
    impatient = WaitingLine(database, routine_longest_wait_s=0.0)
    assert patient.next_to_start() is None
    routine = queued(jobs)
    stats = [queued(jobs, STAT) for _ in range(5)]
    for stat in stats[:4]:
        assert patient.next_to_start() == impatient.next_to_start() == stat.id
        assert jobs.claim(stat.id, "w", lease_s=60)
    assert patient.next_to_start() == stats[4].id
    assert impatient.next_to_start() == routine.id


def test_workers_that_come_at_once_get_different_jobs_each_at_its_first_try(database: Database, jobs: JobStore) -> None:
    line = WaitingLine(database, routine_longest_wait_s=1800.0)
    waiting = [queued(jobs).id for _ in range(6)]
    claims: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *about: claims.append(str(about[2]).split()[0]))
    with ThreadPoolExecutor(8) as workers:
        started = list(workers.map(lambda k: line.start_next(f"w{k}", lease_s=60), range(8)))
    assert sorted(job.id for job in started if job is not None) == sorted(waiting)
    assert claims.count("UPDATE") == 6
    held = {job.id: (job.state, job.lease_owner) for job in started if job is not None}
    assert held == {job.id: ("running", jobs.get(job.id).lease_owner) for job in started if job is not None}


def test_a_job_whose_attempt_failed_lets_others_go_first_until_its_wait_is_over(
    database: Database, jobs: JobStore
) -> None:
    line = WaitingLine(database, routine_longest_wait_s=1800.0)
    failed, other = queued(jobs, STAT), queued(jobs)
    jobs.claim(failed.id, "w", lease_s=60)
    jobs.fail(failed.id, "w", code="internal", message="disk", max_attempts=3)
    assert line.next_to_start() == other.id
    jobs.claim(other.id, "w", lease_s=60)
    assert line.next_to_start() is None
    with database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == failed.id).values(not_before=utc_now()))
    assert line.next_to_start() == failed.id


def test_what_is_next_is_found_by_indexes_alone(database: Database, jobs: JobStore) -> None:
    if not database.is_sqlite:
        return  # the plan for a table of a few rows says nothing there
    for priority in (STAT, ROUTINE):
        queued(jobs, priority)
    plans: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def explain(connection: Connection, _: object, statement: str, parameters: object, *__: object) -> None:
        if statement.startswith("SELECT"):
            asked = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in asked)

    WaitingLine(database, routine_longest_wait_s=0.0).next_to_start()
    assert plans == [
        "SEARCH jobs USING INDEX ix_jobs_queue (state=? AND priority=? AND queued_at>?)",
        "SEARCH jobs USING INDEX ix_jobs_queue (state=? AND priority=? AND queued_at>?)",
        "SEARCH jobs USING INDEX ix_jobs_started (started_at<?)",
    ]


def test_the_wait_is_told_by_what_the_last_jobs_took(database: Database, jobs: JobStore) -> None:
    line = WaitingLine(database, routine_longest_wait_s=1800.0)
    assert line.expected_wait_s(0) is None
    for seconds in (60.0, 120.0):
        job = jobs.claim(queued(jobs).id, "w", lease_s=60)
        assert job is not None
        jobs.finish(job.id, "w", findings=FINDINGS, stage_seconds={"unet": seconds}, deliveries=())
    assert line.expected_wait_s(1) == 180.0
    for _ in range(2):
        jobs.claim(queued(jobs).id, "w", lease_s=60)
    assert line.expected_wait_s(1) == 90.0  # two at once


def test_a_full_line_counts_only_stat_studies_for_a_stat_study(database: Database, jobs: JobStore) -> None:
    line = WaitingLine(database, routine_longest_wait_s=1800.0, queue_max_jobs=2)
    for priority in (ROUTINE, STAT):
        line.make_sure_of_room(ROUTINE)
        queued(jobs, priority)
    with pytest.raises(QueueFull, match="2 studies wait already") as full:
        line.make_sure_of_room(ROUTINE)
    assert full.value.retry_after_s == 5
    line.make_sure_of_room(STAT)
    WaitingLine(database, routine_longest_wait_s=1800.0).make_sure_of_room(ROUTINE)  # no bound


def test_figures_are_of_what_waits(database: Database, jobs: JobStore) -> None:
    assert figures_of(database).oldest_queued_s == {STAT: 0.0, ROUTINE: 0.0}
    done = queued(jobs)
    queued(jobs, STAT)
    jobs.claim(done.id, "w", lease_s=60)
    told = [Delivery(to, "x", "1.2", "1.3") for to in ("node:A", "node:B")]
    jobs.finish(done.id, "w", findings=FINDINGS, stage_seconds={}, deliveries=told)
    figures = figures_of(database)
    assert (figures.jobs[JobState.QUEUED], figures.jobs[JobState.DELIVERING]) == (1, 1)
    assert figures.queued == {STAT: 1, ROUTINE: 0}
    assert figures.oldest_queued_s[STAT] > 0
    assert figures.undelivered == {("node:A", DeliveryState.PENDING): 1, ("node:B", DeliveryState.PENDING): 1}
    assert min(figures.oldest_undelivered_s.values()) > 0
