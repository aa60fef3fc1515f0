"""The workitems that this site claims, works on, or has ended; every change is one transaction.

    claiming -> in_progress -> completed | canceled | lost ; claiming -> nothing (somebody else was faster)

A workitem is here, with its transaction UID, before the origin server is asked for it: a process that dies between the
two finds it again. Only the one listener of a data directory works on them.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydicom.uid import generate_uid
from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.store.database import Database
from services.store.jobs import utc_now
from services.store.rows import DEFAULT_TENANT, JobRow, JobState, Priority, Source, WorkitemState, WorklistItemRow

_HELD = (WorkitemState.CLAIMING.value, WorkitemState.IN_PROGRESS.value)


@dataclass(frozen=True, slots=True)
class InputSeries:
    """A series that a workitem names as its input.

    Attributes:
        sop_instance_uids: the images that it names; empty: it names none, the series is meant.
        node: whom to fetch it from, as a retrieval names it; None where the workitem names nobody that is known here.
        retrieval_id: of the retrieval that was asked for.
        is_retried: whether a job that had ended before was asked to be worked on again.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uids: tuple[str, ...] = ()
    node: str | None = None
    retrieval_id: str | None = None
    is_retried: bool = False


class WorklistItems:
    """The workitems in the database. Returned rows are snapshots: changing them changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember(
        self,
        worklist: str,
        workitem_uid: str,
        *,
        priority: Priority,
        workitem_code: dict[str, str],
        inputs: Sequence[InputSeries],
    ) -> WorklistItemRow | None:
        """A new row in `claiming`, with a new transaction UID; None where the workitem is known already."""
        now = utc_now()
        row = WorklistItemRow(
            id=str(uuid.uuid4()),
            worklist=worklist,
            workitem_uid=workitem_uid,
            transaction_uid=generate_uid(prefix=None),
            state=WorkitemState.CLAIMING.value,
            priority=priority.value,
            workitem_code=workitem_code,
            inputs=[asdict(one) for one in inputs],
            refusals=0,
            created_at=now,
            updated_at=now,
        )
        try:
            with self._database.write() as session:
                session.add(row)
        except IntegrityError:
            return None
        return row

    def forget(self, item_id: str) -> None:
        """claiming -> nothing: it never was ours."""
        with self._database.write() as session:
            claiming = WorklistItemRow.state == WorkitemState.CLAIMING.value
            session.execute(delete(WorklistItemRow).where(WorklistItemRow.id == item_id, claiming))

    def get(self, worklist: str, workitem_uid: str) -> WorklistItemRow | None:
        query = select(WorklistItemRow).where(
            WorklistItemRow.worklist == worklist, WorklistItemRow.workitem_uid == workitem_uid
        )
        with self._database.read() as session:
            return session.scalars(query).first()

    def held(self, worklist: str) -> Sequence[WorklistItemRow]:
        """Those that are to be brought to an end, oldest first."""
        query = (
            select(WorklistItemRow)
            .where(WorklistItemRow.worklist == worklist, WorklistItemRow.state.in_(_HELD))
            .order_by(WorklistItemRow.created_at)
        )
        with self._database.read() as session:
            return session.scalars(query).all()

    def held_beyond(self, worklists: Collection[str]) -> int:
        """How many are held of worklists that are not among these."""
        query = select(WorklistItemRow.id).where(
            WorklistItemRow.worklist.not_in(worklists), WorklistItemRow.state.in_(_HELD)
        )
        with self._database.read() as session:
            return len(session.scalars(query).all())

    def known_among(self, worklist: str, workitem_uids: Collection[str]) -> set[str]:
        query = select(WorklistItemRow.workitem_uid).where(
            WorklistItemRow.worklist == worklist, WorklistItemRow.workitem_uid.in_(workitem_uids)
        )
        with self._database.read() as session:
            return set(session.scalars(query))

    def claimed(self, item_id: str) -> None:
        self._update(item_id, state=WorkitemState.IN_PROGRESS.value, claimed_at=utc_now())

    def record_inputs(self, item_id: str, inputs: Sequence[InputSeries]) -> None:
        self._update(item_id, inputs=[asdict(one) for one in inputs])

    def request_cancel(self, worklist: str, workitem_uid: str, reason: str) -> bool:
        """Note down that somebody asked the origin server for it; False where we do not hold the workitem."""
        row = self.get(worklist, workitem_uid)
        return row is not None and self._update(row.id, cancel_reason=reason)

    def count_refusal(self, item_id: str, message: str) -> None:
        """The origin server did not let the workitem end."""
        self._update(item_id, refusals=WorklistItemRow.refusals + 1, error_message=message)

    def end(self, item_id: str, state: WorkitemState, message: str | None = None) -> None:
        self._update(item_id, state=state.value, error_message=message, finished_at=utc_now())

    def newest_job(
        self, study_instance_uid: str, series_instance_uid: str, *, tenant: str = DEFAULT_TENANT
    ) -> JobRow | None:
        """The job that stands for what is here of a series, or is receiving it.

        An upload's is none: it need not hold the whole series. Nor is one that was dropped since nothing new had come.
        """
        query = (
            select(JobRow)
            .where(
                JobRow.tenant == tenant,
                JobRow.study_instance_uid == study_instance_uid,
                JobRow.series_instance_uid == series_instance_uid,
                JobRow.source != Source.REST.value,
                or_(
                    JobRow.inputs_digest.is_not(None),
                    JobRow.cancel_requested.is_(True),
                    JobRow.state == JobState.RECEIVING.value,
                ),
            )
            .order_by(JobRow.created_at.desc())
            .limit(1)
        )
        with self._database.read() as session:
            return session.scalars(query).first()

    def _update(self, item_id: str, **values: Any) -> bool:
        held = update(WorklistItemRow).where(WorklistItemRow.id == item_id, WorklistItemRow.state.in_(_HELD))
        with self._database.write() as session:
            result: Any = session.execute(held.values(updated_at=utc_now(), **values))
            return int(result.rowcount) == 1


def inputs_of(row: WorklistItemRow) -> list[InputSeries]:
    return [InputSeries(**one | {"sop_instance_uids": tuple(one["sop_instance_uids"])}) for one in row.inputs]
