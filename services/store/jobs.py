"""Every change of a job's state, one transaction each.

    receiving -> queued -> running -> delivering -> completed
    receiving -> not_analysable | cancelled ; running -> not_analysable | cancelled | failed
    delivering -> cancelled (late slices) ; failed | cancelled | not_analysable -> queued (retry)

A running job belongs to one worker by a lease that the worker renews. Nothing else may finish it; when a sweep sees
that it is renewed no more, it gives the job back to the queue, and after `max_attempts` it fails. The queue only says
"there is a job": `waiting_line.py` says which is next and `claim` decides, so a message delivered twice does no harm.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import cache
from typing import Any

from sqlalchemy import CursorResult, Integer, Select, and_, bindparam, case, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from imaging.errors import PURGED, Cancelled, NotFound, Reason, StateConflict, WorkerEnding
from services.store.database import Database
from services.store.rows import (
    ADDRESS_LENGTH,
    DEFAULT_TENANT,
    FINAL_STATES,
    DeliveryState,
    JobRow,
    JobState,
    OutboxRow,
    Priority,
    Source,
    Stage,
    UtcDateTime,
)
from services.store.shown_job import SELECT_SHOWN_JOBS, ShownJob

WORKER_LOST = "worker_lost"  # the error code of an attempt whose worker went silent
STORAGE_FULL = "storage_full"  # of one that had no room for its result
CANCELLED = "cancelled"  # the error code of a job that somebody wanted to stop
_SUPERSEDED = "superseded"
_FULL_DISK_WAIT_S = 15.0  # a worker that still has no room does not begin
_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 600.0  # after a failed attempt: three times as long after every further one
_IN_STUDY_STORE = JobRow.source != Source.REST.value  # the files of an upload belong to its job alone
# Statements that are asked all day are built once: SQLAlchemy takes as long to build one as SQLite to answer it.
_IN_THE_ORDER_OF_STARTS = (
    select(JobRow.id)
    .where(JobRow.state == JobState.QUEUED.value)
    .order_by(case((JobRow.priority == Priority.STAT.value, 0), else_=1), JobRow.queued_at)
    .subquery()
)
# One row of all ids: SQLite gives the interpreter away for every row, to whoever waits for it.
_QUEUE = select(func.aggregate_strings(_IN_THE_ORDER_OF_STARTS.c.id, " "))
_CLAIM = (
    update(JobRow)
    .where(JobRow.id == bindparam("job"), JobRow.state == JobState.QUEUED.value)
    .values(
        state=JobState.RUNNING.value,
        stage=Stage.LOAD.value,
        progress=0.0,
        attempts=JobRow.attempts + 1,
        lease_owner=bindparam("owner"),
        lease_expires_at=bindparam("lease_until"),
        started_at=bindparam("now"),
        updated_at=bindparam("now"),
    )
    .returning(JobRow)
    .execution_options(synchronize_session=False)
)
_HELD = (
    JobRow.id == bindparam("job"),
    JobRow.state == JobState.RUNNING.value,
    JobRow.lease_owner == bindparam("owner"),
)
_LEASE = select(JobRow.cancel_requested).where(*_HELD)
_RENEW = (
    update(JobRow)
    .where(*_HELD)
    .values(lease_expires_at=bindparam("lease_until"), updated_at=bindparam("now"))
    .returning(JobRow.cancel_requested)
    .execution_options(synchronize_session=False)
)
_RENEW_AND_SHOW = _RENEW.values(stage=bindparam("reached_stage"), progress=bindparam("reached_progress"))
_SHOWN_NAMED = SELECT_SHOWN_JOBS.where(JobRow.id.in_(bindparam("ids", expanding=True)))
_RETRIED_STATES = (JobState.FAILED, JobState.CANCELLED, JobState.NOT_ANALYSABLE)


def utc_now() -> datetime:
    return datetime.now(UTC)


def receiving_key(series_instance_uid: str | None) -> str:
    """What `Database.one_at_a_time` is asked for by those who open a job for a pushed series, or purge its files."""
    return f"receiving {series_instance_uid}"


CAN_START = or_(
    JobRow.not_before.is_(None),
    JobRow.not_before <= bindparam("now"),
    JobRow.not_before > bindparam("longest_wait"),  # has seen a clock set back
)
"""Whether a queued job does not wait for its next attempt, asked with `can_start_at`."""


def can_start_at(now: datetime) -> dict[str, datetime]:
    return {"now": now, "longest_wait": now + timedelta(seconds=_LONGEST_WAIT_S)}


def claim_within(session: Session, job_id: str, owner: str, *, lease_s: float) -> JobRow | None:
    """`JobStore.claim`, in the transaction of who chooses the job."""
    now = utc_now()
    values = {"job": job_id, "owner": owner, "now": now, "lease_until": now + timedelta(seconds=lease_s)}
    return session.scalars(_CLAIM, values).first()


def outbox_key(job_id: str) -> str:
    """What `Database.one_at_a_time` is asked for by those who change a job's state by its outbox rows."""
    return f"outbox {job_id}"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds a running job. Every renewal makes it another one."""

    job_id: str
    owner: str | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that waits. `can_start` is False until the next attempt of one that failed is due."""

    id: str
    priority: Priority
    changed_at: datetime
    can_start: bool


