"""A copy of a running site: the database first, then the files.

In this order since a file is there before its row is: whatever the copied rows name lies in the data directory when the
files are copied after them. Nothing is purged meanwhile. What came later is copied or not, and no row knows of it.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from imaging.errors import ConfigurationError, NotFound
from services.store.database import Database
from services.store.directory_lock import lock_directory
from services.store.durability import sync_tree
from services.store.purge import LOCK
from services.store.rows import JobRow
from services.store.study_store import StudyStore

DATABASE_FILE = "embolens.sqlite"
_NOT_COPIED = ("arriving", "redis", "relay.alive")  # what belongs to running processes
_PURGE_TIMEOUT_S = 300.0
_TRIES = 10  # of a directory that is replaced while it is copied


@dataclass(frozen=True, slots=True)
class Backup:
    """What was copied. `has_database` is False of PostgreSQL, of which `pg_dump` makes the copy, before this."""

    files: int
    has_database: bool


def back_up(database: Database, store: StudyStore, target: Path) -> Backup:
    """Copy everything into `target`, laid out as a data directory is: to restore is to start on a copy of it.

    Raises:
        ConfigurationError: `target` is not empty, or lies in the data directory; a purge does not end.
        NotFound: a job's input is not in the copy (it is not in the data directory either, or the disk fails).
    """
    target = target.resolve()
    if target.is_relative_to(store.data_dir) or (target.exists() and any(target.iterdir())):
        raise ConfigurationError(f"cannot back up into {target}", remedy="name an empty directory somewhere else")
    target.mkdir(parents=True, exist_ok=True)
    with _nothing_is_purged(store.data_dir):
        if database.is_sqlite:
            _copy_sqlite(database, target / DATABASE_FILE)
        for path in _kept_in(store.data_dir):
            _copy(path, target / path.relative_to(store.data_dir))
    if database.is_sqlite:
        _check_inputs(target)
    sync_tree(target)
    return Backup(sum(path.is_file() for path in target.rglob("*")), database.is_sqlite)


def _kept_in(data_dir: Path) -> Iterator[Path]:
    """Files, studies, jobs: what is to be copied, each by itself."""
    for path in sorted(data_dir.iterdir()):
        if path.name in _NOT_COPIED or path.name.startswith(DATABASE_FILE) or path.suffix == ".lock":
            continue
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def _copy_sqlite(database: Database, target: Path) -> None:
    """As it is at one moment, while others write."""
    copy = sqlite3.connect(target)
    connection = database.engine.raw_connection()
    try:
        assert isinstance(connection.driver_connection, sqlite3.Connection)
        connection.driver_connection.backup(copy)
    finally:
        connection.close()
        copy.close()


def _copy(path: Path, target: Path) -> None:
    """A directory whose results a worker may be replacing; files in it are whole at any moment."""
    if path.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
        return
    for tried in range(1, _TRIES + 1):
        try:
            shutil.copytree(path, target, dirs_exist_ok=True)
        except (shutil.Error, FileNotFoundError):
            if not path.exists():  # as of an upload that was refused in the end: no row names it
                return
            if tried == _TRIES:
                raise
        else:
            return


def _check_inputs(target: Path) -> None:
    copied, store = Database(f"sqlite:///{target / DATABASE_FILE}"), StudyStore(target)
    with copied.read() as session:
        job_ids = session.scalars(select(JobRow.id).where(JobRow.inputs_digest.is_not(None))).all()
    copied.close()
    for job_id in job_ids:
        for path in store.read_inputs(job_id):
            if not path.is_file():
                raise NotFound(f"{path.relative_to(target)}, an input of job {job_id}, is not in the backup")


@contextmanager
def _nothing_is_purged(data_dir: Path) -> Iterator[None]:
    deadline = time.monotonic() + _PURGE_TIMEOUT_S
    while True:
        try:
            lock = lock_directory(data_dir, LOCK, "purge or backup")
        except ConfigurationError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            break
    with lock:
        yield
