"""Every test of the store runs on SQLite and, where its server is installed, on PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.rows import Base
from tests.services.store.postgresql import PostgreSql


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    with PostgreSql() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path, migrated_file: Path) -> Iterator[Database]:
    """An empty, migrated database."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'embolens.sqlite')}")
    else:
        database = Database(request.getfixturevalue("postgresql_url"))
        database.upgrade()
    yield database
    if not database.is_sqlite:
        with database.write() as session:
            session.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)} CASCADE"))
    database.close()


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)
