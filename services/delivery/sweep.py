"""Making good what a crash or an emptied queue left behind: nothing that was accepted waits for ever."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from imaging.errors import QueueUnavailable
from services.settings import Settings
from services.store.jobs import JobStore, utc_now
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue

log = logging.getLogger(__name__)

_DAY_S = 24 * 3600.0
_LEFTOVERS_EVERY_S = 3600.0


class Sweep:
    """Run every few seconds by the relay; harmless when several relays do it."""

    def __init__(self, settings: Settings, store: StudyStore, jobs: JobStore, queue: TaskQueue) -> None:
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._queue = queue
        self._queue_answers = self._had_room = True
        self._leftovers_at = -_LEFTOVERS_EVERY_S

    def run(self) -> None:
        for job_id in self._jobs.take_back_expired(max_attempts=self._settings.max_attempts):
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
        startable = self._jobs.startable()
        on_the_way_since = utc_now() - timedelta(seconds=self._settings.sweep_s)
        unknown = [
            (job_id, priority)
            for job_id, priority, changed_at in startable
            if job_id not in waiting and changed_at < on_the_way_since
        ]
        for job_id, priority in unknown[: max(len(startable) - len(waiting), 0)]:
            log.info("job %s is enqueued again", job_id)
            self._queue.enqueue(job_id, priority)

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
