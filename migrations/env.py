"""Alembic runs here; the connection comes from `services.store.database.Database.upgrade`."""

from __future__ import annotations

from alembic import context

from services.store.rows import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
