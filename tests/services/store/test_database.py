"""Migrations, and transactions that wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import Base


def test_the_migrated_schema_is_what_the_rows_say(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Base.metadata) == []


def test_processes_that_start_together_migrate_once(database: Database, tmp_path: Path) -> None:
    url = database.url if not database.is_sqlite else f"sqlite:///{tmp_path / 'fresh.sqlite'}"
    if not database.is_sqlite:
        with database.write() as session:
            tables = ", ".join(Base.metadata.tables)
            session.execute(text(f"DROP TABLE {tables}, alembic_version"))
    starting = [Database(url) for _ in range(4)]
    failures: list[BaseException] = []

    def upgrade(one: Database) -> None:
        try:
            one.upgrade()
        except SQLAlchemyError as error:
            failures.append(error)

    threads = [threading.Thread(target=upgrade, args=(one,)) for one in starting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    starting[0].ping()
    for one in starting:
        one.close()


def test_writers_wait_for_each_other(database: Database) -> None:
    jobs = JobStore(database)
    failures: list[BaseException] = []

    def write(k: int) -> None:
        try:
            for number in range(10):
                jobs.open_receiving(
                    study_instance_uid="1.2", series_instance_uid=f"1.2.{k}.{number}", calling_ae_title="CT1"
                )
        except SQLAlchemyError as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(k,)) for k in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    assert len(jobs.receiving()) == 60


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    def insert_twice() -> None:
        with database.write() as session:
            session.execute(text("INSERT INTO alembic_version VALUES ('x')"))
            session.execute(text("INSERT INTO alembic_version VALUES ('x')"))

    with pytest.raises(SQLAlchemyError):
        insert_twice()
    with database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM alembic_version")) == 1


def test_an_error_does_not_repeat_what_was_to_be_stored(database: Database) -> None:
    with pytest.raises(SQLAlchemyError) as raised, database.read() as session:
        session.execute(text("SELECT * FROM nowhere WHERE name = :name"), {"name": "DOE^JANE"})
    assert "DOE" not in str(raised.value)


def _answer_after_the_server_closed_it(database: Database) -> object:
    """Of a connection that lay in the pool meanwhile."""
    with database.look() as connection:
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
    other = Database(database.url)
    with other.look() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:backend, 10000)"), {"backend": backend})
    other.close()
    with database.look() as connection:
        return connection.scalar(text("SELECT 1"))


def test_a_connection_that_broke_while_it_lay_idle_is_replaced_unnoticed(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgresql_url)
    monkeypatch.setattr("services.store.database._TRUSTED_S", 0.0)
    assert _answer_after_the_server_closed_it(database) == 1
    database.close()


def test_one_that_broke_just_after_it_was_used_fails_once(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(postgresql_url)
    monkeypatch.setattr("services.store.database._TRUSTED_S", 60.0)
    with pytest.raises(SQLAlchemyError):
        _answer_after_the_server_closed_it(database)
    with database.look() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    database.close()


def test_a_database_that_does_not_answer_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with pytest.raises(SQLAlchemyError):
        database.ping()
    database.close()
