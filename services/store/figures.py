"""How much is where, in figures for those who watch the system: a few counts over indexes, no UID and no name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import func, select

from services.store.database import Database
from services.store.jobs import utc_now
from services.store.rows import DeliveryState, JobRow, JobState, OutboxRow, Priority


@dataclass(frozen=True, slots=True)
class Figures:
    """The state of jobs and deliveries at one moment; every state and priority is there, with 0 where nothing is.

    Attributes:
        oldest_queued_s: how long the oldest queued job of a priority has waited.
        undelivered: by destination and state; what has arrived is not counted.
        oldest_undelivered_s: by destination, since it was written into the outbox or retried.
    """

    jobs: Mapping[JobState, int]
    queued: Mapping[Priority, int]
    oldest_queued_s: Mapping[Priority, float]
    undelivered: Mapping[tuple[str, DeliveryState], int]
    oldest_undelivered_s: Mapping[str, float]


def figures_of(database: Database) -> Figures:
    now = utc_now()
    is_queued = JobRow.state == JobState.QUEUED.value
    is_undelivered = OutboxRow.state.in_([state.value for state in DeliveryState if state != DeliveryState.DELIVERED])
    by_state = select(JobRow.state, func.count()).group_by(JobRow.state)
    by_priority = select(JobRow.priority, func.count(), func.min(JobRow.queued_at)).where(is_queued)
    waiting = select(OutboxRow.destination, OutboxRow.state, func.count(), func.min(OutboxRow.created_at))
    with database.read() as session:
        jobs = dict(session.execute(by_state).tuples().all())
        queued = session.execute(by_priority.group_by(JobRow.priority)).tuples().all()
        rows = waiting.where(is_undelivered).group_by(OutboxRow.destination, OutboxRow.state)
        undelivered = session.execute(rows).tuples().all()
    oldest_undelivered_s: dict[str, float] = {}
    for destination, _, _, since in undelivered:
        waited_s = (now - since).total_seconds()
        oldest_undelivered_s[destination] = max(waited_s, oldest_undelivered_s.get(destination, 0.0))
    return Figures(
        jobs={state: jobs.get(state.value, 0) for state in JobState},
        queued=dict.fromkeys(Priority, 0) | {Priority(priority): count for priority, count, _ in queued},
        oldest_queued_s=dict.fromkeys(Priority, 0.0)
        | {Priority(priority): (now - since).total_seconds() for priority, _, since in queued if since is not None},
        undelivered={(to, DeliveryState(state)): count for to, state, count, _ in undelivered},
        oldest_undelivered_s=oldest_undelivered_s,
    )
