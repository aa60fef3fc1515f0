"""A filled database goes back to the first revision, step by step, and forward from every revision."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy import select

from imaging.errors import ConfigurationError
from services.accounts.key_store import KeyStore
from services.accounts.principal import Scope
from services.store.database import Database
from services.store.jobs import Delivery, JobStore, Notification
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.rows import (
    Base,
    DeliveryState,
    JobState,
    RetrievalState,
    Source,
    WorkitemState,
)

FINDINGS = {"outcome": "no_embolus", "reasons": []}
REVISIONS = [script.revision for script in ScriptDirectory("migrations").walk_revisions()][::-1]
STATES = {
    "jobs": list(JobState),
    "outbox": list(DeliveryState),
    "retrievals": list(RetrievalState),
    "worklist_items": list(WorkitemState),
}
Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def test_objects_survive_the_way_to_the_first_revision_and_back(
    database: Database, jobs: JobStore, outbox: Outbox
) -> None:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    told = Notification("webhook:ris", "id", "{}")
    deliveries = [Delivery("node:A", "x", "1", "1.1"), Delivery("node:A", "x", "1", "1.2"), told]
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
    outbox.stored(outbox.of_job(job.id)[0])
    RetrievalStore(database).request_study(node="A", study_instance_uid="1.2", tenant="cardiology")
    _, key = KeyStore(database).create("ris", scopes=[Scope.READ])
    KeyStore(database).open_session(key.text(), lasts=timedelta(hours=1))
    database.downgrade("0001")
    database.upgrade()
    assert [(row.sop_instance_uid, row.state) for row in outbox.of_job(job.id)] == [
        ("1.1", "pending"),
        ("1.2", "pending"),
    ]
    assert jobs.get(job.id).state == "delivering"


def test_a_job_that_only_its_notification_kept_delivering_is_completed_on_the_way_back(
    database: Database, jobs: JobStore, outbox: Outbox
) -> None:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    deliveries = [Delivery("node:A", "x", "1", "1.1"), Notification("webhook:ris", "id", "{}")]
    jobs.finish(job.id, "a", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
    outbox.delivered(outbox.of_job(job.id)[0])
    assert jobs.get(job.id).state == "delivering"
    database.downgrade("0002")
    database.upgrade()
    assert jobs.get(job.id).state == "completed"
    assert jobs.get(job.id).finished_at is not None


def test_a_filled_database_goes_back_step_by_step_and_forward_again(database: Database) -> None:
    fill(database, REVISIONS[-1])
    before = rows_of(database)
    for revision in reversed(REVISIONS[:-1]):
        database.downgrade(revision)
        after = rows_of(database)
        assert after == expected_after(before, after, revision), revision
        before = after
    database.upgrade()
    assert common(rows_of(database), before) == expected_forward(before, REVISIONS[0])
    assert_is_readable(database)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_database_filled_at_any_revision_comes_forward_whole(database: Database, revision: str) -> None:
    database.downgrade(revision)
    fill(database, revision)
    before = rows_of(database)
    assert all(before.values())
    database.upgrade()
    assert common(rows_of(database), before) == expected_forward(before, revision)
    assert_is_readable(database)


def test_a_program_refuses_a_database_with_a_newer_schema(database: Database) -> None:
    set_revision(database, "9999")
    try:
        with pytest.raises(ConfigurationError, match=rf"schema 9999, .* downgrade {REVISIONS[-1]}") as refused:
            database.upgrade()
        assert refused.value.code == "database.newer_schema"
    finally:
        set_revision(database, REVISIONS[-1])


def test_there_is_no_way_back_to_a_revision_that_never_was(database: Database) -> None:
    with pytest.raises(ConfigurationError, match="0815"):
        database.downgrade("0815")


def set_revision(database: Database, revision: str) -> None:
    with database.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def tables_of(database: Database) -> dict[str, sa.Table]:
    metadata = sa.MetaData()
    metadata.reflect(database.engine)
    return {table.name: table for table in metadata.sorted_tables if table.name != "alembic_version"}


def fill(database: Database, revision: str) -> None:
    """Every table with a row in every state, both with all that may be missing and without any of it."""
    for table in tables_of(database).values():
        with database.write() as session:
            for row in made_rows(table, revision):
                session.execute(table.insert().values(row))


def made_rows(table: sa.Table, revision: str) -> Iterator[dict[str, Any]]:
    states = [state for state in STATES.get(table.name, [""]) if revision >= "0003" or state != DeliveryState.STORED]
    number = 0
    for state in states:
        for is_whole in (True, False):
            number += 1
            yield {
                column.name: made_value(table, column, state, number, revision)
                for column in table.columns
                if is_whole or not column.nullable
            }
    if table.name == "outbox" and revision >= "0003":
        for state in states:  # notifications
            number += 1
            row = {c.name: made_value(table, c, state, number, revision) for c in table.columns}
            yield row | {"object_path": None, "sop_class_uid": None, "sop_instance_uid": None}


def made_value(table: sa.Table, column: sa.Column[Any], state: str, number: int, revision: str) -> Any:
    if column.name == "state":
        return state
    if column.name == "source":
        sources = [source for source in Source if revision >= "0004" or source is not Source.DICOMWEB]
        return sources[number % len(sources)].value
    for foreign_key in column.foreign_keys:
        return made_value(foreign_key.column.table, foreign_key.column, state, 1, revision)
    if isinstance(column.type, sa.String | sa.Text):
        length = getattr(column.type, "length", None) or 100
        return (table.name if column.primary_key else column.name).ljust(length - len(str(number)), "x")[
            : length - len(str(number))
        ] + str(number)
    if isinstance(column.type, sa.DateTime):
        return datetime(2026, 1, 2, 3, 4, 5, number, tzinfo=UTC)
    if isinstance(column.type, sa.Boolean):
        return bool(number % 2)
    if isinstance(column.type, sa.JSON):
        return {"number": number}
    return number


def rows_of(database: Database) -> Rows:
    found: Rows = {}
    with database.read() as session:
        for name, table in tables_of(database).items():
            keys = [column.name for column in table.primary_key]
            rows = [dict(row._mapping) for row in session.execute(select(table))]
            found[name] = {tuple(row[key] for key in keys): row for row in rows}
    return found


def common(rows: Rows, like: Rows) -> Rows:
    """The tables and columns that `like` has too."""
    columns = {name: next(iter(table.values())).keys() for name, table in like.items() if table}
    return {
        name: {key: {column: row[column] for column in columns.get(name, row)} for key, row in rows[name].items()}
        for name in like
    }


def expected_after(before: Rows, after: Rows, revision: str) -> Rows:
    """What is left by the step back to this revision: as it was, less the columns that go, and these losses."""
    left = common(before, after)
    jobs, outbox = left["jobs"], left["outbox"]
    if revision == "0008":
        for job in jobs.values():
            if job["state"] == "failed":
                job |= {"outcome": None, "findings": None}
    if revision == "0005":
        left["held_series"] = left["held_instances"] = {}
        for job in jobs.values():
            job |= {"indexed_at": None, "idempotency_key": None}  # all of other tenants
    if revision == "0003":
        for job in jobs.values():
            job["source"] = "dicom" if job["source"] == "dicomweb" else job["source"]
    if revision == "0002":
        left["outbox"] = outbox = {key: row for key, row in outbox.items() if row["sop_instance_uid"] is not None}
        for row in outbox.values():
            row["state"] = "pending" if row["state"] == "stored" else row["state"]
        waiting = {row["job_id"] for row in outbox.values() if row["state"] != "delivered"}
        for job in jobs.values():
            if job["state"] == "delivering" and job["id"] not in waiting:
                job |= {"state": "completed", "finished_at": job["updated_at"]}
    if revision == "0001":
        for job in jobs.values():
            if len(job["calling_ae_title"] or "") > 16:
                job["calling_ae_title"] = None
    return left


def expected_forward(before: Rows, revision: str) -> Rows:
    """What is there after the way from this revision to the last: all, but for an index that is made anew."""
    rows = {name: {key: dict(row) for key, row in table.items()} for name, table in before.items()}
    for job in rows["jobs"].values():
        if revision < "0006" and "indexed_at" in job:
            job["indexed_at"] = None
        if revision < "0009" and job["state"] == "failed":
            job["outcome"] = "failed"
    if revision < "0006":
        rows |= {name: {} for name in ("held_series", "held_instances") if name in rows}
    return rows


def assert_is_readable(database: Database) -> None:
    with database.read() as session:
        for mapper in Base.registry.mappers:
            session.scalars(select(mapper.class_)).all()


def test_jobs_that_failed_before_failures_were_reported_are_not_reported_now(
    database: Database, jobs: JobStore
) -> None:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    jobs.fail(job.id, "a", code="internal", message="unexpected", max_attempts=1)
    assert len(jobs.unreported_failures()) == 1
    database.downgrade("0008")
    database.upgrade()
    assert jobs.unreported_failures() == []
