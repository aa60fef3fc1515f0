"""failed jobs without an outcome are those of which nobody has been told: not the ones from before"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("UPDATE jobs SET outcome = 'failed' WHERE state = 'failed'")


def downgrade() -> None:
    op.execute("UPDATE jobs SET outcome = NULL, findings = NULL WHERE state = 'failed'")
