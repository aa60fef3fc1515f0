"""What is still to be sent, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta

from sqlalchemy import func, select, update

from services.store.database import Database
from services.store.jobs import outbox_key, utc_now
from services.store.rows import DeliveryState, JobRow, JobState, OutboxRow


class Outbox:
    """Rows made in their job's transaction (`JobStore.finish`), sent by the relay until the destination has them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim_due(self, *, limit: int, lease_s: float) -> Sequence[OutboxRow]:
        """Rows that are due, oldest first. Another relay does not see them again before `lease_s` has passed."""
        now = utc_now()
        with self._database.write() as session:
            query = (
                select(OutboxRow)
                .where(OutboxRow.state == DeliveryState.PENDING.value, OutboxRow.next_attempt_at <= now)
                .order_by(OutboxRow.next_attempt_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
            due = session.scalars(query).all()
            for row in due:
                row.next_attempt_at = now + timedelta(seconds=lease_s)
                row.attempts += 1
            return due

    def delivered(self, row: OutboxRow) -> None:
        """The destination has it. The job is completed with its last delivery, in the same transaction."""
        now = utc_now()
        with self._database.write() as session:
            # Else of two relays that deliver the last two rows each would still see the other's as pending.
            self._database.one_at_a_time(session, outbox_key(row.job_id))
            session.execute(
                update(OutboxRow)
                .where(OutboxRow.id == row.id)
                .values(state=DeliveryState.DELIVERED.value, delivered_at=now, last_error=None)
            )
            left = session.scalar(
                select(func.count()).where(
                    OutboxRow.job_id == row.job_id, OutboxRow.state != DeliveryState.DELIVERED.value
                )
            )
            if not left:
                session.execute(
                    update(JobRow)
                    .where(JobRow.id == row.job_id, JobRow.state == JobState.DELIVERING.value)
                    .values(state=JobState.COMPLETED.value, finished_at=now, updated_at=now)
                )

    def postpone(self, row: OutboxRow, error: str, *, wait_s: float) -> None:
        self._set(row, last_error=error, next_attempt_at=utc_now() + timedelta(seconds=wait_s))

    def park(self, row: OutboxRow, error: str) -> None:
        """Not tried again until somebody says so (`JobStore.retry`); stays visible in its job."""
        self._set(row, last_error=error, state=DeliveryState.PARKED.value)

    def make_due(self, destinations: Collection[str]) -> None:
        """What is pending for these destinations is tried now, with a fresh count of attempts."""
        with self._database.write() as session:
            session.execute(
                update(OutboxRow)
                .where(OutboxRow.state == DeliveryState.PENDING.value, OutboxRow.destination.in_(destinations))
                .values(next_attempt_at=utc_now(), attempts=0)
            )

    def of_job(self, job_id: str) -> Sequence[OutboxRow]:
        with self._database.read() as session:
            return session.scalars(select(OutboxRow).where(OutboxRow.job_id == job_id).order_by(OutboxRow.id)).all()

    def _set(self, row: OutboxRow, **values: object) -> None:
        with self._database.write() as session:
            session.execute(update(OutboxRow).where(OutboxRow.id == row.id).values(**values))
