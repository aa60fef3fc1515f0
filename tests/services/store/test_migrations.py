"""A database with rows in it goes back to the first revision and forward again."""

from __future__ import annotations

from datetime import timedelta

from alembic import command
from alembic.config import Config

from services.accounts.key_store import KeyStore
from services.accounts.principal import Scope
from services.store.database import Database
from services.store.jobs import Delivery, JobStore, Notification
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore

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
    RetrievalStore(database).request_study(node="A", study_instance_uid="1.2", tenant="cardiology")
    _, key = KeyStore(database).create("ris", scopes=[Scope.READ])
    KeyStore(database).open_session(key.text(), lasts=timedelta(hours=1))
    config = Config()
    config.set_main_option("script_location", "migrations")
    with database.engine.execution_options(writes=True).connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.commit()
    database.upgrade()
    assert [(row.sop_instance_uid, row.state) for row in outbox.of_job(job.id)] == [
        ("1.1", "pending"),
        ("1.2", "pending"),
    ]
    assert (jobs.get(job.id).tenant, jobs.get(job.id).indexed_at) == ("default", None)
    assert not KeyStore(database).all()
