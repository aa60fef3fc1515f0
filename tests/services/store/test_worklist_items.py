"""Workitems in the database."""

from __future__ import annotations

import pytest

from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import Priority, WorkitemState, WorklistItemRow
from services.store.worklist_items import InputSeries, WorklistItems, inputs_of

CODE = {"value": "110004", "scheme": "DCM", "meaning": "Computer Aided Detection"}
SERIES = InputSeries("1.2", "1.2.3", ("1.2.3.1", "1.2.3.2"), node="PACS")


@pytest.fixture
def items(database: Database) -> WorklistItems:
    return WorklistItems(database)


def remember(items: WorklistItems, uid: str = "1.9", worklist: str = "ai") -> WorklistItemRow | None:
    return items.remember(worklist, uid, priority=Priority.STAT, workitem_code=CODE, inputs=[SERIES])


def test_a_workitem_is_remembered_once_with_a_transaction_uid_of_its_own(items: WorklistItems) -> None:
    first, other = remember(items), remember(items, worklist="second")
    assert first is not None
    assert other is not None
    assert remember(items) is None
    assert first.transaction_uid != other.transaction_uid
    assert inputs_of(first) == [SERIES]
    assert [row.id for row in items.held("ai")] == [first.id]
    assert items.known_among("ai", ["1.9", "1.10"]) == {"1.9"}
    assert items.held_beyond(["ai"]) == 1
    items.forget(first.id)
    assert remember(items) is not None


def test_what_is_claimed_is_not_forgotten_and_what_has_ended_does_not_change(items: WorklistItems) -> None:
    item = remember(items)
    assert item is not None
    items.claimed(item.id)
    items.forget(item.id)
    assert items.get("ai", "1.9").claimed_at is not None  # type: ignore[union-attr]
    assert items.request_cancel("ai", "1.9", "too late")
    items.count_refusal(item.id, "no")
    items.end(item.id, WorkitemState.CANCELED, "cancelled")
    assert not items.request_cancel("ai", "1.9", "again")
    assert not items.request_cancel("ai", "1.10", "whose?")
    items.end(item.id, WorkitemState.LOST)
    ended = items.get("ai", "1.9")
    assert ended is not None
    assert (ended.state, ended.cancel_reason, ended.refusals) == ("canceled", "too late", 1)
    assert not items.held("ai")


def test_the_newest_job_that_stands_for_a_series(items: WorklistItems, jobs: JobStore) -> None:
    def receive() -> str:
        return jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1").id

    assert items.newest_job("1.2", "1.2.3") is None
    first = receive()
    jobs.complete_intake(first, inputs_digest="d", instance_count=2, completion_reason="test")
    jobs.drop_receiving(receive(), reason="nothing new was received")
    jobs.submit(
        "00000000-0000-4000-8000-000000000000", input_kind="dicom", inputs_digest="e", instance_count=1,
        priority=Priority.ROUTINE, study_instance_uid="1.2", series_instance_uid="1.2.3",
    )  # fmt: skip
    assert items.newest_job("1.2", "1.2.3").id == first  # type: ignore[union-attr]
    second = receive()
    jobs.cancel(second)
    assert items.newest_job("1.2", "1.2.3").id == second  # type: ignore[union-attr]
