"""Parts of a STOW-RS request, malformed ones above all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from sqlalchemy import Engine, event

from services.dicomweb.resource_urls import ResourceUrls
from services.ingest import stow_receiver
from services.ingest.held_instances import HeldInstances
from services.ingest.stow_receiver import StowReceiver
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.study_store import StudyStore
from tests.services.ingest.peers import ct_series


def receiver(database: Database, tmp_path: Path) -> StowReceiver:
    store, jobs = StudyStore(tmp_path), JobStore(database)
    return StowReceiver(
        store, jobs, HeldInstances(store, jobs), store.arriving_directory(), ResourceUrls("https://embolens.example"),
        study_instance_uid=None, calling_address=None, max_bytes=10**6, max_parts=10**4,
    )  # fmt: skip


def whole_file() -> bytes:
    written = BytesIO()
    ct_series(1)[0].save_as(written, enforce_file_format=True)
    return written.getvalue()


FILE = whole_file()


@given(
    changes=st.dictionaries(st.integers(128, len(FILE) - 512), st.integers(0, 255), max_size=6),
    length=st.just(len(FILE)) | st.integers(0, len(FILE)),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_part_is_stored_as_it_came_or_refused(
    database: Database, tmp_path: Path, changes: dict[int, int], length: int
) -> None:
    content = bytearray(FILE)
    for at, value in changes.items():
        content[at] = value
    one = receiver(database, tmp_path)
    one.begin({})
    one.write(bytes(content[:length]))
    one.end()
    one.close()
    assert len(one.stored) + len(one.failed) + len(one.unreadable) == 1
    assert len(JobStore(database).receiving()) == len(list(tmp_path.glob("received/*/*")))


def take_in(one: StowReceiver, series: Sequence[Dataset]) -> None:
    for instance in series:
        written = BytesIO()
        instance.save_as(written, enforce_file_format=True)
        one.begin({})
        one.write(written.getvalue())
        one.end()


def arrivals(database: Database) -> list[int]:
    return sorted(job.arrivals for job in JobStore(database).receiving())


@pytest.fixture
def seen(database: Database) -> Iterator[list[str]]:
    """The statements, BEGIN among them."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


def test_instances_of_a_series_cost_the_database_the_same_however_many(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[str]
) -> None:
    monkeypatch.setattr(stow_receiver, "_COUNTED_EVERY_S", 3600.0)
    costs = []
    for count in (1, 12):
        one, before = receiver(database, tmp_path), len(seen)
        take_in(one, ct_series(count))
        one.count_arrivals()
        costs.append(len(seen) - before)
        assert len(one.stored) == count
    assert costs[0] == costs[1] <= 9, seen
    assert arrivals(database) == [1, 12]


def test_instances_that_come_slowly_are_counted_as_they_come(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow_receiver, "_COUNTED_EVERY_S", 0.0)
    one = receiver(database, tmp_path)
    for count, instance in enumerate(ct_series(3), start=1):
        take_in(one, [instance])
        assert arrivals(database) == [count]


def test_a_job_that_was_completed_meanwhile_is_followed_by_another(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow_receiver, "_COUNTED_EVERY_S", 3600.0)
    one, series, jobs = receiver(database, tmp_path), ct_series(3), JobStore(database)
    take_in(one, series[:2])
    (first,) = jobs.receiving()
    jobs.complete_intake(first.id, inputs_digest="d", instance_count=2, completion_reason="test", arrivals=0)
    take_in(one, series[2:])
    one.count_arrivals()
    (second,) = jobs.receiving()
    assert (second.supersedes, second.arrivals) == (first.id, 3)
