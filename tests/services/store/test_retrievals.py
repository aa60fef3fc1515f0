"""The states of retrievals, on both databases, and the migration there and back."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text

from imaging.errors import NodeUnavailable, StateConflict
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore, RetrievedSeries, series_of
from services.store.rows import Priority, RetrievalState

DOWN = NodeUnavailable("no answer")


@pytest.fixture
def retrievals(database: Database) -> RetrievalStore:
    return RetrievalStore(database)


def request(retrievals: RetrievalStore, number: int, priority: Priority = Priority.ROUTINE) -> str:
    return retrievals.request_study(node="PACS", study_instance_uid=f"1.2.{number}", priority=priority).id


def claimed(retrievals: RetrievalStore) -> str | None:
    row = retrievals.claim()
    return None if row is None else row.id


def test_stat_goes_first_and_what_waits_for_its_next_attempt_is_not_due(retrievals: RetrievalStore) -> None:
    routine, stat = request(retrievals, 1), request(retrievals, 2, Priority.STAT)
    assert claimed(retrievals) == stat
    retrievals.try_again(stat, DOWN, wait_s=60)
    assert claimed(retrievals) == routine
    assert claimed(retrievals) is None
    assert (retrievals.get(stat).attempts, retrievals.get(stat).error_code) == (1, "retrieve.node_unavailable")


def test_what_a_dead_listener_left_running_is_taken_up_again(retrievals: RetrievalStore) -> None:
    one, done = request(retrievals, 1), request(retrievals, 2)
    assert [claimed(retrievals), claimed(retrievals)] == [one, done]
    retrievals.complete(done)
    assert retrievals.take_up_again() == 1
    assert claimed(retrievals) == one
    assert retrievals.get(one).attempts == 0


def test_cancelled_during_its_last_breath_a_retrieval_does_not_wait_for_another_attempt(
    retrievals: RetrievalStore,
) -> None:
    one = request(retrievals, 1)
    claimed(retrievals)
    assert retrievals.cancel(one).state == RetrievalState.RUNNING
    retrievals.try_again(one, DOWN, wait_s=0)
    assert retrievals.get(one).state == RetrievalState.CANCELLED
    with pytest.raises(StateConflict):
        retrievals.complete(one)
    assert request(retrievals, 1) != one


def test_what_a_clock_set_back_put_off_for_too_long_is_due(retrievals: RetrievalStore) -> None:
    put_off, overtaken = request(retrievals, 1), request(retrievals, 2)
    for one, wait_s in ((put_off, 500), (overtaken, 3600 + 5)):
        assert claimed(retrievals) == one
        retrievals.try_again(one, DOWN, wait_s=wait_s)
    retrievals.bring_forward(longest_s=600)
    assert (claimed(retrievals), claimed(retrievals)) == (overtaken, None)


def test_a_run_with_the_same_key_is_the_same_run(retrievals: RetrievalStore) -> None:
    runs = [
        retrievals.request_run(node="PACS", rule={"rule": "night"}, priority=Priority.ROUTINE, run_key=key).id
        for key in ("night 1", "night 1", "night 2", None, None)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 4


def test_a_study_is_known_when_it_is_here_or_was_asked_for_and_did_not_fail(
    retrievals: RetrievalStore, database: Database
) -> None:
    assert not retrievals.is_known("1.2.1", "PACS")
    one = request(retrievals, 1)
    assert retrievals.is_known("1.2.1", "PACS")
    assert not retrievals.is_known("1.2.1", "VNA")
    claimed(retrievals)
    retrievals.fail(one, DOWN)
    assert not retrievals.is_known("1.2.1", "PACS")
    JobStore(database).open_receiving(study_instance_uid="1.2.1", series_instance_uid="1", calling_ae_title="CT1")
    assert retrievals.is_known("1.2.1", "PACS")


def test_the_newest_retrieval_of_a_series_counts_and_skipped_ones_do_not(retrievals: RetrievalStore) -> None:
    for instances in (5, 8):
        one = request(retrievals, 1)
        claimed(retrievals)
        retrievals.record_series(one, [RetrievedSeries("1.3", instances), RetrievedSeries("1.4", 2, skipped="x")])
        retrievals.complete(one)
    found = retrievals.of_series("1.2.1", "1.3")
    assert found is not None
    assert (found[0].id, found[1].instances) == (one, 8)
    assert retrievals.of_series("1.2.1", "1.4") is None
    assert [series.missing for series in series_of(retrievals.get(one))] == [8, 0]


def test_a_dicomweb_service_fits_where_an_ae_title_stands(database: Database) -> None:
    name = "dicomweb:" + "V" * 64
    job = JobStore(database).open_receiving(study_instance_uid="1", series_instance_uid="2", calling_ae_title=name)
    assert JobStore(database).get(job.id).calling_ae_title == name


def test_the_migration_goes_back_and_forward(database: Database) -> None:
    JobStore(database).open_receiving(study_instance_uid="1", series_instance_uid="2", calling_ae_title="CT1")
    config = Config()
    config.set_main_option("script_location", "migrations")
    with database.engine.execution_options(writes=True).connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.commit()
    with database.engine.connect() as connection:
        assert "retrievals" not in inspect(connection).get_table_names()
        assert connection.scalar(text("SELECT calling_ae_title FROM jobs")) == "CT1"
    database.upgrade()
    assert RetrievalStore(database).claim() is None
