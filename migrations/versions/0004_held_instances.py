"""what DICOMweb searches, and arrivals that the listener hears of from other processes"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXED = ("patient_id", "accession_number", "study_date")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("arrivals", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("indexed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "held_series",
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("study_id", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text(), nullable=False),
        sa.Column("study_time", sa.Text(), nullable=False),
        sa.Column("study_description", sa.Text(), nullable=False),
        sa.Column("referring_physician_name", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("series_number", sa.BigInteger(), nullable=True),
        sa.Column("series_description", sa.Text(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid", "series_instance_uid"),
    )
    for column in _INDEXED:
        op.create_index(f"ix_held_series_{column}", "held_series", [column])
    op.create_table(
        "held_instances",
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("instance_number", sa.BigInteger(), nullable=True),
        sa.Column("place", sa.String(length=256), nullable=False),
        sa.Column("file_name", sa.String(length=256), nullable=False),
        sa.Column("modified_ns", sa.BigInteger(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("sop_instance_uid"),
    )
    op.create_index("ix_held_instances_series", "held_instances", ["study_instance_uid", "series_instance_uid"])
    op.create_index("ix_held_instances_place", "held_instances", ["place"])


def downgrade() -> None:
    op.execute("UPDATE jobs SET source = 'dicom' WHERE source = 'dicomweb'")  # which is new with this
    op.drop_table("held_instances")
    op.drop_table("held_series")
    # Not as a batch: that makes the table anew, which SQLite refuses while other rows refer to it.
    op.drop_column("jobs", "indexed_at")
    op.drop_column("jobs", "arrivals")
