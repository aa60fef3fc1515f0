"""A database with rows in it goes back to the first revision and forward again."""

from __future__ import annotations

from alembic import command
from alembic.config import Config

from services.store.database import Database
from services.store.jobs import Delivery, JobStore, Notification
from services.store.outbox import Outbox

FINDINGS = {"outcome": "no_embolus", "reasons": []}


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
    _downgrade(database, "0001")
    database.upgrade()
    assert [(row.sop_instance_uid, row.state) for row in outbox.of_job(job.id)] == [
        ("1.1", "pending"),
        ("1.2", "pending"),
    ]


def test_jobs_that_failed_before_failures_were_reported_are_not_reported_now(
    database: Database, jobs: JobStore
) -> None:
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "a", lease_s=60)
    jobs.fail(job.id, "a", code="internal", message="unexpected", max_attempts=1)
    assert len(jobs.unreported_failures()) == 1
    _downgrade(database, "0005")
    database.upgrade()
    assert jobs.unreported_failures() == []


def _downgrade(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "migrations")
    with database.engine.execution_options(writes=True).connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        connection.commit()
