"""what lists and searches begin with: a page costs the same at any depth, a search looks at changed jobs alone"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_NOT_INDEXED = sa.text("indexed_at IS NULL OR indexed_at != updated_at")


def upgrade() -> None:
    op.create_index("ix_jobs_created", "jobs", ["created_at"])
    op.create_index("ix_jobs_study", "jobs", ["study_instance_uid"])
    op.create_index(
        "ix_jobs_not_indexed", "jobs", ["updated_at"], sqlite_where=_NOT_INDEXED, postgresql_where=_NOT_INDEXED
    )


def downgrade() -> None:
    for name in ("ix_jobs_not_indexed", "ix_jobs_study", "ix_jobs_created"):
        op.drop_index(name, "jobs")