class LeaseAnswer(Enum):
    """What a worker learns when it renews its lease."""

    HELD = auto()
    CANCEL_REQUESTED = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One object that one destination is to get. `object_path` is relative to the data directory."""

    destination: str
    object_path: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Notification:
    """What one destination is to be told. `OutboxRow` says what the fields mean."""

    destination: str
    message_id: str
    message: str | None = None
    waits_for: str | None = None


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What `JobStore.page` lists; None means any."""

    state: JobState | None = None
    source: Source | None = None
    priority: Priority | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    tenant: str | None = None

    def given(self) -> dict[str, str]:
        """The values that are asked for, by their columns' names."""
        return {field.name: str(value) for field in fields(self) if (value := getattr(self, field.name)) is not None}


def _nothing() -> None:
    pass


class JobStore:
    """The jobs in the database. Returned rows are snapshots: changing them changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Intake

    def open_receiving(
        self,
        *,
        study_instance_uid: str,
        series_instance_uid: str,
        calling_ae_title: str | None = None,
        calling_address: str | None = None,
        priority: Priority = Priority.ROUTINE,
        source: Source = Source.DICOM,
        arrivals: int = 0,
        tenant: str = DEFAULT_TENANT,
    ) -> JobRow:
        """The job that is receiving this series; a new one if none is. A new one supersedes the series' last job.

        Args:
            priority: the least that a new job gets when it is queued.
            arrivals: instances that have just come to lie on disk, when it is not the listener who put them there. Each
                puts the completion of the series off, and a completion that was decided before does not count.
        """
        with self._database.write() as session:
            self._database.one_at_a_time(session, receiving_key(series_instance_uid))
            of_series = (
                select(JobRow)
                .where(
                    JobRow.tenant == tenant,
                    JobRow.study_instance_uid == study_instance_uid,
                    JobRow.series_instance_uid == series_instance_uid,
                    _IN_STUDY_STORE,
                )
                .order_by(JobRow.created_at.desc())
            )
            job = session.scalars(of_series.where(JobRow.state == JobState.RECEIVING.value).with_for_update()).first()
            if job is None:
                last = session.scalars(of_series.where(JobRow.state != JobState.CANCELLED.value)).first()
                job = _new_job(
                    state=JobState.RECEIVING,
                    source=source,
                    tenant=tenant,
                    study_instance_uid=study_instance_uid,
                    series_instance_uid=series_instance_uid,
                    calling_ae_title=calling_ae_title,
                    calling_address=calling_address and calling_address[:ADDRESS_LENGTH],
                    priority=priority.value,
                    supersedes=None if last is None else last.id,
                )
                if last is not None:  # the clock may have been set back since
                    job.created_at = max(job.created_at, last.created_at + timedelta(microseconds=1))
                session.add(job)
            if arrivals:
                job.arrivals += arrivals
                job.updated_at = utc_now()
            return job

    def is_receiving(self, study_instance_uid: str, series_instance_uid: str, *, tenant: str = DEFAULT_TENANT) -> bool:
        """Whether a job is receiving this series."""
        query = select(JobRow.id).where(
            JobRow.tenant == tenant,
            JobRow.study_instance_uid == study_instance_uid,
            JobRow.series_instance_uid == series_instance_uid,
            JobRow.state == JobState.RECEIVING.value,
        )
        with self._database.read() as session:
            return session.scalars(query).first() is not None

    def that_took_in(
        self, study_instance_uid: str, series_instance_uid: str, *, tenant: str = DEFAULT_TENANT
    ) -> Sequence[str]:
        """Ids of the jobs that recorded instances of this series as their inputs, which are not purged.

        A job that was cancelled while it was receiving did not.
        """
        query = select(JobRow.id).where(
            JobRow.tenant == tenant,
            JobRow.study_instance_uid == study_instance_uid,
            JobRow.series_instance_uid == series_instance_uid,
            _IN_STUDY_STORE,
            JobRow.inputs_digest.is_not(None),
        )
        with self._database.read() as session:
            return session.scalars(query).all()

    def segmented_series(self, study_instance_uid: str, *, tenant: str = DEFAULT_TENANT) -> Sequence[str]:
        """Series Instance UIDs of a study that were sent to us, are segmented, or will be, and not purged."""
        states = (JobState.QUEUED, JobState.RUNNING, JobState.DELIVERING, JobState.COMPLETED)
        query = (
            select(JobRow.series_instance_uid)
            .distinct()
            .where(
                JobRow.tenant == tenant,
                JobRow.study_instance_uid == study_instance_uid,
                _IN_STUDY_STORE,
                JobRow.state.in_([state.value for state in states]),
                JobRow.inputs_purged_at.is_(None),
            )
        )
        with self._database.read() as session:
            return [uid for uid in session.scalars(query) if uid is not None]

    def drop_receiving(self, job_id: str, *, reason: str, arrivals: int = 0) -> None:
        """receiving -> cancelled: there is nothing in it to work on. Raises what `complete_intake` does."""
        self._change(
            job_id,
            [JobState.RECEIVING],
            JobRow.arrivals == arrivals,
            state=JobState.CANCELLED.value,
            completion_reason=reason,
            finished_at=utc_now(),
        )

    def receiving(self) -> Sequence[JobRow]:
        with self._database.read() as session:
            return session.scalars(select(JobRow).where(JobRow.state == JobState.RECEIVING.value)).all()

    def count_received(self, job_id: str, instance_count: int) -> None:
        self._change(job_id, [JobState.RECEIVING], instance_count=instance_count)

    def complete_intake(
        self,
        job_id: str,
        *,
        inputs_digest: str,
        instance_count: int,
        completion_reason: str,
        priority: Priority = Priority.ROUTINE,
        arrivals: int = 0,
    ) -> None:
        """receiving -> queued. What is left to do for an earlier, partial state of the series is called off.

        The inputs must be recorded (`StudyStore.write_inputs`) before; enqueue after.

        Args:
            arrivals: the job's, read before its files were listed.

        Raises:
            StateConflict: the job is not receiving, or another process has stored more of the series since.
        """
        now = utc_now()
        with self._database.write() as session:
            _change(
                session,
                job_id,
                [JobState.RECEIVING],
                JobRow.arrivals == arrivals,
                state=JobState.QUEUED.value,
                inputs_digest=inputs_digest,
                instance_count=instance_count,
                completion_reason=completion_reason,
                priority=priority.value,
                queued_at=now,
            )
            self._supersede(session, job_id)

    def set_aside(
        self,
        job_id: str,
        reasons: Sequence[Reason],
        *,
        instance_count: int,
        completion_reason: str,
        inputs_digest: str | None = None,
        arrivals: int = 0,
    ) -> None:
        """receiving -> not_analysable: the files are kept, and the job says why it was not segmented.

        As after `complete_intake`, an earlier state of the series counts no more. With the digest of its recorded
        inputs `retry` has the job worked on all the same. Raises what `complete_intake` does.
        """
        with self._database.write() as session:
            _change(
                session,
                job_id,
                [JobState.RECEIVING],
                JobRow.arrivals == arrivals,
                state=JobState.NOT_ANALYSABLE.value,
                outcome=JobState.NOT_ANALYSABLE.value,
                reasons=[reason.to_dict() for reason in reasons],
                inputs_digest=inputs_digest,
                instance_count=instance_count,
                completion_reason=completion_reason,
                finished_at=utc_now(),
            )
            self._supersede(session, job_id)

    def _supersede(self, session: Session, job_id: str) -> None:
        """Call off the job that this one replaces; what of its result no destination has yet is not sent."""
        earlier = session.scalar(select(JobRow.supersedes).where(JobRow.id == job_id))
        if earlier is None:
            return
        message = f"late slices: job {job_id} replaces this one"
        if _call_off(session, earlier, code=_SUPERSEDED, message=message):
            return
        self._database.one_at_a_time(session, outbox_key(earlier))
        ended = {"state": JobState.CANCELLED.value, "finished_at": utc_now()}
        said = {"error_code": _SUPERSEDED, "error_message": message}
        called_off = _try_change(session, earlier, [JobState.DELIVERING], **ended, **said)
        _try_change(session, earlier, [JobState.FAILED], JobRow.outcome.is_(None), outcome=JobState.FAILED.value)
        refused = (JobState.NOT_ANALYSABLE, JobState.FAILED)
        if called_off or session.scalar(select(JobRow.state).where(JobRow.id == earlier)) in refused:
            _drop_undelivered(session, earlier)

    def submit(
        self,
        job_id: str,
        *,
        input_kind: str,
        inputs_digest: str,
        instance_count: int,
        priority: Priority,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        idempotency_key: str | None = None,
        request_digest: str | None = None,
        warnings: Sequence[Reason] = (),
        tenant: str = DEFAULT_TENANT,
    ) -> tuple[JobRow, bool]:
        """A job for an upload whose files are in place, queued: (job, True).

        With an idempotency key that was used for the same request before: (that job, False).

        Raises:
            StateConflict: the key was used for another request (code ``idempotency_key_reused``).
        """
        job = _new_job(
            state=JobState.QUEUED,
            source=Source.REST,
            id=job_id,
            tenant=tenant,
            input_kind=input_kind,
            inputs_digest=inputs_digest,
            instance_count=instance_count,
            priority=priority.value,
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            idempotency_key=None if idempotency_key is None else _of_tenant(tenant, idempotency_key),
            request_digest=request_digest,
            completion_reason="upload complete",
            reasons=[warning.to_dict() for warning in warnings],
            queued_at=utc_now(),
        )
        try:
            with self._database.write() as session:
                session.add(job)
            return job, True
        except IntegrityError:
            earlier = None
            if idempotency_key:
                earlier = self.by_idempotency_key(idempotency_key, request_digest, tenant=tenant)
            if earlier is None:
                raise
            return earlier, False

    def by_idempotency_key(
        self, idempotency_key: str, request_digest: str | None, *, tenant: str = DEFAULT_TENANT
    ) -> JobRow | None:
        stored = _of_tenant(tenant, idempotency_key)
        with self._database.read() as session:
            job = session.scalars(select(JobRow).where(JobRow.idempotency_key == stored)).first()
        if job is not None and request_digest is not None and job.request_digest != request_digest:
            raise StateConflict(
                f"Idempotency-Key {idempotency_key!r} was used for another request",
                code="idempotency_key_reused",
                remedy="use a new key for a new request",
            )
        return job

    # Looking

    def get(self, job_id: str) -> JobRow:
        with self._database.read() as session:
            job = session.get(JobRow, job_id)
        if job is None:
            raise NotFound(f"no job {job_id!r}")
        return job

    def shown(self, job_ids: Collection[str]) -> Sequence[ShownJob]:
        """Those of the jobs that there are; one query."""
        with self._database.look() as connection:
            return [ShownJob._make(job) for job in connection.execute(_SHOWN_NAMED, {"ids": list(job_ids)}).all()]

    def unknown_among(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the ids that no job has."""
        with self._database.read() as session:
            return {job_id for job_id in job_ids if session.get(JobRow, job_id) is None}

    def first_created_at(self) -> datetime | None:
        """When the oldest job here was made."""
        with self._database.read() as session:
            return session.scalar(select(func.min(JobRow.created_at)))

    def page(self, wanted: JobFilter, *, limit: int, after: JobRow | None = None) -> Sequence[JobRow]:
        """Newest first; `after` is the last row of the page before. Cost does not grow with depth."""
        query = _page_of(select(JobRow), wanted.given(), is_continued=after is not None)
        with self._database.read() as session:
            return session.scalars(query, _page_asked(wanted, limit, after)).all()

    def shown_page(self, wanted: JobFilter, *, limit: int, after: JobRow | None = None) -> Sequence[ShownJob]:
        """`page`, as it is shown."""
        query = _shown_page_of(tuple(wanted.given()), is_continued=after is not None)
        with self._database.look() as connection:
            return [ShownJob._make(job) for job in connection.execute(query, _page_asked(wanted, limit, after)).all()]

    def queue_position(self, job: JobRow | ShownJob) -> int | None:
        """How many jobs start before this one does; None unless it is queued. `stat` goes before `routine`."""
        if job.state != JobState.QUEUED.value:
            return None
        ahead = and_(JobRow.priority == job.priority, JobRow.queued_at < job.queued_at)
        if job.priority == Priority.ROUTINE.value:
            ahead = or_(ahead, JobRow.priority == Priority.STAT.value)
        query = select(func.count()).where(JobRow.state == JobState.QUEUED.value, ahead)
        with self._database.read() as session:
            return session.scalar(query) or 0

    def queue_positions(self) -> dict[str, int]:
        """`queue_position` of every queued job, in one query."""
        with self._database.look() as connection:
            ids = connection.scalar(_QUEUE) or ""
        return {job_id: position for position, job_id in enumerate(ids.split())}

    def queued(self) -> Sequence[JobRow]:
        with self._database.read() as session:
            query = select(JobRow).where(JobRow.state == JobState.QUEUED.value).order_by(JobRow.queued_at)
            return session.scalars(query).all()

    def waiting_to_start(self) -> Sequence[Queued]:
        """The queued jobs, oldest first."""
        can_start = case((CAN_START, True), else_=False)
        columns = (JobRow.id, JobRow.priority, JobRow.updated_at, can_start)
        query = select(*columns).where(JobRow.state == JobState.QUEUED.value).order_by(JobRow.queued_at)
        with self._database.read() as session:
            return [
                Queued(job_id, Priority(priority), changed_at, bool(can))
                for job_id, priority, changed_at, can in session.execute(query, can_start_at(utc_now())).tuples()
            ]

    # By people

    def cancel(self, job_id: str) -> JobRow:
        """Stop a job that has no result yet. A running one stops at its worker's next look.

        Raises:
            StateConflict: it has ended or is being delivered.
        """
        with self._database.write() as session:
            if not _call_off(session, job_id, code=CANCELLED, message="cancelled on request", receiving=True):
                job = session.get(JobRow, job_id)
                if job is None:
                    raise NotFound(f"no job {job_id!r}")
                if job.state != JobState.CANCELLED.value:
                    raise StateConflict(f"job {job_id} is {job.state} and cannot be cancelled")
        return self.get(job_id)

    def can_retry(self, job: JobRow | ShownJob) -> bool:
        """Whether `retry` would queue the job again."""
        if job.state not in _RETRIED_STATES or job.inputs_digest is None:
            return False
        with self._database.read() as session:
            return _newer_of_series(session, job) is None

    def retry(self, job_id: str) -> JobRow:
        """failed | cancelled | not_analysable -> queued with fresh attempts; parked deliveries of a job are sent again.

        Raises:
            StateConflict: the job's state has nothing to retry, a newer job of the series replaces it, or its inputs
                are purged (code ``purged``).
        """
        now = utc_now()
        with self._database.write() as session:
            job = session.get(JobRow, job_id)
            if job is None:
                raise NotFound(f"no job {job_id!r}")
            if job.inputs_purged_at is not None:
                raise StateConflict(
                    f"the inputs of job {job_id} were purged on {job.inputs_purged_at:%Y-%m-%d}",
                    code=PURGED,
                    remedy="send the study again",
                )
            if (newer := _newer_of_series(session, job)) is not None:
                raise StateConflict(f"job {newer} replaces job {job_id}", remedy="retry the newer one, or cancel it")
            retried = _try_change(
                session,
                job_id,
                _RETRIED_STATES,
                JobRow.inputs_digest.is_not(None),
                state=JobState.QUEUED.value,
                queued_at=now,
                not_before=None,
                attempts=0,
                cancel_requested=False,
                error_code=None,
                error_message=None,
                outcome=None,
                findings=None,
                reasons=_intake_reasons(job),
                finished_at=None,
                results_purged_at=None,
                stage=None,
                progress=0.0,
            )
            if retried:
                _drop_undelivered(session, job_id)  # of the answer that is taken back
            else:
                parked = _rows(
                    session.execute(
                        update(OutboxRow)
                        .where(OutboxRow.job_id == job_id, OutboxRow.state == DeliveryState.PARKED.value)
                        .values(state=DeliveryState.PENDING.value, next_attempt_at=now, created_at=now, attempts=0)
                    )
                )
                if not parked:
                    raise StateConflict(f"job {job_id} is {job.state}: nothing to retry")
        return self.get(job_id)

    # By workers

    def claim(self, job_id: str, owner: str, *, lease_s: float) -> JobRow | None:
        """queued -> running for this worker; None when the job is not to be had (done, cancelled or another's)."""
        with self._database.write() as session:
            return claim_within(session, job_id, owner, lease_s=lease_s)

    def renew_lease(
        self, job_id: str, owner: str, *, lease_s: float, reached: tuple[Stage, float] | None = None
    ) -> LeaseAnswer:
        """`reached`, where it is to be shown: the stage, and the fraction of the whole job, 0..1."""
        now = utc_now()
        values = {"job": job_id, "owner": owner, "now": now, "lease_until": now + timedelta(seconds=lease_s)}
        if reached is not None:
            values |= {"reached_stage": reached[0].value, "reached_progress": reached[1]}
        with self._database.write() as session:
            return _answer(session.scalar(_RENEW if reached is None else _RENEW_AND_SHOW, values))

    def look_at_lease(self, job_id: str, owner: str) -> LeaseAnswer:
        """How the lease stands, without renewing it: one read."""
        with self._database.read() as session:
            return _lease(session, job_id, owner)

    def finish(
        self,
        job_id: str,
        owner: str,
        *,
        findings: Mapping[str, Any],
        stage_seconds: Mapping[str, float],
        deliveries: Sequence[Delivery | Notification],
        put_in_place: Callable[[], None] = _nothing,
    ) -> None:
        """running -> delivering with its outbox rows, or -> completed where nobody is to be sent anything.

        Args:
            put_in_place: gives the result its final place. Called while nobody else can take the job over.

        Raises:
            Cancelled: somebody asked for the job to stop.
            StateConflict: the lease was lost meanwhile; the result must not count.
        """
        now = utc_now()
        state = JobState.DELIVERING if deliveries else JobState.COMPLETED
        with self._database.write() as session:
            _end_wanted(
                session,
                job_id,
                owner,
                state=state.value,
                outcome=findings["outcome"],
                findings=dict(findings),
                reasons=list(findings["reasons"]),
                stage_seconds=dict(stage_seconds),
                stage=None,
                progress=1.0,
                finished_at=None if deliveries else now,
            )
            _add_to_outbox(session, job_id, deliveries)
            session.flush()
            put_in_place()

    def finish_not_analysable(
        self,
        job_id: str,
        owner: str,
        findings: Mapping[str, Any],
        deliveries: Sequence[Delivery | Notification] = (),
        put_in_place: Callable[[], None] = _nothing,
    ) -> None:
        """running -> not_analysable, with the outbox rows of the report that says so; else as `finish`."""
        with self._database.write() as session:
            job = session.get(JobRow, job_id)
            _end_wanted(
                session,
                job_id,
                owner,
                state=JobState.NOT_ANALYSABLE.value,
                outcome=JobState.NOT_ANALYSABLE.value,
                findings=dict(findings),
                reasons=[*findings["reasons"], *(job.reasons if job else [])],
                stage=None,
                finished_at=utc_now(),
            )
            _add_to_outbox(session, job_id, deliveries)
            session.flush()
            put_in_place()

    def finish_cancelled(self, job_id: str, owner: str) -> None:
        """running -> cancelled; who asked for it is already recorded."""
        with self._database.write() as session:
            _change(
                session,
                job_id,
                [JobState.RUNNING],
                JobRow.lease_owner == owner,
                state=JobState.CANCELLED.value,
                stage=None,
                lease_owner=None,
                lease_expires_at=None,
                finished_at=utc_now(),
            )

    def fail(self, job_id: str, owner: str, *, code: str, message: str, max_attempts: int) -> JobState:
        """running -> queued while attempts are left, else -> failed. Returns the new state."""
        with self._database.write() as session:
            return _fail(session, job_id, JobRow.lease_owner == owner, code, message, max_attempts)

    def hand_back(self, job_id: str, owner: str, *, code: str, message: str) -> None:
        """running -> queued (or cancelled, where that was asked for), and the attempt does not count: it could not be
        made here and now. Raises StateConflict where the lease was lost."""
        with self._database.write() as session:
            session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.state == JobState.RUNNING.value, JobRow.lease_owner == owner)
                .values(attempts=JobRow.attempts - 1)
            )
            _fail(session, job_id, JobRow.lease_owner == owner, code, message, max_attempts=sys.maxsize)

    def fail_for_lost_process(
        self, owner_prefix: str, *, code: str, message: str, max_attempts: int
    ) -> dict[str, JobState]:
        """`fail`, for the process that died with its job; its parent knows how its leases' owners begin.

        Returns the state of each job that it had: none, where it had ended before.
        """
        held = JobRow.lease_owner.startswith(owner_prefix, autoescape=True)
        with self._database.write() as session:
            running = session.scalars(select(JobRow.id).where(JobRow.state == JobState.RUNNING.value, held)).all()
            return {job_id: _fail(session, job_id, held, code, message, max_attempts) for job_id in running}

    def leases(self) -> Sequence[Lease]:
        """Of all running jobs. Waits for its turn to write, as who renews one has to."""
        query = select(JobRow.id, JobRow.lease_owner, JobRow.lease_expires_at)
        with self._database.write() as session:
            return [Lease(*held) for held in session.execute(query.where(JobRow.state == JobState.RUNNING.value))]

    def take_back_expired(self, expired: Iterable[Lease], *, max_attempts: int) -> Sequence[str]:
        """Jobs whose worker went silent: given back to the queue or failed, unless their lease has been renewed since.

        Returns the ids that are queued again.
        """
        message = "the worker stopped answering in the middle of the job"
        queued = []
        for lease in expired:
            unchanged = and_(JobRow.lease_owner == lease.owner, JobRow.lease_expires_at == lease.expires_at)
            with suppress(StateConflict), self._database.write() as session:
                if _fail(session, lease.job_id, unchanged, WORKER_LOST, message, max_attempts) is JobState.QUEUED:
                    queued.append(lease.job_id)
        return queued

    # By whoever tells that a job failed

    def unreported_failures(self) -> Sequence[JobRow]:
        """Failed jobs of which nobody has been told: those without an outcome. The longest failed first."""
        query = select(JobRow).where(
            JobRow.state == JobState.FAILED.value, JobRow.outcome.is_(None), JobRow.inputs_digest.is_not(None)
        )
        with self._database.read() as session:
            return session.scalars(query.order_by(JobRow.finished_at)).all()

    def report_failure(
        self,
        job: JobRow,
        findings: Mapping[str, Any],
        deliveries: Sequence[Delivery | Notification],
        put_in_place: Callable[[], None],
    ) -> bool:
        """The failed job's findings and outbox rows, and its files: `put_in_place` is called while nobody can retry it.

        False where the failure does not count any more: the job is tried again, or was reported by somebody else.
        """
        with self._database.write() as session:
            same = (JobRow.outcome.is_(None), JobRow.finished_at == job.finished_at)
            outcome = JobState.FAILED.value
            if not _try_change(session, job.id, [JobState.FAILED], *same, outcome=outcome, findings=dict(findings)):
                return False
            _add_to_outbox(session, job.id, deliveries)
            session.flush()
            put_in_place()
            return True

    def _change(self, job_id: str, states: Sequence[JobState], *conditions: Any, **values: Any) -> None:
        with self._database.write() as session:
            _change(session, job_id, states, *conditions, **values)


