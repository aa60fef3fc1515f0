"""what a destination answered, and the order in which queued jobs start"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("dimse_status", sa.Integer(), nullable=True))
    op.add_column("outbox", sa.Column("status_comment", sa.String(length=64), nullable=True))
    op.add_column("outbox", sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_jobs_queue", "jobs", ["state", "priority", "queued_at"])
    op.create_index("ix_jobs_started", "jobs", ["started_at"])


def downgrade() -> None:
    # Not as a batch: that makes the table anew, which SQLite refuses while other rows refer to it.
    op.drop_index("ix_jobs_started", "jobs")
    op.drop_index("ix_jobs_queue", "jobs")
    op.drop_column("jobs", "not_before")
    for name in ("last_attempt_at", "status_comment", "dimse_status"):
        op.drop_column("outbox", name)
