"""Every change of a retrieval's state, one transaction each.

    pending -> running -> completed | failed | cancelled
    running -> pending (to be tried again) ; pending -> cancelled

Only the one listener of a data directory runs retrievals: what it finds running when it starts, its predecessor left
behind, and takes up again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, case, or_, select, update
from sqlalchemy.orm import Session

from imaging.errors import EmbolensError, NotFound, StateConflict
from services.store.database import Database
from services.store.jobs import utc_now
from services.store.rows import DEFAULT_TENANT, FINAL_RETRIEVAL_STATES, JobRow, Priority, RetrievalRow, RetrievalState

_ACTIVE = (RetrievalState.PENDING.value, RetrievalState.RUNNING.value)
_STAT_FIRST = case((RetrievalRow.priority == Priority.STAT.value, 0), else_=1)


@dataclass(frozen=True, slots=True)
class RetrievedSeries:
    """How far one series of a retrieval is.

    Attributes:
        instances: CT images that the node has; where it is skipped, whatever it has.
        received: those of them that are here, whoever sent them.
        failed: sub-operations that failed when it was last asked for.
        skipped: the code of why it is not fetched; None where it is.
    """

    series_instance_uid: str
    instances: int
    received: int = 0
    failed: int = 0
    skipped: str | None = None

    @property
    def missing(self) -> int:
        return 0 if self.skipped else self.instances - self.received

    def with_progress(self, *, received: int, failed: int) -> RetrievedSeries:
        return replace(self, received=received, failed=failed)


class RetrievalStore:
    """The retrievals in the database. Returned rows are snapshots: changing them changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Asking for one

    def request_study(
        self,
        *,
        node: str,
        study_instance_uid: str,
        series_instance_uid: str | None = None,
        priority: Priority = Priority.ROUTINE,
        rule: dict[str, Any] | None = None,
        parent_id: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> RetrievalRow:
        """The retrieval of this study from this node that is under way for the tenant, else a new one.

        Asked for as `stat`, one that is under way becomes `stat` too.
        """
        with self._database.write() as session:
            self._database.one_at_a_time(session, f"retrieve {study_instance_uid}")
            same = _of_study(node, study_instance_uid).where(
                RetrievalRow.state.in_(_ACTIVE),
                RetrievalRow.cancel_requested.is_(False),
                RetrievalRow.series_instance_uid == series_instance_uid,
                RetrievalRow.parent_id == parent_id,
                RetrievalRow.tenant == tenant,
            )
            if (under_way := session.scalars(same).first()) is not None:
                if priority is Priority.STAT:
                    under_way.priority = priority.value
                return under_way
            row = _new_row(
                node=node,
                study_instance_uid=study_instance_uid,
                series_instance_uid=series_instance_uid,
                priority=priority.value,
                rule=rule,
                parent_id=parent_id,
                tenant=tenant,
            )
            session.add(row)
            return row

    def request_run(
        self,
        *,
        node: str,
        rule: dict[str, Any],
        priority: Priority,
        run_key: str | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> RetrievalRow:
        """The run of a rule; with a key that there has been a run of, that run."""
        row = _new_row(node=node, rule=rule, priority=priority.value, run_key=run_key, tenant=tenant)
        with self._database.write() as session:
            if run_key is not None:
                self._database.one_at_a_time(session, f"run {run_key}")
                before = session.scalars(select(RetrievalRow).where(RetrievalRow.run_key == run_key)).first()
                if before is not None:
                    return before
            session.add(row)
            return row

    def is_known(self, study_instance_uid: str, node: str, *, tenant: str = DEFAULT_TENANT) -> bool:
        """Whether a rule leaves this study alone: the tenant has some of it here, or it was asked for and did not
        fail."""
        of_study = (JobRow.study_instance_uid == study_instance_uid, JobRow.tenant == tenant)
        held = select(JobRow.id).where(*of_study).limit(1)
        asked = _of_study(node, study_instance_uid).where(
            RetrievalRow.state != RetrievalState.FAILED.value, RetrievalRow.tenant == tenant
        )
        with self._database.read() as session:
            return session.scalar(held) is not None or session.scalars(asked).first() is not None

    # Looking

    def get(self, retrieval_id: str) -> RetrievalRow:
        with self._database.read() as session:
            return _row(session, retrieval_id)

    def page(
        self,
        *,
        limit: int,
        state: RetrievalState | None = None,
        study_instance_uid: str | None = None,
        parent_id: str | None = None,
        after: tuple[datetime, str] | None = None,
        tenant: str | None = None,
    ) -> Sequence[RetrievalRow]:
        """Newest first; `after` is the time and id of the last row of the page before. Without a tenant, of all."""
        query = select(RetrievalRow).order_by(RetrievalRow.created_at.desc(), RetrievalRow.id.desc()).limit(limit)
        if state is not None:
            query = query.where(RetrievalRow.state == state.value)
        if study_instance_uid is not None:
            query = query.where(RetrievalRow.study_instance_uid == study_instance_uid)
        if parent_id is not None:
            query = query.where(RetrievalRow.parent_id == parent_id)
        if tenant is not None:
            query = query.where(RetrievalRow.tenant == tenant)
        if after is not None:
            at, retrieval_id = after
            query = query.where(
                or_(
                    RetrievalRow.created_at < at,
                    and_(RetrievalRow.created_at == at, RetrievalRow.id < retrieval_id),
                )
            )
        with self._database.read() as session:
            return session.scalars(query).all()

    def of_series(
        self, study_instance_uid: str, series_instance_uid: str, *, tenant: str = DEFAULT_TENANT
    ) -> tuple[RetrievalRow, RetrievedSeries] | None:
        """The newest retrieval that fetches, or fetched, this series, and how far it is."""
        query = (
            select(RetrievalRow)
            .where(RetrievalRow.study_instance_uid == study_instance_uid, RetrievalRow.tenant == tenant)
            .order_by(RetrievalRow.created_at.desc())
        )
        with self._database.read() as session:
            for row in session.scalars(query):
                for series in series_of(row):
                    if series.series_instance_uid == series_instance_uid and series.skipped is None:
                        return row, series
        return None

    def newest_jobs(self, row: RetrievalRow) -> dict[str, str]:
        """Series Instance UID -> id of the newest job on it, for the series that are fetched."""
        uids = [series.series_instance_uid for series in series_of(row) if series.skipped is None]
        query = (
            select(JobRow.series_instance_uid, JobRow.id)
            .where(
                JobRow.tenant == row.tenant,
                JobRow.study_instance_uid == row.study_instance_uid,
                JobRow.series_instance_uid.in_(uids),
            )
            .order_by(JobRow.created_at)
        )
        with self._database.read() as session:
            return {str(series): job_id for series, job_id in session.execute(query)}

    # By people

    def cancel(self, retrieval_id: str) -> RetrievalRow:
        """Stop a retrieval, and what came of the run of a rule. A running one stops at its next answer from the node.

        Raises:
            StateConflict: it has ended.
        """
        now = utc_now()
        with self._database.write() as session:
            row = _row(session, retrieval_id)
            children = RetrievalRow.parent_id == retrieval_id
            stopped = 0
            for which in (RetrievalRow.id == retrieval_id, children):
                pending = update(RetrievalRow).where(which, RetrievalRow.state == RetrievalState.PENDING.value)
                running = update(RetrievalRow).where(which, RetrievalRow.state == RetrievalState.RUNNING.value)
                stopped += _count(
                    session.execute(
                        pending.values(
                            state=RetrievalState.CANCELLED.value,
                            cancel_requested=True,
                            finished_at=now,
                            updated_at=now,
                        )
                    )
                )
                stopped += _count(session.execute(running.values(cancel_requested=True, updated_at=now)))
            if not stopped and row.state != RetrievalState.CANCELLED.value:
                raise StateConflict(f"retrieval {retrieval_id} is {row.state} and cannot be cancelled")
        return self.get(retrieval_id)

    # By the listener

    def take_up_again(self) -> int:
        """running -> pending for all: call once, when the listener starts. Returns how many."""
        with self._database.write() as session:
            left_behind = update(RetrievalRow).where(RetrievalRow.state == RetrievalState.RUNNING.value)
            return _count(
                session.execute(left_behind.values(state=RetrievalState.PENDING.value, next_attempt_at=utc_now()))
            )

    def claim(self) -> RetrievalRow | None:
        """pending -> running for the most urgent one that is due."""
        with self._database.write() as session:
            self._database.one_at_a_time(session, "retrievals")
            due = (
                select(RetrievalRow)
                .where(RetrievalRow.state == RetrievalState.PENDING.value, RetrievalRow.next_attempt_at <= utc_now())
                .order_by(_STAT_FIRST, RetrievalRow.created_at)
                .limit(1)
            )
            if (row := session.scalars(due).first()) is None:
                return None
            row.state = RetrievalState.RUNNING.value
            row.updated_at = utc_now()
            return row

    def bring_forward(self, *, longest_s: float) -> None:
        """What is not due for longer than anything is put off has been overtaken: the clock was set back. It is due."""
        now = utc_now()
        pending = RetrievalRow.state == RetrievalState.PENDING.value
        overtaken = RetrievalRow.next_attempt_at > now + timedelta(seconds=longest_s)
        with self._database.write() as session:
            session.execute(update(RetrievalRow).where(pending, overtaken).values(next_attempt_at=now))

    def is_cancel_requested(self, retrieval_id: str) -> bool:
        with self._database.read() as session:
            return _row(session, retrieval_id).cancel_requested

    def record_series(self, retrieval_id: str, series: Sequence[RetrievedSeries]) -> None:
        self._update(retrieval_id, series=[asdict(one) for one in series])

    def record_studies(self, retrieval_id: str, studies_found: int) -> None:
        self._update(retrieval_id, studies_found=studies_found)

    def complete(self, retrieval_id: str) -> None:
        now = utc_now()
        self._end(
            retrieval_id, state=RetrievalState.COMPLETED.value, finished_at=now, error_code=None, error_message=None
        )

    def fail(self, retrieval_id: str, error: EmbolensError) -> None:
        self._end(
            retrieval_id,
            state=RetrievalState.FAILED.value,
            attempts=RetrievalRow.attempts + 1,
            finished_at=utc_now(),
            error_code=error.code,
            error_message=str(error),
        )

    def end_cancelled(self, retrieval_id: str) -> None:
        self._end(retrieval_id, state=RetrievalState.CANCELLED.value, finished_at=utc_now())

    def try_again(self, retrieval_id: str, error: EmbolensError, *, wait_s: float) -> None:
        """running -> pending after a failed attempt."""
        self._end(
            retrieval_id,
            state=RetrievalState.PENDING.value,
            attempts=RetrievalRow.attempts + 1,
            next_attempt_at=utc_now() + timedelta(seconds=wait_s),
            error_code=error.code,
            error_message=str(error),
        )

    def give_back(self, retrieval_id: str) -> None:
        """running -> pending, due at once: the listener stops."""
        self._end(retrieval_id, state=RetrievalState.PENDING.value, next_attempt_at=utc_now())

    def _update(self, retrieval_id: str, *conditions: Any, **values: Any) -> bool:
        statement = update(RetrievalRow).where(RetrievalRow.id == retrieval_id, *conditions)
        with self._database.write() as session:
            return _count(session.execute(statement.values(updated_at=utc_now(), **values))) == 1

    def _end(self, retrieval_id: str, **values: Any) -> None:
        """The end of an attempt. Where somebody has asked for the retrieval to stop, it does not wait for another."""
        if values["state"] == RetrievalState.PENDING.value and self.is_cancel_requested(retrieval_id):
            values = {"state": RetrievalState.CANCELLED.value, "finished_at": utc_now()}
        if not self._update(retrieval_id, RetrievalRow.state == RetrievalState.RUNNING.value, **values):
            raise StateConflict(f"retrieval {retrieval_id} is not running")


def series_of(row: RetrievalRow) -> list[RetrievedSeries]:
    return [RetrievedSeries(**one) for one in row.series]


def has_ended(row: RetrievalRow) -> bool:
    return row.state in FINAL_RETRIEVAL_STATES


def _new_row(**values: Any) -> RetrievalRow:
    now = utc_now()
    return RetrievalRow(
        id=str(uuid.uuid4()),
        state=RetrievalState.PENDING.value,
        series=[],
        attempts=0,
        cancel_requested=False,
        next_attempt_at=now,
        created_at=now,
        updated_at=now,
        **values,
    )


def _of_study(node: str, study_instance_uid: str) -> Select[RetrievalRow]:
    return select(RetrievalRow).where(RetrievalRow.node == node, RetrievalRow.study_instance_uid == study_instance_uid)


def _row(session: Session, retrieval_id: str) -> RetrievalRow:
    row = session.get(RetrievalRow, retrieval_id)
    if row is None:
        raise NotFound(f"no retrieval {retrieval_id!r}")
    return row


def _count(result: Any) -> int:
    return int(result.rowcount)