def _page_of(query: Select[Any], filters: Iterable[str], *, is_continued: bool) -> Select[Any]:
    """A page of `query`, asked with `_page_asked`; `filters` are the columns that `JobFilter` says something of."""
    query = query.where(*(getattr(JobRow, name) == bindparam(name) for name in filters))
    if is_continued:
        # The first condition says nothing that the second does not, and is what an index can begin with.
        before = bindparam("after_created_at", type_=UtcDateTime())
        query = query.where(
            JobRow.created_at <= before, or_(JobRow.created_at < before, JobRow.id < bindparam("after_id"))
        )
    return query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(bindparam("limit", type_=Integer))


@cache  # there are 128, and most are never asked for
def _shown_page_of(filters: tuple[str, ...], *, is_continued: bool) -> Select[Any]:
    return _page_of(SELECT_SHOWN_JOBS, filters, is_continued=is_continued)


def _page_asked(wanted: JobFilter, limit: int, after: JobRow | None) -> dict[str, Any]:
    place = {} if after is None else {"after_created_at": after.created_at, "after_id": after.id}
    return wanted.given() | {"limit": limit} | place


def _new_job(*, state: JobState, source: Source, **values: Any) -> JobRow:
    now = utc_now()
    defaults: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "tenant": DEFAULT_TENANT,
        "input_kind": "dicom",
        "priority": Priority.ROUTINE.value,
        "instance_count": 0,
        "arrivals": 0,
        "progress": 0.0,
        "attempts": 0,
        "cancel_requested": False,
        "stage_seconds": {},
        "reasons": [],
    }
    return JobRow(state=state.value, source=source.value, created_at=now, updated_at=now, **(defaults | values))


