"""The database: SQLite (WAL) by default, PostgreSQL by URL; migrated when a process starts."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, InvalidatePoolError
from sqlalchemy.orm import Session, sessionmaker

from imaging.errors import ConfigurationError
from services.settings import Settings
from services.store.disk_room import DiskRoom
from services.store.durability import Durability
from services.version import VERSION

if TYPE_CHECKING:  # a tenth of a second at the start of every process, where the schema is as it should be
    from alembic.config import Config
    from sqlalchemy.pool import ConnectionPoolEntry

_MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_MIGRATION_LOCK_ID = 0x456D626F  # pg_advisory_lock key: "Embo"
_BUSY_TIMEOUT_MS = 30_000
_TRUSTED_S = 1.0  # after its last use a connection is taken to live
_LOOK_AGAIN_S = 0.002  # a write takes about as long
_SOON_S = 0.5  # after which somebody holds the lock who is none of us
_LOOK_AGAIN_LATER_S = 0.05
# A row may name a patient: not into a log. What is read of JSON is read five times as fast as by Python's own.
_HOW: dict[str, Any] = {"hide_parameters": True, "json_deserializer": from_json}


class Database:
    """Sessions on one engine. Rows stay readable after their transaction (`expire_on_commit` is off)."""

    def __init__(self, url: str, *, durability: Durability = Durability.PROCESS) -> None:
        """`durability` is SQLite's; what PostgreSQL writes through is set at its server, and is so unless told else."""
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        if self.is_sqlite:
            Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            self.engine = create_engine(url, **_HOW)
            _prepare_sqlite(self.engine, "FULL" if durability is Durability.POWER else "NORMAL")
        else:
            self.engine = create_engine(url, **_HOW)
            _ping_what_lay_idle(self.engine)
        looking = {"looks": True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._looking = self.engine.execution_options(**looking)
        self._reading = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = sessionmaker(self.engine.execution_options(writes=True), expire_on_commit=False)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.resolved_database_url, durability=settings.durability)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with self._reading.begin() as session:
            yield session

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """One query, for who wants columns and no rows: without a session and a transaction it costs half."""
        with self._looking.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed on leaving, rolled back on an exception."""
        with self._writing.begin() as session:
            yield session

    def one_at_a_time(self, session: Session, key: str) -> None:
        """Until this transaction ends, others that ask for the same key wait. SQLite has one writer anyway."""
        if not self.is_sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:key))"), {"key": key})

    def upgrade(self) -> None:
        """Bring the schema to the newest revision; safe when several processes start at once.

        Raises:
            ConfigurationError: it is newer than this program.
        """
        if self._is_newest():
            return
        from alembic import command

        with self._migrating() as config:
            command.upgrade(config, "head")

    def _is_newest(self) -> bool:
        newest = max(path.name for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")).split("_")[0]
        if self.is_sqlite and not Path(make_url(self.url).database or "").exists():
            return False
        try:
            with self.engine.connect() as connection:
                return list(connection.scalars(text("SELECT version_num FROM alembic_version"))) == [newest]
        except DatabaseError:  # there is no such table yet; whatever else it is, migrating says
            return False

    def downgrade(self, revision: str) -> None:
        """Bring the schema back to an older revision, for an older program; `docs/operations.md` says what is lost.

        Raises:
            ConfigurationError: there is no such revision, or the schema is newer than this program.
        """
        from alembic import command
        from alembic.util.exc import CommandError

        with self._migrating() as config:
            try:
                command.downgrade(config, revision)
            except CommandError as error:
                raise ConfigurationError(f"the schema cannot go back to {revision}: {error}") from error

    @contextmanager
    def _migrating(self) -> Iterator[Config]:
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._migration_lock() as connection:
            config.attributes["connection"] = connection
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
            if unknown:
                raise ConfigurationError(
                    f"the database has schema {', '.join(unknown)}, which Embolens {VERSION} does not know",
                    code="database.newer_schema",
                    remedy=f"run the newer Embolens, or with it `embolens downgrade {max(known)}` first",
                )
            yield config
            connection.commit()

    @contextmanager
    def _migration_lock(self) -> Iterator[Connection]:
        if not self.is_sqlite:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK_ID})
                connection.commit()
                try:
                    yield connection
                finally:
                    connection.rollback()
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK_ID})
                    connection.commit()
            return
        lock_path = Path(str(make_url(self.url).database) + ".migration-lock")
        with lock_path.open("w") as lock:
            # Before the first connection: turning a new file into WAL mode does not wait for others who do the same.
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.engine.execution_options(writes=True).connect() as connection:
                yield connection

    def ping(self) -> None:
        """Raises sqlalchemy.exc.SQLAlchemyError when the database does not answer."""
        with self.read() as session:
            session.execute(text("SELECT 1 FROM jobs LIMIT 1"))

    def free_bytes(self) -> int | None:
        """Of the disk on which SQLite's file lies; None of PostgreSQL."""
        return DiskRoom.of(Path(make_url(self.url).database or "").parent, 0).free if self.is_sqlite else None

    def close(self) -> None:
        self.engine.dispose()


def _ping_what_lay_idle(engine: Engine) -> None:
    """A connection that the server has closed meanwhile is replaced unnoticed, and all others with it.

    SQLAlchemy's `pool_pre_ping` asks before every use, which is a third of what a short query costs. Who takes one that
    was in use a moment ago learns of its end by the query, as if it had ended during it.
    """

    @event.listens_for(engine, "checkin")
    def _note_use(connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["used_at_s"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        now_s = time.monotonic()
        if now_s - record.info.get("used_at_s", now_s) > _TRUSTED_S:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error


def _prepare_sqlite(engine: Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA case_sensitive_like=ON")  # as PostgreSQL's LIKE is

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A writer takes the lock at once: upgrading a read transaction would fail instead of waiting.
        options = connection.get_execution_options()
        if options.get("writes", False):
            _begin_writing(connection)
        elif not options.get("looks", False):  # one query sees one state by itself
            connection.exec_driver_sql("BEGIN")


def _begin_writing(connection: Connection) -> None:
    """Where another one writes, look again every few milliseconds: SQLite by itself looks less and less often, up to
    ten times a second, and what the short transactions of many processes leave free is lost meanwhile."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    began = time.monotonic()
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while (waited_s := time.monotonic() - began) < _BUSY_TIMEOUT_MS / 1000:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # extended codes have more above
                    break
            else:
                return
            time.sleep(_LOOK_AGAIN_S if waited_s < _SOON_S else _LOOK_AGAIN_LATER_S)
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # for SQLAlchemy's own exception
    finally:
        driver.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
