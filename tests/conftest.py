"""What every test may use: a fresh data directory's database and a real Redis, ended by process id."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.embedded_redis import start_embedded_redis
from services.store.database import Database

SHARED_DATA = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server, one for the whole run."""
    server = start_embedded_redis(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database of the newest schema, to be copied: migrating takes a tenth of a second or more."""
    file = tmp_path_factory.mktemp("migrated") / "embolens.sqlite"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    assert not file.with_name(f"{file.name}-wal").exists()
    return file


@pytest.fixture
def database(tmp_path: Path, migrated_file: Path) -> Iterator[Database]:
    """An empty, migrated SQLite database."""
    file = shutil.copy(migrated_file, tmp_path / "embolens.sqlite")
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository; a test that needs it is skipped, by name, where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real data (../shared/data) is not here")
    return SHARED_DATA.resolve()
