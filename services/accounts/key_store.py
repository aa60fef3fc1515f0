"""The API keys and the browser sessions in the database; every change is one transaction."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.exc import OperationalError

from imaging.errors import ConfigurationError, NotFound, StateConflict
from services.accounts.api_key import ApiKey, hashed
from services.accounts.principal import Principal, Scope, checked_tenant
from services.store.database import Database
from services.store.jobs import utc_now
from services.store.rows import DEFAULT_TENANT, ApiKeyRow, BrowserSessionRow, UtcDateTime

log = logging.getLogger(__name__)

FIRST_KEY_FILE = "first.key"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")  # no colon: "oidc:..." are callers of another kind
_NOTED_EVERY = timedelta(minutes=1)  # a request does not write each time


class _UsableKey(NamedTuple):
    """The columns of `ApiKeyRow` that say who calls."""

    id: str
    name: str
    tenant: str
    scopes: list[str]
    secret_hash: str
    max_upload_bytes: int | None
    created_at: datetime
    last_used_at: datetime | None


_USABLE = select(*(getattr(ApiKeyRow, name) for name in _UsableKey._fields))


class KeyStore:
    """Keys are looked up at every request, so that one that is revoked is refused from then on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[str, datetime] = {}
        self._notes = ThreadPoolExecutor(1, "noting")

    # By an operator

    def create(
        self,
        name: str,
        *,
        scopes: Collection[Scope],
        tenant: str = DEFAULT_TENANT,
        valid_for: timedelta | None = None,
        max_upload_bytes: int | None = None,
    ) -> tuple[ApiKeyRow, ApiKey]:
        """A new key, in the clear here and never again.

        Raises:
            ConfigurationError: the name or the tenant cannot be taken, or there is no scope.
            StateConflict: a usable key has this name.
        """
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"key name {name!r}", remedy="use up to 64 letters, digits, spaces and . _ @ -")
        if not scopes:
            raise ConfigurationError(f"key {name!r} has no scope", remedy=f"give some of {', '.join(Scope)}")
        key = ApiKey.generate()
        row = _row(
            key,
            name,
            scopes=scopes,
            tenant=checked_tenant(tenant),
            max_upload_bytes=max_upload_bytes,
            expires_at=None if valid_for is None else utc_now() + valid_for,
        )
        with self._database.write() as session:
            self._database.one_at_a_time(session, "api keys")
            if session.scalars(select(ApiKeyRow).where(ApiKeyRow.name == name, *_usable())).first() is not None:
                raise StateConflict(f"a key named {name!r} is in use", remedy="rotate it, or choose another name")
            session.add(row)
        return row, key

    def rotate(self, key_id: str, *, overlap: timedelta) -> tuple[ApiKeyRow, ApiKey]:
        """A new key in the place of this one, which stays valid for `overlap` so that the client can be changed over.

        The new one is valid for as long as the old one was from its creation.

        Raises:
            NotFound: no such key.
            StateConflict: it is revoked or has expired.
        """
        now = utc_now()
        key = ApiKey.generate()
        with self._database.write() as session:
            self._database.one_at_a_time(session, "api keys")
            old = session.get(ApiKeyRow, key_id)
            if old is None:
                raise _no_key(key_id)
            if not is_usable(old):
                raise StateConflict(f"key {key_id} is revoked or has expired", remedy="create a new one")
            row = _row(
                key,
                old.name,
                scopes=map(Scope, old.scopes),
                tenant=old.tenant,
                max_upload_bytes=old.max_upload_bytes,
                expires_at=None if old.expires_at is None else now + (old.expires_at - old.created_at),
            )
            old.expires_at = min(now + overlap, old.expires_at or now + overlap)
            session.add(row)
        return row, key

    def revoke(self, key_id: str) -> ApiKeyRow:
        """From now on it is refused, and so is whoever logged in with it. Raises NotFound."""
        with self._database.write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise _no_key(key_id)
            row.revoked_at = row.revoked_at or utc_now()
            session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.key_id == key_id))
        return row

    def all(self) -> Sequence[ApiKeyRow]:
        """Newest first, those that are no longer valid among them."""
        with self._database.read() as session:
            return session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc())).all()

    def has_usable(self) -> bool:
        with self._database.read() as session:
            return session.scalars(select(ApiKeyRow.id).where(*_usable()).limit(1)).first() is not None

    def make_first(self, data_dir: Path) -> bool:
        """Where there never was a key: one for `admin`, in a file that its owner alone can read. Says whether."""
        with self._database.write() as session:
            self._database.one_at_a_time(session, "api keys")
            if session.scalar(select(func.count()).select_from(ApiKeyRow)):
                return False
            path = data_dir / FIRST_KEY_FILE
            key = ApiKey.generate()
            _write_for_owner(path, key.text() + "\n")
            session.add(_row(key, "first", scopes=[Scope.ADMIN]))
        return True

    # By the gateway

    def principal_of(self, text: str) -> Principal | None:
        """The caller who shows this text; None where it is no key of ours that is valid now."""
        row = self._usable_rows([text]).get(text)
        if row is None:
            return None
        self._note_use([row])
        return _principal(row)

    def principals_of(self, texts: Collection[str]) -> dict[str, Principal]:
        """The callers who show these texts, of those that are keys of ours that are valid now: one look-up for all.

        None of them waits for his use to be noted, which has to wait for whoever writes.
        """
        rows = self._usable_rows(texts)
        if noted := self._to_be_noted(rows.values()):
            self._notes.submit(self._note, noted)
        return {text: _principal(row) for text, row in rows.items()}

    def open_session(self, text: str, *, lasts: timedelta) -> str | None:
        """The token of a new browser session for who shows this key; None where it is not valid."""
        key = ApiKey.parse(text)
        if key is None or self.principal_of(text) is None:
            return None
        token = secrets.token_urlsafe(32)
        now = utc_now()
        with self._database.write() as session:
            session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.expires_at <= now))
            session.add(
                BrowserSessionRow(token_hash=hashed(token), key_id=key.id, created_at=now, expires_at=now + lasts)
            )
        return token

    def principal_of_session(self, token: str) -> Principal | None:
        """The caller of a browser session that has neither ended nor lost its key."""
        query = (
            _USABLE.select_from(ApiKeyRow)
            .join(BrowserSessionRow, BrowserSessionRow.key_id == ApiKeyRow.id)
            .where(BrowserSessionRow.token_hash == hashed(token), BrowserSessionRow.expires_at > utc_now(), *_usable())
        )
        with self._database.look() as connection:
            found = connection.execute(query).first()
        if found is None:
            return None
        key = _UsableKey._make(found)
        self._note_use([key])
        return _principal(key)

    def close_session(self, token: str) -> None:
        with self._database.write() as session:
            session.execute(delete(BrowserSessionRow).where(BrowserSessionRow.token_hash == hashed(token)))

    def _usable_rows(self, texts: Collection[str]) -> dict[str, _UsableKey]:
        """Of those texts that are keys; each checked in constant time."""
        keys = {text: key for text in texts if (key := ApiKey.parse(text)) is not None}
        if not keys:
            return {}
        asked = {"ids": list({key.id for key in keys.values()}), "now": utc_now()}
        with self._database.look() as connection:
            rows = {row.id: row for row in map(_UsableKey._make, connection.execute(_USABLE_NAMED, asked).all())}
        return {
            text: rows[key.id] for text, key in keys.items() if key.id in rows and key.matches(rows[key.id].secret_hash)
        }

    def _note_use(self, rows: Collection[_UsableKey]) -> None:
        if noted := self._to_be_noted(rows):
            self._note(noted)

    def _to_be_noted(self, rows: Collection[_UsableKey]) -> list[str]:
        """Ids of those whose use was not noted for a while; it counts as noted from now on."""
        now = utc_now()
        due = [
            row.id
            for row in rows
            if now - self._noted.get(row.id, row.last_used_at or row.created_at - _NOTED_EVERY) >= _NOTED_EVERY
        ]
        self._noted |= dict.fromkeys(due, now)
        return due

    def _note(self, ids: Collection[str]) -> None:
        try:
            with self._database.write() as session:
                session.execute(update(ApiKeyRow).where(ApiKeyRow.id.in_(ids)).values(last_used_at=utc_now()))
        except OperationalError as error:  # the callers are known all the same
            log.warning("the use of keys %s could not be noted: %s", ", ".join(ids), type(error).__name__)


