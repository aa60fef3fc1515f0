"""The tables. Times are UTC; states are stored by their names."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TENANT_LENGTH = 32
DEFAULT_TENANT = "default"
ADDRESS_LENGTH = 64  # of an IP address, or as much of a host name
STATUS_COMMENT_LENGTH = 64  # of an Error Comment (0000,0902), which is LO


class JobState(StrEnum):
    """receiving -> queued -> running -> delivering -> completed, and the ends beside the road."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    DELIVERING = "delivering"
    COMPLETED = "completed"
    NOT_ANALYSABLE = "not_analysable"
    CANCELLED = "cancelled"
    FAILED = "failed"


FINAL_STATES = frozenset({JobState.COMPLETED, JobState.NOT_ANALYSABLE, JobState.CANCELLED, JobState.FAILED})


class Stage(StrEnum):
    """What a running job is doing."""

    LOAD = "load"
    ROI = "roi"
    UNET = "unet"
    AANET = "aanet"
    FUSE = "fuse"
    WRITE = "write"


class Priority(StrEnum):
    STAT = "stat"
    ROUTINE = "routine"


class Source(StrEnum):
    """How a study came in."""

    DICOM = "dicom"
    DICOMWEB = "dicomweb"
    REST = "rest"


class RetrievalState(StrEnum):
    """pending -> running -> completed | failed | cancelled; running -> pending to be tried again."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_RETRIEVAL_STATES = frozenset({RetrievalState.COMPLETED, RetrievalState.FAILED, RetrievalState.CANCELLED})


class WorkitemState(StrEnum):
    """claiming -> in_progress -> completed | canceled; lost: taken from us, or given up. DICOM's spelling."""

    CLAIMING = "claiming"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELED = "canceled"
    LOST = "lost"


class DeliveryState(StrEnum):
    """pending -> delivered; with storage commitment pending -> stored -> delivered. Parked: a person has to act."""

    PENDING = "pending"
    STORED = "stored"
    DELIVERED = "delivered"
    PARKED = "parked"


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC in Python on every database; SQLite itself stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        stored: datetime = value
        return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)


_NOT_INDEXED = text("indexed_at IS NULL OR indexed_at != updated_at")  # as `services.dicomweb.held_index` asks for it


class Base(DeclarativeBase):
    pass


class JobRow(Base):
    """One series on its way from intake to delivery.

    Attributes:
        tenant: whose study it is; nobody else's clients see it.
        idempotency_key: as the client gave it; behind the tenant's name and a line break where that is not `default`.
        arrivals: how often a process other than the listener has said that an instance of the series lies on disk.
        inputs_digest: None before the inputs are recorded, and once they are purged.
        inputs_purged_at / results_purged_at: since when these files count as gone, though some may lie there yet.
        not_before: a queued job whose last attempt failed waits until then.
        indexed_at: `updated_at` as it was when the job's files were last put into the index that DICOMweb searches.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_created", "state", "created_at"),
        Index("ix_jobs_series", "series_instance_uid"),
        Index("ix_jobs_queue", "state", "priority", "queued_at"),
        Index("ix_jobs_started", "started_at"),
        UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
        Index("ix_jobs_tenant_created", "tenant", "created_at"),
        Index("ix_jobs_created", "created_at"),
        Index("ix_jobs_study", "study_instance_uid"),
        Index("ix_jobs_not_indexed", "updated_at", sqlite_where=_NOT_INDEXED, postgresql_where=_NOT_INDEXED),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(TENANT_LENGTH), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT)
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[str] = mapped_column(String(8), default=Priority.ROUTINE.value)
    source: Mapped[str] = mapped_column(String(8))
    input_kind: Mapped[str] = mapped_column(String(8), default="dicom")

    calling_ae_title: Mapped[str | None] = mapped_column(String(80))  # or "dicomweb:NAME", what it was fetched from
    calling_address: Mapped[str | None] = mapped_column(String(ADDRESS_LENGTH))
    study_instance_uid: Mapped[str | None] = mapped_column(String(64))
    series_instance_uid: Mapped[str | None] = mapped_column(String(64))
    instance_count: Mapped[int] = mapped_column(Integer, default=0)
    arrivals: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    inputs_digest: Mapped[str | None] = mapped_column(String(64))
    completion_reason: Mapped[str | None] = mapped_column(String(128))
    supersedes: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    idempotency_key: Mapped[str | None] = mapped_column(String(TENANT_LENGTH + 1 + 255))
    request_digest: Mapped[str | None] = mapped_column(String(64))

    stage: Mapped[str | None] = mapped_column(String(8))
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    stage_seconds: Mapped[dict[str, float]] = mapped_column(JSON, default=dict)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancel_requested: Mapped[bool] = mapped_column(default=False)

    outcome: Mapped[str | None] = mapped_column(String(16))
    findings: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    reasons: Mapped[list[dict[str, str]]] = mapped_column(JSON, default=list)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    queued_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    indexed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    inputs_purged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    results_purged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class OutboxRow(Base):
    """What one destination must get: a result object (`object_path` and its UIDs), or else a notification.

    A notification has a `message_id` that stays the same however often it is sent. Its `message` is what is sent, as
    text; it goes from here when it has arrived, and is None where it is made of the rows of the node in `waits_for`:
    a notification is not due before that node has all of the job's objects.

    `dimse_status` and `status_comment` (Error Comment, 0000,0902) are what the destination last answered about the
    object; None where its last attempt brought no answer. The comment may quote the patient: it is not logged.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        UniqueConstraint("destination", "sop_instance_uid", "job_id", name="uq_outbox_object"),
        UniqueConstraint("message_id", name="uq_outbox_message"),
        Index("ix_outbox_due", "state", "next_attempt_at"),
        Index("ix_outbox_transaction", "transaction_uid"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    destination: Mapped[str] = mapped_column(String(128))
    object_path: Mapped[str | None] = mapped_column(String(512))
    sop_class_uid: Mapped[str | None] = mapped_column(String(64))
    sop_instance_uid: Mapped[str | None] = mapped_column(String(64))
    message_id: Mapped[str | None] = mapped_column(String(36))
    message: Mapped[str | None] = mapped_column(Text)
    waits_for: Mapped[str | None] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16), default=DeliveryState.PENDING.value)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_error: Mapped[str | None] = mapped_column(Text)
    dimse_status: Mapped[int | None] = mapped_column(Integer)
    status_comment: Mapped[str | None] = mapped_column(String(STATUS_COMMENT_LENGTH))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    transaction_uid: Mapped[str | None] = mapped_column(String(64))
    committed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RetrievalRow(Base):
    """One study that is fetched from a node, or the run of a rule that finds such studies."""

    __tablename__ = "retrievals"
    __table_args__ = (
        Index("ix_retrievals_due", "state", "next_attempt_at"),
        Index("ix_retrievals_study", "study_instance_uid"),
        UniqueConstraint("run_key", name="uq_retrievals_run_key"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(TENANT_LENGTH), default=DEFAULT_TENANT, server_default=DEFAULT_TENANT)
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[str] = mapped_column(String(8))
    node: Mapped[str] = mapped_column(String(128))
    study_instance_uid: Mapped[str | None] = mapped_column(String(64))  # None: the run of a rule
    series_instance_uid: Mapped[str | None] = mapped_column(String(64))
    rule: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    run_key: Mapped[str | None] = mapped_column(String(128))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("retrievals.id"), index=True)

    series: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    studies_found: Mapped[int | None] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime] = mapped_column(UtcDateTime)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class HeldSeriesRow(Base):
    """A series of which instances lie here, as its headers say it: a copy to search in, the files are the truth.

    Attributes:
        attributes: what a search returns of study and series, in the DICOM JSON Model (PS3.18 Annex F).
    """

    __tablename__ = "held_series"

    tenant: Mapped[str] = mapped_column(String(TENANT_LENGTH), primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    patient_id: Mapped[str] = mapped_column(Text, index=True)
    patient_name: Mapped[str] = mapped_column(Text)
    accession_number: Mapped[str] = mapped_column(Text, index=True)
    study_id: Mapped[str] = mapped_column(Text)
    study_date: Mapped[str] = mapped_column(Text, index=True)
    study_time: Mapped[str] = mapped_column(Text)
    study_description: Mapped[str] = mapped_column(Text)
    referring_physician_name: Mapped[str] = mapped_column(Text)
    modality: Mapped[str] = mapped_column(Text)
    series_number: Mapped[int | None] = mapped_column(BigInteger)
    series_description: Mapped[str] = mapped_column(Text)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)


