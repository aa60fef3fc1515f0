"""The states of a job: who may change what, and who wins when two want it."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, update

from imaging.errors import Cancelled, NotFound, Reason, StateConflict
from services.dicomweb.held_index import HeldIndex
from services.store.database import Database
from services.store.jobs import Delivery, JobFilter, JobStore, LeaseAnswer
from services.store.outbox import Outbox
from services.store.rows import JobRow, JobState, Priority, Source, Stage
from services.store.study_store import StudyStore

FINDINGS = {"outcome": "no_embolus", "reasons": []}
REASON = Reason("intake.too_few_slices", "3 slices, at least 20 are asked for")


def receiving(jobs: JobStore, series: str = "1.2.3") -> JobRow:
    return jobs.open_receiving(study_instance_uid="1.2", series_instance_uid=series, calling_ae_title="CT1")


def queued(jobs: JobStore, series: str = "1.2.3", priority: Priority = Priority.ROUTINE) -> JobRow:
    job = receiving(jobs, series)
    jobs.complete_intake(job.id, inputs_digest="digest", instance_count=5, completion_reason="quiet", priority=priority)
    return jobs.get(job.id)


def running(jobs: JobStore, owner: str = "a", lease_s: float = 60.0) -> JobRow:
    job = jobs.claim(queued(jobs).id, owner, lease_s=lease_s)
    assert job is not None
    return job


def upload(jobs: JobStore, key: str | None = None, digest: str | None = None) -> tuple[JobRow, bool]:
    return jobs.submit(
        str(uuid.uuid4()),
        input_kind="nifti",
        inputs_digest="d",
        instance_count=1,
        priority=Priority.ROUTINE,
        idempotency_key=key,
        request_digest=digest,
    )


def race(number: int, contender: Callable[[int], Any]) -> list[Any]:
    """What each of several threads got that did the same at the same time."""
    answers: list[Any] = [None] * number
    start = threading.Barrier(number)

    def run(k: int) -> None:
        start.wait()
        try:
            answers[k] = contender(k)
        except StateConflict as error:
            answers[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_of_a_host_name_that_is_too_long_the_beginning_is_kept(jobs: JobStore) -> None:
    job = jobs.open_receiving(
        study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1", calling_address=84 * "a"
    )
    assert jobs.get(job.id).calling_address == 64 * "a"


def test_a_job_goes_from_receiving_to_completed(jobs: JobStore, outbox: Outbox) -> None:
    job = receiving(jobs)
    assert (job.state, job.source) == ("receiving", "dicom")
    jobs.count_received(job.id, 3)
    assert jobs.get(job.id).instance_count == 3
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=5, completion_reason="quiet for 20 s")
    assert jobs.get(job.id).state == "queued"
    claimed = jobs.claim(job.id, "worker", lease_s=60)
    assert claimed is not None
    assert (claimed.state, claimed.stage, claimed.attempts) == ("running", "load", 1)
    jobs.renew_lease(job.id, "worker", lease_s=60, reached=(Stage.AANET, 0.5))
    assert (jobs.get(job.id).stage, jobs.get(job.id).progress) == ("aanet", 0.5)
    delivery = Delivery("node:PACS", "jobs/x/result/seg.dcm", "1.2", "1.2.3")
    jobs.finish(job.id, "worker", findings=FINDINGS, stage_seconds={"roi": 1.5}, deliveries=[delivery])
    delivering = jobs.get(job.id)
    assert (delivering.state, delivering.outcome, delivering.finished_at) == ("delivering", "no_embolus", None)
    assert delivering.stage_seconds == {"roi": 1.5}
    (row,) = outbox.claim_due(limit=10, lease_s=60)
    outbox.delivered(row)
    assert jobs.get(job.id).state == "completed"
    assert jobs.get(job.id).finished_at is not None


def test_without_a_destination_a_job_is_completed_at_once(jobs: JobStore) -> None:
    job = running(jobs)
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[])
    assert jobs.get(job.id).state == "completed"


def test_an_unknown_job_is_not_found(jobs: JobStore) -> None:
    for call in (jobs.get, jobs.cancel, jobs.retry):
        with pytest.raises(NotFound):
            call("nobody")
    assert jobs.claim("nobody", "a", lease_s=1) is None


# Intake


def test_a_series_has_one_receiving_job_also_when_two_open_it(jobs: JobStore) -> None:
    opened = race(4, lambda _: receiving(jobs).id)
    assert set(opened) == {receiving(jobs).id}


def test_late_slices_call_off_the_earlier_job(jobs: JobStore) -> None:
    first = queued(jobs)
    second = receiving(jobs)
    assert second.supersedes == first.id
    assert jobs.get(first.id).state == "queued"  # until the new state of the series is complete
    jobs.complete_intake(second.id, inputs_digest="e", instance_count=6, completion_reason="quiet")
    assert jobs.get(first.id).state == "cancelled"
    assert jobs.get(first.id).error_code == "superseded"


def test_late_slices_stop_a_worker_on_the_earlier_job(jobs: JobStore) -> None:
    first = running(jobs)
    second = queued(jobs)
    assert second.supersedes == first.id
    assert jobs.renew_lease(first.id, "a", lease_s=60) is LeaseAnswer.CANCEL_REQUESTED
    jobs.finish_cancelled(first.id, "a")
    assert jobs.get(first.id).state == "cancelled"


def test_a_finished_job_stays_finished_when_late_slices_come(jobs: JobStore) -> None:
    first = running(jobs)
    jobs.finish(first.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[])
    second = queued(jobs)
    assert second.supersedes == first.id
    assert jobs.get(first.id).state == "completed"


DELIVERIES = [Delivery(f"node:{name}", "jobs/x/result/seg.dcm", "1.2", "1.2.3.1") for name in ("A", "B")]


@pytest.mark.parametrize("set_aside", [False, True])
def test_late_slices_withdraw_a_result_that_is_not_delivered(jobs: JobStore, outbox: Outbox, set_aside: bool) -> None:
    first = running(jobs)
    jobs.finish(first.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=DELIVERIES)
    sent, parked = outbox.claim_due(limit=2, lease_s=0)
    outbox.delivered(sent)
    outbox.park(parked, "refused")
    second = receiving(jobs)
    assert jobs.get(first.id).state == "delivering"
    if set_aside:
        jobs.set_aside(second.id, [REASON], inputs_digest="e", instance_count=6, completion_reason="quiet")
    else:
        jobs.complete_intake(second.id, inputs_digest="e", instance_count=6, completion_reason="quiet")
    assert (jobs.get(first.id).state, jobs.get(first.id).error_code) == ("cancelled", "superseded")
    assert [row.state for row in outbox.of_job(first.id)] == ["delivered"]
    assert not outbox.claim_due(limit=2, lease_s=60)


REFUSAL = {"outcome": "not_analysable", "reasons": [{"code": "geometry.missing_slices", "text": "3"}]}


def test_the_report_on_a_job_that_was_not_analysable_is_delivered_and_changes_no_state(
    jobs: JobStore, outbox: Outbox
) -> None:
    job = running(jobs)
    jobs.finish_not_analysable(job.id, "a", REFUSAL, DELIVERIES)
    for row in outbox.claim_due(limit=2, lease_s=60):
        outbox.delivered(row)
    assert [row.state for row in outbox.of_job(job.id)] == ["delivered", "delivered"]
    assert jobs.get(job.id).state == "not_analysable"


def test_late_slices_withdraw_a_report_that_is_not_delivered(jobs: JobStore, outbox: Outbox) -> None:
    first = running(jobs)
    jobs.finish_not_analysable(first.id, "a", REFUSAL, DELIVERIES)
    outbox.delivered(outbox.claim_due(limit=1, lease_s=60)[0])
    queued(jobs)
    assert jobs.get(first.id).state == "not_analysable"
    assert [row.state for row in outbox.of_job(first.id)] == ["delivered"]


def test_trying_again_withdraws_the_report_that_nothing_can_be_said(jobs: JobStore, outbox: Outbox) -> None:
    job = running(jobs)
    jobs.finish_not_analysable(job.id, "a", REFUSAL, DELIVERIES)
    jobs.retry(job.id)
    assert outbox.of_job(job.id) == []


def test_a_superseded_job_is_not_tried_again_while_a_newer_one_counts(jobs: JobStore) -> None:
    first, second, third = queued(jobs), queued(jobs), queued(jobs)
    for earlier in (first, second):
        with pytest.raises(StateConflict, match=third.id):
            jobs.retry(earlier.id)
    jobs.cancel(third.id)
    assert jobs.retry(second.id).state == "queued"
    with pytest.raises(StateConflict, match=second.id):
        jobs.retry(first.id)


def test_a_job_set_aside_can_be_worked_on_all_the_same(jobs: JobStore) -> None:
    job = receiving(jobs)
    jobs.set_aside(job.id, [REASON], inputs_digest="d", instance_count=3, completion_reason="quiet")
    again = jobs.retry(job.id)
    assert (again.state, again.outcome, again.reasons) == ("queued", None, [REASON.to_dict()])


def test_trying_a_job_again_that_was_not_analysable_forgets_why_it_was_not(jobs: JobStore) -> None:
    job = receiving(jobs)
    jobs.set_aside(job.id, [REASON], inputs_digest="d", instance_count=3, completion_reason="quiet")
    jobs.retry(job.id)
    jobs.claim(job.id, "a", lease_s=60)
    unreadable = {"code": "pixels.unreadable", "text": "torn"}
    jobs.finish_not_analysable(job.id, "a", {"outcome": "not_analysable", "reasons": [unreadable]})
    assert jobs.get(job.id).reasons == [unreadable, REASON.to_dict()]
    again = jobs.retry(job.id)
    assert (again.findings, again.reasons) == (None, [REASON.to_dict()])


def test_a_job_set_aside_keeps_its_reasons(jobs: JobStore) -> None:
    job = receiving(jobs)
    jobs.set_aside(job.id, [REASON], instance_count=3, completion_reason="quiet")
    job = jobs.get(job.id)
    assert (job.state, job.outcome, job.reasons) == ("not_analysable", "not_analysable", [REASON.to_dict()])


def test_a_series_was_taken_in_by_the_jobs_that_recorded_it(jobs: JobStore) -> None:
    jobs.cancel(receiving(jobs).id)
    assert not jobs.that_took_in("1.2", "1.2.3")
    job = queued(jobs)
    jobs.cancel(job.id)
    assert jobs.that_took_in("1.2", "1.2.3") == [job.id]
    assert not jobs.that_took_in("1.2", "1.2.4")


def test_a_dropped_job_is_cancelled_and_superseded_by_nobody(jobs: JobStore) -> None:
    job = receiving(jobs)
    jobs.drop_receiving(job.id, reason="nothing new was received")
    assert (jobs.get(job.id).state, jobs.get(job.id).completion_reason) == ("cancelled", "nothing new was received")
    assert receiving(jobs).supersedes is None
    with pytest.raises(StateConflict):
        jobs.drop_receiving(job.id, reason="again")


# Uploads


def test_an_idempotency_key_gives_the_same_job_for_the_same_request(jobs: JobStore) -> None:
    first, created = upload(jobs, "key", "request")
    assert created
    again, created = upload(jobs, "key", "request")
    assert (again.id, created) == (first.id, False)
    assert upload(jobs, "other", "request")[1]
    assert upload(jobs)[1]
    assert upload(jobs)[1]


def test_an_idempotency_key_for_another_request_is_a_conflict(jobs: JobStore) -> None:
    upload(jobs, "key", "request")
    with pytest.raises(StateConflict) as raised:
        upload(jobs, "key", "another")
    assert raised.value.code == "idempotency_key_reused"


def test_of_two_uploads_with_one_key_at_once_one_makes_the_job(jobs: JobStore) -> None:
    answers = race(4, lambda _: upload(jobs, "key", "request"))
    assert len({job.id for job, _ in answers}) == 1
    assert [created for _, created in answers].count(True) == 1


# Workers


def test_of_workers_that_claim_at_once_one_gets_the_job(jobs: JobStore) -> None:
    job = queued(jobs)
    claims = race(6, lambda k: jobs.claim(job.id, f"worker {k}", lease_s=60))
    (won,) = [claim for claim in claims if claim is not None]
    assert jobs.get(job.id).lease_owner == won.lease_owner
    assert jobs.get(job.id).attempts == 1


def test_only_who_holds_the_lease_may_finish(jobs: JobStore) -> None:
    job = running(jobs, "a")
    assert jobs.renew_lease(job.id, "b", lease_s=60) is LeaseAnswer.LOST
    for finish in (
        lambda: jobs.finish(job.id, "b", findings=FINDINGS, stage_seconds={}, deliveries=[]),
        lambda: jobs.finish_not_analysable(job.id, "b", FINDINGS),
        lambda: jobs.finish_cancelled(job.id, "b"),
        lambda: jobs.fail(job.id, "b", code="x", message="y", max_attempts=3),
    ):
        with pytest.raises(StateConflict):
            finish()
    assert jobs.get(job.id).state == "running"
    jobs.renew_lease(job.id, "b", lease_s=60, reached=(Stage.WRITE, 0.9))
    assert jobs.get(job.id).stage == "load"


def test_late_slices_replace_the_newest_job_although_the_clock_was_set_back(jobs: JobStore, database: Database) -> None:
    first = queued(jobs)
    with database.write() as session:
        session.execute(update(JobRow).values(created_at=first.created_at + timedelta(hours=1)))
    second = queued(jobs)
    third = queued(jobs)
    assert (second.supersedes, third.supersedes) == (first.id, second.id)
    with pytest.raises(StateConflict, match=third.id):
        jobs.retry(first.id)


def test_a_silent_workers_job_is_given_to_another_whose_result_counts(jobs: JobStore) -> None:
    job = running(jobs, "a", lease_s=0.05)
    assert jobs.renew_lease(job.id, "a", lease_s=0.05) is LeaseAnswer.HELD
    renewed = jobs.leases()
    assert jobs.renew_lease(job.id, "a", lease_s=0.05) is LeaseAnswer.HELD
    assert jobs.take_back_expired(renewed, max_attempts=3) == []  # it is another one since
    assert jobs.take_back_expired(jobs.leases(), max_attempts=3) == [job.id]
    assert jobs.renew_lease(job.id, "a", lease_s=60) is LeaseAnswer.LOST
    assert jobs.claim(job.id, "b", lease_s=60) is not None
    with pytest.raises(StateConflict):
        jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[])
    jobs.finish(job.id, "b", findings=FINDINGS, stage_seconds={}, deliveries=[])


def test_a_job_that_kills_its_workers_fails_in_the_end(jobs: JobStore) -> None:
    job = queued(jobs)
    for attempt in (1, 2, 3):
        assert jobs.claim(job.id, f"worker {attempt}", lease_s=0.0) is not None
        assert jobs.take_back_expired(jobs.leases(), max_attempts=3) == ([job.id] if attempt < 3 else [])
    ended = jobs.get(job.id)
    assert (ended.state, ended.error_code, ended.attempts) == ("failed", "worker_lost", 3)


def test_a_job_handed_back_waits_again_and_that_was_no_attempt(jobs: JobStore) -> None:
    job = running(jobs)
    with pytest.raises(StateConflict):
        jobs.hand_back(job.id, "b", code="worker_ending", message="told to end")
    jobs.hand_back(job.id, "a", code="worker_ending", message="told to end")
    assert (jobs.get(job.id).state, jobs.get(job.id).attempts, jobs.get(job.id).lease_owner) == ("queued", 0, None)
    assert jobs.renew_lease(job.id, "a", lease_s=60) is LeaseAnswer.LOST


def test_a_failure_is_tried_again_before_the_job_fails(jobs: JobStore) -> None:
    job = running(jobs)
    assert jobs.fail(job.id, "a", code="gpu", message="out of memory", max_attempts=2) is JobState.QUEUED
    assert jobs.claim(job.id, "a", lease_s=60) is not None
    assert jobs.fail(job.id, "a", code="gpu", message="out of memory", max_attempts=2) is JobState.FAILED
    assert (jobs.get(job.id).error_code, jobs.get(job.id).error_message) == ("gpu", "out of memory")


def test_a_success_leaves_no_error_of_an_earlier_attempt(jobs: JobStore) -> None:
    job = running(jobs)
    jobs.fail(job.id, "a", code="gpu", message="lost", max_attempts=2)
    jobs.claim(job.id, "a", lease_s=60)
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[])
    assert (jobs.get(job.id).error_code, jobs.get(job.id).error_message) == (None, None)


def test_a_result_that_comes_after_the_cancel_does_not_count(jobs: JobStore) -> None:
    job = running(jobs)
    jobs.cancel(job.id)
    assert jobs.look_at_lease(job.id, "a") is LeaseAnswer.CANCEL_REQUESTED
    with pytest.raises(Cancelled):
        jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[])
    with pytest.raises(Cancelled):
        jobs.finish_not_analysable(job.id, "a", FINDINGS)
    with pytest.raises(StateConflict):
        jobs.finish(job.id, "b", findings=FINDINGS, stage_seconds={}, deliveries=[])
    assert jobs.get(job.id).state == "running"


def test_a_job_whose_process_died_is_given_back_by_who_knows_how_its_owner_begins(jobs: JobStore) -> None:
    job = running(jobs, owner="embolens-7@pc_1:3f")
    lost = {"code": "worker_killed", "message": "killed", "max_attempts": 2}
    for other in ("embolens-71@pc_1:", "embolens-7@pcx1:", "embolens%"):
        assert jobs.fail_for_lost_process(other, **lost) == {}
    assert jobs.fail_for_lost_process("embolens-7@pc_1:", **lost) == {job.id: JobState.QUEUED}
    assert (jobs.get(job.id).error_code, jobs.get(job.id).lease_owner) == ("worker_killed", None)
    assert jobs.fail_for_lost_process("embolens-7@pc_1:", **lost) == {}


def test_a_look_at_the_lease_tells_whose_it_is(jobs: JobStore) -> None:
    job = running(jobs)
    assert jobs.look_at_lease(job.id, "a") is LeaseAnswer.HELD
    assert jobs.look_at_lease(job.id, "b") is LeaseAnswer.LOST


# People


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_workers_next_look(jobs: JobStore) -> None:
    waiting = queued(jobs, "1.2.4")
    assert jobs.cancel(waiting.id).state == "cancelled"
    assert jobs.claim(waiting.id, "a", lease_s=60) is None
    assert jobs.cancel(waiting.id).state == "cancelled"  # twice is once
    busy = running(jobs)
    assert jobs.cancel(busy.id).state == "running"
    assert jobs.renew_lease(busy.id, "a", lease_s=60) is LeaseAnswer.CANCEL_REQUESTED
    jobs.finish_cancelled(busy.id, "a")
    assert jobs.get(busy.id).state == "cancelled"


def test_a_cancelled_job_whose_worker_dies_is_not_tried_again(jobs: JobStore) -> None:
    job = running(jobs, lease_s=0.0)
    jobs.cancel(job.id)
    assert jobs.take_back_expired(jobs.leases(), max_attempts=3) == []
    assert jobs.get(job.id).state == "cancelled"


def test_an_ended_job_cannot_be_cancelled(jobs: JobStore) -> None:
    job = running(jobs)
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[])
    with pytest.raises(StateConflict):
        jobs.cancel(job.id)


def test_a_failed_or_cancelled_job_can_be_tried_again_from_the_start(jobs: JobStore) -> None:
    failed = running(jobs)
    jobs.fail(failed.id, "a", code="gpu", message="lost", max_attempts=1)
    again = jobs.retry(failed.id)
    assert (again.state, again.attempts, again.error_code) == ("queued", 0, None)
    jobs.cancel(failed.id)
    again = jobs.retry(failed.id)
    assert (again.state, again.cancel_requested) == ("queued", False)
    with pytest.raises(StateConflict):
        jobs.retry(failed.id)


def test_a_job_cancelled_before_its_inputs_were_recorded_cannot_be_tried_again(jobs: JobStore) -> None:
    job = receiving(jobs)
    jobs.cancel(job.id)
    with pytest.raises(StateConflict):
        jobs.retry(job.id)


# Looking


def test_ids_that_no_job_has_are_told(jobs: JobStore) -> None:
    assert jobs.first_created_at() is None
    job, newer = queued(jobs), queued(jobs, "1.2.4")
    assert jobs.unknown_among([job.id, newer.id, "nobody"]) == {"nobody"}
    assert jobs.first_created_at() == job.created_at


def test_pages_follow_each_other_without_gap_or_overlap(jobs: JobStore) -> None:
    made = [upload(jobs)[0].id for _ in range(7)]
    seen: list[str] = []
    last = None
    while page := jobs.page(JobFilter(), limit=3, after=last):
        seen += [job.id for job in page]
        last = page[-1]
        upload(jobs)  # what comes in meanwhile is newer and changes no later page
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(), "ix_jobs_created"),
        (JobFilter(tenant="default"), "ix_jobs_tenant_created"),
        (JobFilter(state=JobState.QUEUED), "ix_jobs_state_created"),
        (JobFilter(study_instance_uid="1.2.3"), "ix_jobs_study"),
    ],
)
def test_a_page_begins_where_the_one_before_ended(
    jobs: JobStore, database: Database, wanted: JobFilter, index: str
) -> None:
    """Nothing before it is read: the index is entered at the cursor, at any depth."""
    last = upload(jobs)[0]
    plan = "\n".join(_plan_of(database, lambda: jobs.page(wanted, limit=3, after=last)))
    assert index in plan, plan
    if wanted.study_instance_uid is None:  # of a study there are few
        assert re.search(r"created_at<\?" if database.is_sqlite else r"Index Cond: .*created_at <=", plan), plan


def test_a_search_looks_at_changed_jobs_alone(jobs: JobStore, database: Database, tmp_path: Path) -> None:
    upload(jobs)
    index = HeldIndex(database, StudyStore(tmp_path))
    assert "ix_jobs_not_indexed" in "\n".join(_plan_of(database, lambda: index.update(most_jobs=50)))


def _plan_of(database: Database, ask: Callable[[], object]) -> list[str]:
    """How the database answers the first question of `ask` about jobs."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT jobs."):
            asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    ask()
    event.remove(database.engine, "before_cursor_execute", note)
    statement, parameters = asked[0]
    with database.engine.connect() as connection:
        if database.is_sqlite:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [row[3] for row in plan]
        for way in ("seqscan", "bitmapscan"):  # as with a table that is not almost empty
            connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        return [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]


