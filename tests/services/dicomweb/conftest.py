"""The index is tested on SQLite and on PostgreSQL, as all of the store is."""

from __future__ import annotations

from tests.services.store.conftest import database, postgresql_url

__all__ = ["database", "postgresql_url"]