def _of_tenant(tenant: str, idempotency_key: str) -> str:
    """The key as it is stored: another tenant's clients may use the same one. No header can hold a line break."""
    return idempotency_key if tenant == DEFAULT_TENANT else f"{tenant}\n{idempotency_key}"


def _rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return int(result.rowcount)


def _try_change(session: Session, job_id: str, states: Sequence[JobState], *conditions: Any, **values: Any) -> bool:
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state.in_([state.value for state in states]), *conditions)
        .values(updated_at=utc_now(), **values)
        .execution_options(synchronize_session=False)  # no row that was read before is used after
    )
    return _rows(session.execute(statement)) == 1


def _change(session: Session, job_id: str, states: Sequence[JobState], *conditions: Any, **values: Any) -> None:
    if _try_change(session, job_id, states, *conditions, **values):
        return
    job = session.get(JobRow, job_id)
    if job is None:
        raise NotFound(f"no job {job_id!r}")
    expected = " or ".join(state.value for state in states)
    raise StateConflict(f"job {job_id} is {job.state} (held by {job.lease_owner}), not {expected}")


def _add_to_outbox(session: Session, job_id: str, deliveries: Sequence[Delivery | Notification]) -> None:
    """In the transaction that ends the job. What a destination has from an earlier attempt is not sent again."""
    if not deliveries:
        return
    sent = select(OutboxRow.destination, func.coalesce(OutboxRow.sop_instance_uid, OutboxRow.message_id))
    already = set(session.execute(sent.where(OutboxRow.job_id == job_id)).tuples())
    now = utc_now()
    for delivery in deliveries:
        identity = delivery.sop_instance_uid if isinstance(delivery, Delivery) else delivery.message_id
        if (delivery.destination, identity) not in already:
            session.add(
                OutboxRow(
                    job_id=job_id,
                    state=DeliveryState.PENDING.value,
                    attempts=0,
                    next_attempt_at=now,
                    created_at=now,
                    **asdict(delivery),
                )
            )