def test_pages_can_be_filtered(jobs: JobStore) -> None:
    uploaded = upload(jobs)[0]
    urgent = queued(jobs, "1.2.5", Priority.STAT)
    for wanted, expected in (
        (JobFilter(source=Source.REST), [uploaded.id]),
        (JobFilter(priority=Priority.STAT), [urgent.id]),
        (JobFilter(series_instance_uid="1.2.5"), [urgent.id]),
        (JobFilter(state=JobState.QUEUED), [urgent.id, uploaded.id]),
        (JobFilter(state=JobState.FAILED), []),
    ):
        assert [job.id for job in jobs.page(wanted, limit=10)] == expected


def test_stat_goes_before_routine_in_the_queue(jobs: JobStore) -> None:
    routine = [queued(jobs, f"1.2.{k}") for k in range(2)]
    stat = queued(jobs, "1.2.9", Priority.STAT)
    assert [jobs.queue_position(jobs.get(job.id)) for job in (stat, *routine)] == [0, 1, 2]
    assert jobs.queue_positions() == {stat.id: 0, routine[0].id: 1, routine[1].id: 2}
    jobs.claim(stat.id, "a", lease_s=60)
    assert jobs.queue_position(jobs.get(stat.id)) is None


def test_times_come_back_in_utc(jobs: JobStore, database: Database) -> None:
    job = jobs.get(receiving(jobs).id)
    assert job.created_at.utcoffset() is not None
    assert abs(time.time() - job.created_at.timestamp()) < 5
