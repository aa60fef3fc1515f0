"""What is due, who gets it, and when its job is done."""

from __future__ import annotations

import threading
import time
import uuid

from services.store.jobs import Delivery, JobStore, Notification
from services.store.outbox import CLAIM_S, Outbox
from services.store.rows import OutboxRow, Priority

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


def test_a_claim_is_renewed_and_what_was_put_off_meanwhile_stays_put_off(jobs: JobStore, outbox: Outbox) -> None:
    finished(jobs, "node:PACS", "node:B")
    rows = outbox.claim_due(limit=10, lease_s=0.2)
    outbox.postpone(rows[0], "refused", wait_s=0.3)
    for _ in range(2):
        outbox.renew(rows, lease_s=0.6)
        time.sleep(0.4)
    assert [row.id for row in outbox.claim_due(limit=10, lease_s=60)] == [rows[0].id]


def test_what_a_clock_set_back_put_off_for_too_long_is_due(jobs: JobStore, outbox: Outbox) -> None:
    finished(jobs, "node:PACS", "node:B", "node:C")
    sent, put_off, asked = outbox.claim_due(limit=10, lease_s=60)
    outbox.postpone(sent, "refused", wait_s=3600 + 5)  # five seconds, by a clock that went an hour fast
    outbox.postpone(put_off, "refused", wait_s=500)
    outbox.stored(asked)
    outbox.asking([asked], "1.2.3", wait_s=3600)
    outbox.bring_forward(longest_s=600, longest_commitment_s=3600)
    assert [row.id for row in outbox.claim_due(limit=10, lease_s=60)] == [sent.id]
    outbox.bring_forward(longest_s=600, longest_commitment_s=3000)  # no node is given an hour for its report
    assert [row.id for row in outbox.claim_due(limit=10, lease_s=60)] == [asked.id]


def test_what_a_relay_has_in_hand_nobody_else_makes_due(jobs: JobStore, outbox: Outbox) -> None:
    job_id = finished(jobs, "node:PACS")
    (row,) = outbox.claim_due(limit=10, lease_s=CLAIM_S)
    outbox.make_due(["node:PACS"])
    outbox.retry(job_id, row.id)
    assert not outbox.claim_due(limit=10, lease_s=CLAIM_S)
    outbox.postpone(row, "refused", wait_s=600)
    outbox.retry(job_id, row.id)
    assert [one.id for one in outbox.claim_due(limit=10, lease_s=CLAIM_S)] == [row.id]


def test_a_relay_that_ends_gives_back_what_is_still_its_own(jobs: JobStore, outbox: Outbox) -> None:
    finished(jobs, "node:PACS", "node:B")
    mine, put_off = rows = outbox.claim_due(limit=10, lease_s=CLAIM_S)
    outbox.postpone(put_off, "refused", wait_s=600)
    outbox.give_back(rows)
    (again,) = outbox.claim_due(limit=10, lease_s=CLAIM_S)
    assert (again.id, again.attempts) == (mine.id, 1)


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


def test_what_tells_of_emboli_in_a_stat_study_goes_before_everything_else(jobs: JobStore, outbox: Outbox) -> None:
    def job(series: str, priority: Priority, outcome: str, *destinations: str) -> None:
        job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid=series, calling_ae_title="CT1")
        jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test", priority=priority)
        jobs.claim(job.id, "a", lease_s=60)
        rows = [
            Notification(name, str(uuid.uuid4()), "{}") if name.startswith("webhook") else Delivery(name, "x", "1", "2")
            for name in destinations
        ]
        jobs.finish(job.id, "a", findings={**FINDINGS, "outcome": outcome}, stage_seconds={}, deliveries=rows)

    job("1.1", Priority.ROUTINE, "embolus_found", "node:A", "webhook:B")
    job("1.2", Priority.STAT, "no_embolus", "node:C", "webhook:D")
    job("1.3", Priority.STAT, "embolus_found", "node:E", "webhook:F")
    assert outbox.due_destinations() == ["webhook:F", "node:C", "webhook:D", "node:E", "node:A", "webhook:B"]
    claimed = [row.destination for row in outbox.claim_due(limit=4, lease_s=60)]
    assert claimed[0] == "webhook:F"
    assert set(claimed[1:]) == {"node:C", "webhook:D", "node:E"}
    assert [row.destination for row in outbox.claim_due(limit=9, lease_s=60, destination="webhook:B")] == ["webhook:B"]
    assert [row.destination for row in outbox.claim_due(limit=9, lease_s=60)] == ["node:A"]


def test_a_notification_waits_for_all_objects_of_a_node(jobs: JobStore, outbox: Outbox) -> None:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    objects = [Delivery("node:A", "x", "1", uid) for uid in ("1.1", "1.2")]
    told = Notification("availability:RIS", "id", waits_for="node:A")
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[*objects, told])
    first, second = outbox.claim_due(limit=9, lease_s=60)
    outbox.delivered(first)
    outbox.stored(second)
    assert outbox.due_destinations() == ["node:A"]  # to be asked to commit
    (stored,) = outbox.claim_due(limit=9, lease_s=60)
    assert (stored.id, stored.state) == (second.id, "stored")
    outbox.committed([stored])
    (due,) = outbox.claim_due(limit=9, lease_s=60)
    assert due.message_id == "id"
    assert [row.sop_instance_uid for row in outbox.objects_at(job.id, "node:A")] == ["1.1", "1.2"]
    outbox.delivered(due)
    assert jobs.get(job.id).state == "completed"


def test_a_node_is_asked_to_commit_only_when_it_has_all_of_a_job(jobs: JobStore, outbox: Outbox) -> None:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    objects = [Delivery("node:A", "x", "1", uid) for uid in ("1.1", "1.2")]
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=objects)
    first, second = outbox.claim_due(limit=9, lease_s=60)
    outbox.stored(first)
    assert not outbox.claim_due(limit=9, lease_s=60)
    outbox.stored(second)
    rows = outbox.claim_due(limit=9, lease_s=60)
    outbox.asking(rows, "2.25.1", wait_s=60)
    assert not outbox.of_transaction("node:B", "2.25.1")
    asked = outbox.of_transaction("node:A", "2.25.1")
    assert len(asked) == 2
    outbox.committed(asked[:1])
    outbox.postpone(asked[0], "too late", wait_s=0)  # nothing that is delivered comes back
    assert [row.state for row in outbox.of_job(job.id)] == ["delivered", "stored"]


def test_a_superseded_job_tells_nobody_any_more(jobs: JobStore, outbox: Outbox) -> None:
    def arrive() -> str:
        job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
        jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
        return job.id

    job_id = arrive()
    jobs.claim(job_id, "a", lease_s=60)
    told = Notification("webhook:ris", "id", "{}")
    jobs.finish(job_id, "a", findings=FINDINGS, stage_seconds={}, deliveries=[told])
    arrive()
    assert outbox.of_job(job_id) == []
    assert jobs.get(job_id).state == "cancelled"