def _drop_undelivered(session: Session, job_id: str) -> None:
    undelivered = OutboxRow.state != DeliveryState.DELIVERED.value
    session.execute(delete(OutboxRow).where(OutboxRow.job_id == job_id, undelivered))


def _end_wanted(session: Session, job_id: str, owner: str, **values: Any) -> None:
    """running -> its end, for the worker that holds it, unless somebody asked for it to stop."""
    held = JobRow.lease_owner == owner
    released = {"lease_owner": None, "lease_expires_at": None, "error_code": None, "error_message": None}
    wanted = JobRow.cancel_requested.is_(False)
    if _try_change(session, job_id, [JobState.RUNNING], held, wanted, **released, **values):
        return
    if _lease(session, job_id, owner) is LeaseAnswer.CANCEL_REQUESTED:
        raise Cancelled(f"job {job_id} was cancelled")
    _change(session, job_id, [JobState.RUNNING], held, wanted)  # raises: it is another's now


def _lease(session: Session, job_id: str, owner: str) -> LeaseAnswer:
    return _answer(session.scalar(_LEASE, {"job": job_id, "owner": owner}))


def _answer(cancelled: bool | None) -> LeaseAnswer:
    """What `cancel_requested` says, of a job that is still held."""
    if cancelled is None:
        return LeaseAnswer.LOST
    return LeaseAnswer.CANCEL_REQUESTED if cancelled else LeaseAnswer.HELD


