"""What is due, who gets it, and when its job is done."""

from __future__ import annotations

import threading
import time

from services.store.jobs import Delivery, JobStore
from services.store.outbox import Outbox
from services.store.rows import OutboxRow

FINDINGS = {"outcome": "no_embolus", "reasons": []}


def finished(jobs: JobStore, *destinations: str, series: str = "1.2.3") -> str:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid=series, calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    deliveries = [Delivery(name, "jobs/x/result/seg.dcm", "1.2", f"{series}.1") for name in destinations]
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
    return job.id


def test_a_claimed_row_is_not_seen_again_before_its_lease_is_over(jobs: JobStore, outbox: Outbox) -> None:
    finished(jobs, "node:PACS")
    (row,) = outbox.claim_due(limit=10, lease_s=0.2)
    assert row.attempts == 1
    assert not outbox.claim_due(limit=10, lease_s=0.2)
    time.sleep(0.25)
    (again,) = outbox.claim_due(limit=10, lease_s=0.2)
    assert (again.id, again.attempts) == (row.id, 2)


def test_two_relays_do_not_get_the_same_row(jobs: JobStore, outbox: Outbox) -> None:
    for number in range(12):
        finished(jobs, "node:PACS", series=f"1.2.{number}")
    claimed: list[OutboxRow] = []
    start = threading.Barrier(3)

    def claim() -> None:
        start.wait()
        for _ in range(6):
            claimed.extend(outbox.claim_due(limit=2, lease_s=60))

    relays = [threading.Thread(target=claim) for _ in range(3)]
    for relay in relays:
        relay.start()
    for relay in relays:
        relay.join()
    assert len(claimed) == 12
    assert len({row.id for row in claimed}) == 12


def test_a_job_is_completed_with_its_last_delivery(jobs: JobStore, outbox: Outbox) -> None:
    job_id = finished(jobs, "node:A", "node:B")
    first, second = outbox.claim_due(limit=10, lease_s=60)
    outbox.delivered(first)
    assert jobs.get(job_id).state == "delivering"
    outbox.delivered(second)
    assert jobs.get(job_id).state == "completed"


def test_two_relays_with_the_last_two_rows_complete_the_job(jobs: JobStore, outbox: Outbox) -> None:
    for number in range(15):
        job_id = finished(jobs, "node:A", "node:B", series=f"1.2.{number}")
        start = threading.Barrier(2)

        def deliver(row: OutboxRow, start: threading.Barrier = start) -> None:
            start.wait()
            outbox.delivered(row)

        relays = [threading.Thread(target=deliver, args=(row,)) for row in outbox.claim_due(limit=2, lease_s=60)]
        for relay in relays:
            relay.start()
        for relay in relays:
            relay.join()
        assert jobs.get(job_id).state == "completed"


def test_rows_of_destinations_that_changed_are_due_at_once(jobs: JobStore, outbox: Outbox) -> None:
    finished(jobs, "node:A", "node:B")
    for row in outbox.claim_due(limit=10, lease_s=60):
        outbox.postpone(row, "no node", wait_s=60)
    outbox.make_due(["node:B", "folder:X"])
    (due,) = outbox.claim_due(limit=10, lease_s=60)
    assert (due.destination, due.attempts) == ("node:B", 1)


def test_a_postponed_row_is_due_later_and_says_why(jobs: JobStore, outbox: Outbox) -> None:
    job_id = finished(jobs, "node:A")
    (row,) = outbox.claim_due(limit=10, lease_s=60)
    outbox.postpone(row, "no association", wait_s=0.2)
    assert outbox.of_job(job_id)[0].last_error == "no association"
    assert not outbox.claim_due(limit=10, lease_s=60)
    time.sleep(0.25)
    assert outbox.claim_due(limit=10, lease_s=60)


def test_a_parked_row_waits_for_a_person(jobs: JobStore, outbox: Outbox) -> None:
    job_id = finished(jobs, "node:A", "node:B")
    first, second = outbox.claim_due(limit=10, lease_s=60)
    outbox.delivered(first)
    outbox.park(second, "refused")
    assert not outbox.claim_due(limit=10, lease_s=60)
    assert jobs.get(job_id).state == "delivering"
    jobs.retry(job_id)
    (again,) = outbox.claim_due(limit=10, lease_s=60)
    assert (again.id, again.attempts) == (second.id, 1)
