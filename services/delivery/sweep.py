"""Making good what a crash or an emptied queue left behind: nothing that was accepted waits for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime

from imaging.errors import QueueUnavailable
from services.delivery.unchanged import Unchanged
from services.settings import Settings
from services.store.jobs import JobStore, Lease
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue

log = logging.getLogger(__name__)

_DAY_S = 24 * 3600.0
_LEFTOVERS_EVERY_S = 3600.0
_SLACK_S = 1.0  # a sweep takes longer than the pause between two


class Sweep:
    """Run every few seconds by the relay; harmless when several relays do it."""

    def __init__(
        self,
        settings: Settings,
        store: StudyStore,
        jobs: JobStore,
        queue: TaskQueue,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._queue = queue
        self._queue_answers = self._had_room = True
        self._leftovers_at = -_LEFTOVERS_EVERY_S
        longest_s = 2 * settings.sweep_s + _SLACK_S
        self._leases = Unchanged[Lease](longest_s, clock)
        self._not_in_queue = Unchanged[tuple[str, datetime]](longest_s, clock)

    def run(self) -> None:
        held_for_s = self._leases.look(self._jobs.leases())
        silent = [lease for lease, unchanged_s in held_for_s.items() if unchanged_s > self._settings.lease_s]
        for job_id in self._jobs.take_back_expired(silent, max_attempts=self._settings.max_attempts):
            log.warning("job %s was taken back from a worker that went silent", job_id)
        self._enqueue_what_the_queue_lost()
        if removed := self._store.remove_stale_arrivals(older_than_s=_DAY_S):
            log.info("%d unfinished arrivals older than a day removed", removed)
        if time.monotonic() - self._leftovers_at >= _LEFTOVERS_EVERY_S:
            self._leftovers_at = time.monotonic()
            self._remove_directories_without_job()

    def _enqueue_what_the_queue_lost(self) -> None:
        """Queued jobs of which the queue knows nothing.

        A message only says that there is a job: as many messages as jobs that can start are enough, whosever ids they
        carry. One too many does no harm, since whoever gets it finds nothing to claim.
        """
        try:
            waiting = self._queue.waiting()
        except QueueUnavailable as error:
            if self._queue_answers:
                log.warning("%s; jobs wait until it does", error.message)
            self._queue_answers = False
            return
        self._queue_answers = True
        if not self._has_room():
            return
        queued = self._jobs.waiting_to_start()
        lost = {(job.id, job.changed_at): job for job in queued if job.id not in waiting}
        not_in_queue_s = self._not_in_queue.look(lost)
        unknown = [
            job for which, job in lost.items() if job.can_start and not_in_queue_s[which] >= self._settings.sweep_s
        ]
        missing = sum(job.can_start for job in queued) - len(waiting)
        for job in unknown[: max(missing, 0)]:
            log.info("job %s is enqueued again", job.id)
            self._queue.enqueue(job.id, job.priority)

    def _has_room(self) -> bool:
        """Whether a worker would begin with a job; one in the queue that no worker could take is back here."""
        had_room, self._had_room = self._had_room, self._store.room().has_for_result
        if had_room and not self._had_room:
            log.error("the disk of the data directory is full; queued jobs wait until there is room")
        return self._had_room

    def _remove_directories_without_job(self) -> None:
        """Job directories older than a day that no row knows, as a process leaves behind that died before its insert.

        Those from before the first row are left alone: they are another database's, not leftovers.
        """
        first = self._jobs.first_created_at()
        if first is None:
            return
        old = [job_id for job_id, changed_at in self._store.old_jobs(older_than_s=_DAY_S).items() if changed_at > first]
        for job_id in self._jobs.unknown_among(old):
            log.info("the directory of job %s, which does not exist, is removed", job_id)
            self._store.remove_job(job_id)