def is_usable(row: ApiKeyRow) -> bool:
    """Neither revoked nor expired."""
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > utc_now())


def _usable() -> tuple[Any, ...]:
    return _usable_at(utc_now())


def _usable_at(now: Any) -> tuple[Any, ...]:
    return ApiKeyRow.revoked_at.is_(None), or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now)


def _row(key: ApiKey, name: str, *, scopes: Iterable[Scope], tenant: str = DEFAULT_TENANT, **values: Any) -> ApiKeyRow:
    return ApiKeyRow(
        id=key.id,
        name=name,
        tenant=tenant,
        scopes=sorted(scope.value for scope in scopes),
        secret_hash=key.secret_hash(),
        created_at=utc_now(),
        **values,
    )


def _principal(row: _UsableKey) -> Principal:
    return Principal(row.name, row.tenant, frozenset(map(Scope, row.scopes)), row.max_upload_bytes)


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"no key {key_id[:64]!r}", remedy="`embolens keys list` shows their ids")


def _write_for_owner(path: Path, text: str) -> None:
    """Complete and readable by the owner alone from its first moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(written, path)


# Asked at every request: built once.
_USABLE_NAMED = _USABLE.where(
    ApiKeyRow.id.in_(bindparam("ids", expanding=True)), *_usable_at(bindparam("now", type_=UtcDateTime()))
)
