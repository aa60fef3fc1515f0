"""A job's lease, renewed in the background for as long as the work on it lasts, and with it how far the work is."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import Cancelled, StateConflict, WorkerEnding
from services.store.jobs import JobStore, LeaseAnswer
from services.store.rows import Stage

log = logging.getLogger(__name__)

_BEAT_S = 1.0


class HeldLease:
    """Renews the lease every third of its length between `__enter__` and `__exit__`.

    In between it looks every second whether somebody asked for the job to stop: a read, where renewing is a write.
    Where the work has got on since, that second's write says how far, and renews the lease. The thread only takes
    notes; the working thread asks with `check` at moments of its own choosing, and leaves in `reached` where it is.
    """

    def __init__(
        self, jobs: JobStore, job_id: str, owner: str, *, lease_s: float, is_ending: Callable[[], bool] = lambda: False
    ) -> None:
        """`is_ending`: whether this process has to end before the job does."""
        self._jobs = jobs
        self._job_id = job_id
        self._owner = owner
        self._lease_s = lease_s
        self._is_ending = is_ending
        self._renewed_at = time.monotonic()
        self._answer = LeaseAnswer.HELD
        self.reached: tuple[Stage, float] | None = None  # and the fraction of the whole job, 0..1
        self._shown: tuple[Stage, float] | None = None
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._thread.join()

    def check(self) -> None:
        """Nothing while the job is ours and wanted.

        Raises:
            Cancelled: somebody asked for the job to stop.
            WorkerEnding: this process has to end now.
            StateConflict: the job is not ours any more (code ``lease_lost``).
        """
        if self._answer is LeaseAnswer.CANCEL_REQUESTED:
            raise Cancelled(f"job {self._job_id} was cancelled")
        if self._answer is LeaseAnswer.LOST:
            raise StateConflict(f"job {self._job_id} is another worker's now", code="lease_lost")
        if self._is_ending():
            raise WorkerEnding("the worker was told to end in the middle of the job")

    def _keep_renewing(self) -> None:
        while not self._released.wait(min(_BEAT_S, self._lease_s / 3)):
            asked_at, reached = time.monotonic(), self.reached
            is_fresh = asked_at - self._renewed_at + _BEAT_S / 2 < self._lease_s / 3
            try:
                if is_fresh and reached == self._shown:
                    self._answer = self._jobs.look_at_lease(self._job_id, self._owner)
                else:
                    self._answer = self._jobs.renew_lease(
                        self._job_id, self._owner, lease_s=self._lease_s, reached=reached
                    )
                    self._renewed_at, self._shown = asked_at, reached
            except SQLAlchemyError as error:  # the next beat tries again; while nobody can write, nobody takes the job
                log.warning("job %s: the lease could not be renewed: %s", self._job_id, type(error).__name__)
            if self._answer is LeaseAnswer.LOST:
                return