class HeldInstanceRow(Base):
    """An instance in the data directory: `place` is its directory there.

    Attributes:
        modified_ns: of the file, when it was read.
        attributes: what a search returns of the instance, in the DICOM JSON Model.
    """

    __tablename__ = "held_instances"
    __table_args__ = (Index("ix_held_instances_series", "study_instance_uid", "series_instance_uid"),)

    tenant: Mapped[str] = mapped_column(String(TENANT_LENGTH), primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    sop_class_uid: Mapped[str] = mapped_column(Text)
    transfer_syntax_uid: Mapped[str] = mapped_column(Text)
    instance_number: Mapped[int | None] = mapped_column(BigInteger)
    place: Mapped[str] = mapped_column(String(256), index=True)
    file_name: Mapped[str] = mapped_column(String(256))
    modified_ns: Mapped[int] = mapped_column(BigInteger)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)


class WorklistItemRow(Base):
    """One workitem of a worklist (Unified Procedure Step, PS3.4 Annex CC) that this site claims or has claimed.

    The transaction UID is what proves, to the origin server, that the workitem is ours: it is here before it is sent.
    """

    __tablename__ = "worklist_items"
    __table_args__ = (
        Index("ix_worklist_items_state", "worklist", "state"),
        UniqueConstraint("worklist", "workitem_uid", name="uq_worklist_items_workitem"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    worklist: Mapped[str] = mapped_column(String(64))
    workitem_uid: Mapped[str] = mapped_column(String(64))
    transaction_uid: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    priority: Mapped[str] = mapped_column(String(8))
    workitem_code: Mapped[dict[str, str]] = mapped_column(JSON)
    inputs: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    cancel_reason: Mapped[str | None] = mapped_column(Text)  # set: a cancellation was requested
    refusals: Mapped[int] = mapped_column(Integer)
    error_message: Mapped[str | None] = mapped_column(Text)

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    claimed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ApiKeyRow(Base):
    """A client's key. Its secret is nowhere: `secret_hash` is the SHA-256 of 256 random bits, in hex."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    tenant: Mapped[str] = mapped_column(String(TENANT_LENGTH))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    secret_hash: Mapped[str] = mapped_column(String(64))
    max_upload_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class BrowserSessionRow(Base):
    """A browser that was shown a key once. It holds the token, and here is only its SHA-256."""

    __tablename__ = "browser_sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