def _newer_of_series(session: Session, job: JobRow | ShownJob) -> str | None:
    """The newest job that took in a later state of the same pushed series, or is about to."""
    if job.source == Source.REST.value:
        return None
    return session.scalar(
        select(JobRow.id)
        .where(
            JobRow.tenant == job.tenant,
            JobRow.study_instance_uid == job.study_instance_uid,
            JobRow.series_instance_uid == job.series_instance_uid,
            _IN_STUDY_STORE,
            JobRow.state != JobState.CANCELLED.value,
            JobRow.created_at > job.created_at,
        )
        .order_by(JobRow.created_at.desc())
        .limit(1)
    )


def _intake_reasons(job: JobRow) -> list[dict[str, str]]:
    """The job's reasons without those that an earlier attempt's findings gave."""
    found = job.findings["reasons"] if job.findings else []
    return [reason for reason in job.reasons if reason not in found]


def _call_off(session: Session, job_id: str, *, code: str, message: str, receiving: bool = False) -> bool:
    waiting = [JobState.QUEUED, JobState.RECEIVING] if receiving else [JobState.QUEUED]
    said = {"error_code": code, "error_message": message}
    stopped = _try_change(
        session, job_id, waiting, state=JobState.CANCELLED.value, finished_at=utc_now(), cancel_requested=True, **said
    )
    return stopped or _try_change(session, job_id, [JobState.RUNNING], cancel_requested=True, **said)


