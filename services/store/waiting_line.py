"""Which queued job starts next, how long another one has to wait, and whether the line is full.

A message in the queue of task ids only says that there is work. Whoever gets one takes the job that this says is next.
STAT goes before routine, the oldest first. So that routine work does not starve: once the oldest routine job has waited
for `routine_longest_wait_s`, it is next after `STAT_IN_A_ROW` STAT starts without a routine one between them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from imaging.errors import QueueFull
from services.store.database import Database
from services.store.jobs import CAN_START, can_start_at, claim_within, utc_now
from services.store.rows import JobRow, JobState, Priority

STAT_IN_A_ROW = 4
_STARTS_TIMED = 50  # of the last so many, those that have ended say how long a job takes
_SHORTEST_RETRY_AFTER_S, _LONGEST_RETRY_AFTER_S = 5, 600
_START = "start"  # what `Database.one_at_a_time` is asked for by those who claim what is next
_QUEUED = JobRow.state == JobState.QUEUED.value
_OLDEST = (  # built once: who asks it holds up the others
    select(JobRow.id, JobRow.queued_at)
    .where(_QUEUED, JobRow.priority == bindparam("priority"), JobRow.queued_at.is_not(None), CAN_START)
    .order_by(JobRow.queued_at)
    .limit(1)
)


class WaitingLine:
    """The queued jobs, in the order of their start. Every question costs an index look-up or two."""

    def __init__(self, database: Database, *, routine_longest_wait_s: float, queue_max_jobs: int = 0) -> None:
        self._database = database
        self._routine_longest_wait_s = routine_longest_wait_s
        self._queue_max_jobs = queue_max_jobs

    def start_next(self, owner: str, *, lease_s: float) -> JobRow | None:
        """Claim the job that is next (`JobStore.claim`); None when none can start now.

        Chosen and claimed in one transaction: of workers that come at once each gets another job, at its first try.
        """
        with self._database.write() as session:
            self._database.one_at_a_time(session, _START)
            while (job_id := self._next(session)) is not None:
                if (job := claim_within(session, job_id, owner, lease_s=lease_s)) is not None:
                    return job  # else somebody cancelled it meanwhile
        return None

    def next_to_start(self) -> str | None:
        """Id of the job that starts next; None when none can start now."""
        with self._database.read() as session:
            return self._next(session)

    def _next(self, session: Session) -> str | None:
        now = utc_now()
        stat, routine = (_oldest(session, priority, now) for priority in (Priority.STAT, Priority.ROUTINE))
        if stat is None or routine is None:
            return next((job_id for job_id, _ in filter(None, (stat, routine))), None)
        overdue = routine[1] + timedelta(seconds=self._routine_longest_wait_s) < now
        return routine[0] if overdue and _stat_was_long_alone(session, now) else stat[0]

    def expected_wait_s(self, position: int) -> float | None:
        """Until the job with so many before it starts, s: by what the last jobs took and how many run at once.

        None while no job has ended yet. What else may come meanwhile is not in it.
        """
        seconds = self._seconds_per_start()
        return None if seconds is None else (position + 1) * seconds

    def make_sure_of_room(self, priority: Priority) -> None:
        """For those who can come again later. A STAT study waits for STAT studies alone.

        Raises:
            QueueFull: `queue_max_jobs` wait already.
        """
        if not self._queue_max_jobs:
            return
        counted = select(func.count()).select_from(JobRow).where(_QUEUED)
        if priority is Priority.STAT:
            counted = counted.where(JobRow.priority == Priority.STAT.value)
        with self._database.read() as session:
            waiting = session.scalar(counted) or 0
        if waiting < self._queue_max_jobs:
            return
        until_room_s = (waiting - self._queue_max_jobs + 1) * (self._seconds_per_start() or 0.0)
        retry_after_s = min(max(round(until_room_s), _SHORTEST_RETRY_AFTER_S), _LONGEST_RETRY_AFTER_S)
        raise QueueFull(f"{waiting} studies wait already", retry_after_s=retry_after_s)

    def _seconds_per_start(self) -> float | None:
        lately = select(JobRow.stage_seconds).where(JobRow.started_at <= utc_now()).order_by(JobRow.started_at.desc())
        with self._database.read() as session:
            took_s = [sum(stages.values()) for stages in session.scalars(lately.limit(_STARTS_TIMED)) if stages]
            running = session.scalar(
                select(func.count()).select_from(JobRow).where(JobRow.state == JobState.RUNNING.value)
            )
        return sum(took_s) / len(took_s) / max(running or 0, 1) if took_s else None


def _oldest(session: Session, priority: Priority, now: datetime) -> tuple[str, datetime] | None:
    oldest = session.execute(_OLDEST, {"priority": priority.value, **can_start_at(now)})
    return oldest.tuples().first()  # type: ignore[return-value]  # queued_at is not None


def _stat_was_long_alone(session: Session, now: datetime) -> bool:
    """Whether the last starts were all STAT. Those that lie ahead, since the clock was set back, do not count."""
    query = select(JobRow.priority).where(JobRow.started_at <= now).order_by(JobRow.started_at.desc())
    return session.scalars(query.limit(STAT_IN_A_ROW)).all() == [Priority.STAT.value] * STAT_IN_A_ROW
