"""What is still to be sent, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, bindparam, case, false, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from imaging.errors import NotFound, StateConflict
from imaging.findings import Outcome
from services.store.database import Database
from services.store.jobs import outbox_key, utc_now
from services.store.rows import STATUS_COMMENT_LENGTH, DeliveryState, JobRow, JobState, OutboxRow, Priority
from services.store.shown_job import SELECT_SHOWN_DELIVERIES, ShownDelivery

CLAIM_S = 20.0  # a relay's claim on a row, which it renews for as long as it is sending
_URGENCY = case(
    (
        and_(
            JobRow.priority == Priority.STAT.value,
            JobRow.outcome == Outcome.EMBOLUS_FOUND.value,
            OutboxRow.message_id.is_not(None),
        ),
        0,
    ),
    (JobRow.priority == Priority.STAT.value, 1),
    else_=2,
)

_SHOWN_OF_JOBS = SELECT_SHOWN_DELIVERIES.where(OutboxRow.job_id.in_(bindparam("job_ids", expanding=True))).order_by(
    OutboxRow.id
)


def _due(now: datetime) -> ColumnElement[bool]:
    other = aliased(OutboxRow)

    def of_the_same_job(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        return select(other.id).where(other.job_id == OutboxRow.job_id, *conditions).exists()

    waited_for = of_the_same_job(other.destination == OutboxRow.waits_for, other.state != DeliveryState.DELIVERED.value)
    to_be_sent_there = of_the_same_job(
        other.destination == OutboxRow.destination, other.state == DeliveryState.PENDING.value
    )
    return and_(
        OutboxRow.next_attempt_at <= now,
        or_(
            and_(OutboxRow.state == DeliveryState.PENDING.value, ~waited_for),
            and_(OutboxRow.state == DeliveryState.STORED.value, ~to_be_sent_there),
        ),
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a destination said of an object; `status` is None where it said nothing."""

    status: int | None = None
    comment: str = ""


