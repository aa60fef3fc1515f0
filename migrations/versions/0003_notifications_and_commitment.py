"""notifications in the outbox, and storage commitment"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OF_AN_OBJECT = {"object_path": 512, "sop_class_uid": 64, "sop_instance_uid": 64}


def upgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        for name, length in _OF_AN_OBJECT.items():
            batch_op.alter_column(name, existing_type=sa.String(length=length), nullable=True)
        batch_op.add_column(sa.Column("message_id", sa.String(length=36), nullable=True))
        batch_op.add_column(sa.Column("message", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("waits_for", sa.String(length=128), nullable=True))
        batch_op.add_column(sa.Column("transaction_uid", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("committed_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_unique_constraint("uq_outbox_message", ["message_id"])
        batch_op.create_index("ix_outbox_transaction", ["transaction_uid"], unique=False)


def downgrade() -> None:
    op.execute("DELETE FROM outbox WHERE sop_instance_uid IS NULL")
    op.execute("UPDATE outbox SET state = 'pending' WHERE state = 'stored'")
    op.execute(
        "UPDATE jobs SET state = 'completed', finished_at = updated_at WHERE state = 'delivering' AND NOT EXISTS "
        "(SELECT 1 FROM outbox WHERE outbox.job_id = jobs.id AND outbox.state != 'delivered')"
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index("ix_outbox_transaction")
        batch_op.drop_constraint("uq_outbox_message", type_="unique")
        for name in ("committed_at", "transaction_uid", "waits_for", "message", "message_id"):
            batch_op.drop_column(name)
        for name, length in _OF_AN_OBJECT.items():
            batch_op.alter_column(name, existing_type=sa.String(length=length), nullable=False)
