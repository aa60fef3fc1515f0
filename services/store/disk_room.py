"""How much room a disk has, how much of it is for what comes in, and what an error says that means "full"."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from imaging.errors import StorageFull

FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_POSTGRESQL_DISK_FULL = "53100"
_LARGEST_RESERVED_FRACTION = 0.05
_RESULT_FRACTION = 0.125


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """A file system at one moment, in bytes. What is reserved is for results, the queue and the database."""

    total: int
    free: int
    reserved: int

    @classmethod
    def of(cls, path: Path, reserve_bytes: int) -> DiskRoom:
        """Never more than a twentieth of the disk is reserved."""
        found = os.statvfs(path)
        total = found.f_frsize * found.f_blocks
        reserved = min(reserve_bytes, int(total * _LARGEST_RESERVED_FRACTION))
        return cls(total, found.f_frsize * found.f_bavail, reserved)

    def has_for_intake(self, wanted_bytes: int = 0) -> bool:
        """Whether something can come in and leave what is reserved alone."""
        return self.free > 0 and self.free - wanted_bytes >= self.reserved

    @property
    def has_for_result(self) -> bool:
        """Whether it is worth while to begin with a job: an eighth of the reserve is far more than a result takes."""
        return self.free > self.reserved * _RESULT_FRACTION

    @property
    def used_percent(self) -> float:
        return 100.0 * (1.0 - self.free / self.total)


def no_room() -> StorageFull:
    return StorageFull(
        "no room left in the data directory", remedy="free disk space, or let retention purge; then try again"
    )


def means_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that a disk is full: that of the files or the database's."""
    return database_is_full(error) or any(
        isinstance(one, StorageFull) or (isinstance(one, OSError) and one.errno in FULL_ERRNOS)
        for one in _with_causes(error)
    )


def database_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that the database's disk is full."""
    return any(isinstance(one, DBAPIError) and _is_full(one.orig) for one in _with_causes(error))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return getattr(error, "sqlstate", None) == _POSTGRESQL_DISK_FULL
