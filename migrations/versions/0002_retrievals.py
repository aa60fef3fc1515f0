"""retrievals"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name != "sqlite":  # which knows no lengths
        op.alter_column("jobs", "calling_ae_title", existing_type=sa.String(length=16), type_=sa.String(length=80))

    op.create_table(
        "retrievals",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.String(length=8), nullable=False),
        sa.Column("node", sa.String(length=128), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("rule", sa.JSON(), nullable=True),
        sa.Column("run_key", sa.String(length=128), nullable=True),
        sa.Column("parent_id", sa.String(length=36), nullable=True),
        sa.Column("series", sa.JSON(), nullable=False),
        sa.Column("studies_found", sa.Integer(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["retrievals.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_key", name="uq_retrievals_run_key"),
    )
    with op.batch_alter_table("retrievals", schema=None) as batch_op:
        batch_op.create_index("ix_retrievals_due", ["state", "next_attempt_at"], unique=False)
        batch_op.create_index("ix_retrievals_study", ["study_instance_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_retrievals_parent_id"), ["parent_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("retrievals", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_retrievals_parent_id"))
        batch_op.drop_index("ix_retrievals_study")
        batch_op.drop_index("ix_retrievals_due")

    op.drop_table("retrievals")

    op.execute("UPDATE jobs SET calling_ae_title = NULL WHERE length(calling_ae_title) > 16")
    if op.get_context().dialect.name != "sqlite":
        op.alter_column("jobs", "calling_ae_title", existing_type=sa.String(length=80), type_=sa.String(length=16))
