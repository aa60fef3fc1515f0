"""Every test of the store runs on SQLite and, where its server is installed, on PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL server on a unix socket. initdb refuses root, so root lends it to somebody unprivileged."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("PostgreSQL's server is not installed (Debian: postgresql)")
    binaries = found[-1].parent
    user = None
    directory = Path(tempfile.mkdtemp(prefix="embolens-postgresql-"))
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next(name for name in ("postgres", "nobody") if name in names)
        shutil.chown(directory, user)
    data = directory / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "embolens", "-A", "trust", "--no-sync"],
        user=user, check=True, stdout=subprocess.DEVNULL, cwd=directory,
    )  # fmt: skip
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses=", "-c", "fsync=off"],
        user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=directory,
    )  # fmt: skip
    try:
        subprocess.run([binaries / "pg_isready", "-h", directory, "-q"], check=False)
        for _ in range(200):
            if subprocess.run([binaries / "pg_isready", "-h", directory, "-q"], check=False).returncode == 0:
                break
            assert server.poll() is None, "PostgreSQL did not start"
        yield f"postgresql+psycopg://embolens@/postgres?host={directory}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated database."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'embolens.sqlite'}")
    else:
        database = Database(request.getfixturevalue("postgresql_url"))
    database.upgrade()
    yield database
    if not database.is_sqlite:
        with database.write() as session:
            session.execute(text("TRUNCATE jobs, outbox, retrievals, worklist_items CASCADE"))
    database.close()


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)