def _fail(session: Session, job_id: str, condition: Any, code: str, message: str, max_attempts: int) -> JobState:
    job = session.scalars(
        select(JobRow).where(JobRow.id == job_id, JobRow.state == JobState.RUNNING.value, condition)
    ).first()
    if job is None:
        raise StateConflict(f"job {job_id} is not this worker's any more")
    values: dict[str, Any] = {"stage": None, "lease_owner": None, "lease_expires_at": None}
    if job.cancel_requested:
        state = JobState.CANCELLED
    else:
        state = JobState.QUEUED if job.attempts < max_attempts else JobState.FAILED
        values |= {"error_code": code, "error_message": message}
    if state is JobState.QUEUED:
        values |= {"progress": 0.0, "not_before": _after_failure(code, job.attempts)}
    else:
        values["finished_at"] = utc_now()
    _change(session, job_id, [JobState.RUNNING], condition, state=state.value, **values)
    return state


def _after_failure(code: str, attempts: int) -> datetime | None:
    """When to try again: later with every attempt that failed. A worker that went silent has let a lease pass."""
    if code in (WORKER_LOST, WorkerEnding.default_code):
        return None
    if code == STORAGE_FULL:
        return utc_now() + timedelta(seconds=_FULL_DISK_WAIT_S)
    return utc_now() + timedelta(seconds=min(_FIRST_WAIT_S * 3.0 ** (attempts - 1), _LONGEST_WAIT_S))


__all__ = [
    "CAN_START",
    "FINAL_STATES",
    "STORAGE_FULL",
    "WORKER_LOST",
    "Delivery",
    "JobFilter",
    "JobStore",
    "Lease",
    "LeaseAnswer",
    "Notification",
    "can_start_at",
    "claim_within",
    "outbox_key",
    "utc_now",
]
