"""API keys, browser sessions, and a tenant of every job

The index that DICOMweb searches gets the tenant into its keys. It is a copy of what the files say, so it is emptied and
made anew by the relay and by searches.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TENANT = 32
_IDEMPOTENCY_KEY = 288  # of a client, and before it its tenant


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=12), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=_TENANT), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("max_upload_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_api_keys_name", "api_keys", ["name"])
    op.create_table(
        "browser_sessions",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=12), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"]),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.create_index("ix_browser_sessions_key_id", "browser_sessions", ["key_id"])
    for table in ("jobs", "retrievals"):
        op.add_column(table, sa.Column("tenant", sa.String(_TENANT), nullable=False, server_default="default"))
    op.create_index("ix_jobs_tenant_created", "jobs", ["tenant", "created_at"])
    if (
        op.get_bind().dialect.name == "postgresql"
    ):  # SQLite knows no lengths, and cannot change a table that others name
        op.alter_column("jobs", "idempotency_key", type_=sa.String(_IDEMPOTENCY_KEY))
    _make_index_anew(with_tenant=True)


def downgrade() -> None:
    _make_index_anew(with_tenant=False)
    op.execute(sa.text("UPDATE jobs SET idempotency_key = NULL WHERE tenant <> 'default'"))
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("jobs", "idempotency_key", type_=sa.String(255))
    op.drop_index("ix_jobs_tenant_created", "jobs")
    # Not as a batch: that makes the table anew, which SQLite refuses while other rows refer to it.
    op.drop_column("jobs", "tenant")
    op.drop_column("retrievals", "tenant")
    op.drop_table("browser_sessions")
    op.drop_table("api_keys")


def _make_index_anew(*, with_tenant: bool) -> None:
    """The two tables of the index, empty and with other keys; every job counts as not looked at."""
    series_key = ["study_instance_uid", "series_instance_uid"]
    for name, key in (("held_series", series_key), ("held_instances", ["sop_instance_uid"])):
        old = sa.Table(name, sa.MetaData(), autoload_with=op.get_bind())
        columns = [sa.Column(one.name, one.type, nullable=one.nullable) for one in old.columns if one.name != "tenant"]
        indexes = {str(index.name): [column.name for column in index.columns] for index in old.indexes}
        if with_tenant:
            columns.insert(0, sa.Column("tenant", sa.String(_TENANT), nullable=False))
            key = ["tenant", *key]
        op.drop_table(name)
        op.create_table(name, *columns, sa.PrimaryKeyConstraint(*key))
        for index, indexed in indexes.items():
            op.create_index(index, name, indexed)
    op.execute(sa.text("UPDATE jobs SET indexed_at = NULL"))