class Outbox:
    """Rows made in their job's transaction (`JobStore.finish`), sent by the relay until the destination has them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due_destinations(self) -> Sequence[str]:
        """Destinations that something is due for, the most urgent first."""
        query = (
            select(OutboxRow.destination)
            .join(JobRow, JobRow.id == OutboxRow.job_id)
            .where(_due(utc_now()))
            .group_by(OutboxRow.destination)
            .order_by(func.min(_URGENCY), func.min(OutboxRow.next_attempt_at))
        )
        with self._database.read() as session:
            return session.scalars(query).all()

    def claim_due(self, *, limit: int, lease_s: float, destination: str | None = None) -> Sequence[OutboxRow]:
        """Rows that are due, to one destination or to any. Another relay does not see them before `lease_s` has passed.

        What tells of emboli in a STAT study comes first, then what else is STAT, then the oldest. A stored row is due
        when its node is to be asked to commit: nothing of its job is to be sent there any more, and no report came.
        """
        now = utc_now()
        with self._database.write() as session:
            query = (
                select(OutboxRow)
                .join(JobRow, JobRow.id == OutboxRow.job_id)
                .where(_due(now))
                .order_by(_URGENCY, OutboxRow.next_attempt_at)
                .limit(limit)
                .with_for_update(skip_locked=True, of=OutboxRow)
            )
            if destination is not None:
                query = query.where(OutboxRow.destination == destination)
            due = session.scalars(query).all()
            for row in due:
                row.next_attempt_at = now + timedelta(seconds=lease_s)
                row.last_attempt_at = now
                row.attempts += 1
            return due

    def renew(self, rows: Collection[OutboxRow], *, lease_s: float) -> None:
        """Keep claimed rows for so much longer. What has been put off or written down meanwhile stays as it is."""
        until = utc_now() + timedelta(seconds=lease_s)
        with self._database.write() as session:
            session.execute(update(OutboxRow).where(_still_claimed(rows)).values(next_attempt_at=until))
        for row in rows:
            row.next_attempt_at = until

    def delivered(self, row: OutboxRow, answer: Answer | None = None) -> None:
        """The destination has it. The job is completed with its last delivery, in the same transaction.

        Without an answer, here as below, what it answered before stays.
        """
        with self._database.write() as session:
            self._deliver(session, [row.id], row.job_id, **_columns(answer))

    def _deliver(self, session: Session, row_ids: Collection[int], job_id: str, **more: object) -> None:
        now = utc_now()
        # Else of two relays that deliver the last two rows each would still see the other's as pending.
        self._database.one_at_a_time(session, outbox_key(job_id))
        session.execute(
            update(OutboxRow)
            .where(OutboxRow.id.in_(row_ids))
            .values(state=DeliveryState.DELIVERED.value, delivered_at=now, last_error=None, message=None, **more)
        )
        left = session.scalar(
            select(func.count()).where(OutboxRow.job_id == job_id, OutboxRow.state != DeliveryState.DELIVERED.value)
        )
        if not left:
            session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.state == JobState.DELIVERING.value)
                .values(state=JobState.COMPLETED.value, finished_at=now, updated_at=now)
            )

    def stored(self, row: OutboxRow, answer: Answer | None = None) -> None:
        """The node has it and is yet to commit to keeping it. What it was asked about it before counts no more."""
        stored = {"state": DeliveryState.STORED.value, "transaction_uid": None, "last_error": None}
        self._set(row, **stored, next_attempt_at=utc_now(), **_columns(answer))

    def asking(
        self, rows: Sequence[OutboxRow], transaction_uid: str, *, wait_s: float, error: str | None = None
    ) -> None:
        """About to ask for the commitment of stored rows: the report may come before the request is answered.

        Without a report for so long they are due again. A report on an earlier transaction counts no more.
        """
        next_attempt_at = utc_now() + timedelta(seconds=wait_s)
        with self._database.write() as session:
            session.execute(
                update(OutboxRow)
                .where(OutboxRow.id.in_([row.id for row in rows]), OutboxRow.state == DeliveryState.STORED.value)
                .values(transaction_uid=transaction_uid, next_attempt_at=next_attempt_at, last_error=error)
            )

    def of_transaction(self, destination: str, transaction_uid: str) -> Sequence[OutboxRow]:
        """What this destination was asked to commit to and has not been heard of since."""
        query = select(OutboxRow).where(
            OutboxRow.destination == destination,
            OutboxRow.transaction_uid == transaction_uid,
            OutboxRow.state == DeliveryState.STORED.value,
        )
        with self._database.read() as session:
            return session.scalars(query).all()

    def committed(self, rows: Sequence[OutboxRow]) -> None:
        """The node keeps them; `delivered` for all of them."""
        for job_id in {row.job_id for row in rows}:
            with self._database.write() as session:
                self._deliver(session, [row.id for row in rows if row.job_id == job_id], job_id, committed_at=utc_now())

    def postpone(
        self,
        row: OutboxRow,
        error: str,
        *,
        wait_s: float,
        state: DeliveryState = DeliveryState.PENDING,
        answer: Answer | None = None,
    ) -> None:
        """`state` is what it waits in: a stored row may wait to be asked for, or to be sent again."""
        next_attempt_at = utc_now() + timedelta(seconds=wait_s)
        self._set(row, last_error=error, state=state.value, next_attempt_at=next_attempt_at, **_columns(answer))

    def park(self, row: OutboxRow, error: str, answer: Answer | None = None) -> None:
        """Not tried again until somebody says so (`retry`, `JobStore.retry`); stays visible in its job."""
        self._set(row, last_error=error, state=DeliveryState.PARKED.value, **_columns(answer))

    def give_back(self, rows: Collection[OutboxRow]) -> None:
        """Claimed, and not tried to the end: due at once, and the attempt does not count. As for `renew`, what is not
        this claim's any more stays as it is."""
        to_be_done = OutboxRow.state.in_([DeliveryState.PENDING.value, DeliveryState.STORED.value])
        with self._database.write() as session:
            session.execute(
                update(OutboxRow)
                .where(_still_claimed(rows), to_be_done)
                .values(next_attempt_at=utc_now(), attempts=OutboxRow.attempts - 1)
            )

    def retry(self, job_id: str, delivery_id: int) -> None:
        """Send one delivery now, its attempts counted afresh: a parked one, or one that waits for its next attempt.

        A stored one is asked about again. What is due within `CLAIM_S` may be being sent: it stays as it is.

        Raises:
            NotFound: the job has no such delivery.
            StateConflict: it has arrived.
        """
        with self._database.write() as session:
            row = session.get(OutboxRow, delivery_id)
            if row is None or row.job_id != job_id:
                raise NotFound(f"job {job_id} has no delivery {delivery_id}")
            if row.state == DeliveryState.DELIVERED:
                raise StateConflict(f"delivery {delivery_id} is {row.state}: nothing to retry")
            now = utc_now()
            afresh = {"next_attempt_at": now, "created_at": now, "attempts": 0}
            this, is_parked = OutboxRow.id == delivery_id, OutboxRow.state == DeliveryState.PARKED.value
            session.execute(update(OutboxRow).where(this, _waits(now)).values(afresh))
            session.execute(
                update(OutboxRow).where(this, is_parked).values(afresh | {"state": DeliveryState.PENDING.value})
            )

    def bring_forward(self, *, longest_s: float, longest_commitment_s: float = 0.0) -> None:
        """What is not due for longer than anything is put off has been overtaken: the clock was set back. It is due.

        Args:
            longest_s: the longest wait after a failed attempt, or of a claim.
            longest_commitment_s: the longest wait for a report on storage commitment.
        """
        now = utc_now()

        def overtaken(after_s: float) -> ColumnElement[bool]:
            return OutboxRow.next_attempt_at > now + timedelta(seconds=after_s)

        not_asked = or_(OutboxRow.state == DeliveryState.PENDING.value, OutboxRow.transaction_uid.is_(None))
        to_be_done = OutboxRow.state.in_([DeliveryState.PENDING.value, DeliveryState.STORED.value])
        too_late = or_(and_(not_asked, overtaken(longest_s)), overtaken(max(longest_s, longest_commitment_s)))
        with self._database.write() as session:
            session.execute(update(OutboxRow).where(to_be_done, too_late).values(next_attempt_at=now))

    def make_due(self, destinations: Collection[str]) -> None:
        """What is pending for these destinations is tried now, with a fresh count of attempts.

        What is due within `CLAIM_S` may be being sent: it stays as it is.
        """
        now = utc_now()
        with self._database.write() as session:
            session.execute(
                update(OutboxRow)
                .where(
                    OutboxRow.state == DeliveryState.PENDING.value,
                    OutboxRow.destination.in_(destinations),
                    _waits(now),
                )
                .values(next_attempt_at=now, attempts=0)
            )

    def of_job(self, job_id: str) -> Sequence[OutboxRow]:
        """In the order in which they were written."""
        with self._database.read() as session:
            return session.scalars(select(OutboxRow).where(OutboxRow.job_id == job_id).order_by(OutboxRow.id)).all()

    def shown_of(self, job_ids: Collection[str]) -> dict[str, list[ShownDelivery]]:
        """In the same order, of those of the jobs that have any; one query."""
        found: dict[str, list[ShownDelivery]] = {}
        with self._database.look() as connection:
            for row in connection.execute(_SHOWN_OF_JOBS, {"job_ids": list(job_ids)}).all():
                delivery = ShownDelivery._make(row)
                found.setdefault(delivery.job_id, []).append(delivery)
        return found

    def objects_at(self, job_id: str, destination: str) -> Sequence[OutboxRow]:
        """The objects of a job that a destination has."""
        query = select(OutboxRow).where(
            OutboxRow.job_id == job_id,
            OutboxRow.destination == destination,
            OutboxRow.sop_instance_uid.is_not(None),
            OutboxRow.state == DeliveryState.DELIVERED.value,
        )
        with self._database.read() as session:
            return session.scalars(query.order_by(OutboxRow.id)).all()

    def _set(self, row: OutboxRow, **values: object) -> None:
        with self._database.write() as session:
            not_delivered = OutboxRow.state != DeliveryState.DELIVERED.value  # meanwhile, by another process
            session.execute(update(OutboxRow).where(OutboxRow.id == row.id, not_delivered).values(**values))


def _still_claimed(rows: Collection[OutboxRow]) -> ColumnElement[bool]:
    """Of claimed rows, those that nobody has put off, brought forward or claimed since."""
    return or_(
        false(), *(and_(OutboxRow.id == row.id, OutboxRow.next_attempt_at == row.next_attempt_at) for row in rows)
    )


def _waits(now: datetime) -> ColumnElement[bool]:
    """Put off, or asked about, for longer than any claim lasts: no relay has it in hand. The rest comes by itself."""
    to_be_done = OutboxRow.state.in_([DeliveryState.PENDING.value, DeliveryState.STORED.value])
    return and_(to_be_done, OutboxRow.next_attempt_at > now + timedelta(seconds=CLAIM_S))


def _columns(answer: Answer | None) -> dict[str, object]:
    if answer is None:
        return {}
    return {"dimse_status": answer.status, "status_comment": answer.comment[:STATUS_COMMENT_LENGTH] or None}
