"""Making good what a crash or an emptied queue left behind: nothing that was accepted waits for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime

from imaging.errors import QueueUnavailable
from services.delivery.unchanged import Unchanged
from services.settings import Settings
from services.store.jobs import WORKER_LOST, JobStore, Lease
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue

log = logging.getLogger(__name__)

_DAY_S = 24 * 3600.0
_LEFTOVERS_EVERY_S = 3600.0
_SLACK_S = 1.0  # a sweep takes longer than the pause between two
_FIRST_WAIT_S = 5.0  # after a first failed attempt; three times as long after every further one


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
        self._queue_answers = True
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

        A job that a worker has taken from the queue and not yet claimed is enqueued a second time; whoever comes
        second finds it claimed.
        """
        try:
            waiting = self._queue.waiting()
        except QueueUnavailable as error:
            if self._queue_answers:
                log.warning("%s; jobs wait until it does", error.message)
            self._queue_answers = False
            return
        self._queue_answers = True
        lost = {(job.id, job.updated_at): job for job in self._jobs.queued() if job.id not in waiting}
        for which, unchanged_s in self._not_in_queue.look(lost).items():
            job = lost[which]
            if unchanged_s >= self._wait_s(job):
                log.info("job %s is enqueued again", job.id)
                self._queue.enqueue(job.id, Priority(job.priority))

    def _wait_s(self, job: JobRow) -> float:
        """How long the queue knows nothing of the job before the sweep enqueues it: longer with every failed attempt.

        A worker that went silent has let a whole lease pass already.
        """
        failed = job.attempts if job.error_code not in (None, WORKER_LOST) else 0
        spacing_s = _FIRST_WAIT_S * 3.0 ** (failed - 1) if failed else 0.0
        return max(self._settings.sweep_s, spacing_s)

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
