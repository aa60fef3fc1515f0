"""One job from its files to its outbox rows: read -> cascade -> write -> outbox."""

from __future__ import annotations

import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError

from imaging.errors import (
    Cancelled,
    EmbolensError,
    InputError,
    NotAnalysable,
    OutOfMemory,
    Reason,
    StateConflict,
    WorkerEnding,
)
from imaging.findings import Findings, Outcome
from services.delivery.destinations_file import DestinationsFile
from services.dicom.input_reader import read_input
from services.dicom.result_files import write_not_analysable, write_results
from services.dicom.seg_options import SegOptions
from services.dicom.source_image import SourceImage
from services.process_log import where_raised
from services.settings import Settings
from services.store.database import Database
from services.store.disk_room import database_is_full, means_full
from services.store.jobs import STORAGE_FULL, JobStore
from services.store.rows import JobRow, JobState, Stage
from services.store.study_store import StudyStore
from services.store.waiting_line import WaitingLine
from worker.held_lease import HeldLease
from worker.job_progress import JobProgress
from worker.lost_process import TIME_LIMIT, TOOK_TOO_LONG, lease_owner
from worker.result_identity import identify_result
from worker.segmenter import Segmenter

log = logging.getLogger(__name__)

_FULL_DISK_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Works on one job at a time with networks that are loaded already."""

    jobs: JobStore
    store: StudyStore
    destinations: DestinationsFile
    line: WaitingLine
    segmenter: Segmenter
    lease_s: float
    max_attempts: int
    seg_options: SegOptions
    is_ending: Callable[[], bool] = lambda: False
    tell_relay: Callable[[], None] = lambda: None

    @classmethod
    def connect(
        cls,
        settings: Settings,
        segmenter: Segmenter,
        is_ending: Callable[[], bool] = lambda: False,
        tell_relay: Callable[[], None] = lambda: None,
    ) -> Self:
        """Raises ConfigurationError when the destinations cannot be read."""
        database = Database.of(settings)
        return cls(
            jobs=JobStore(database),
            store=StudyStore.of(settings),
            destinations=DestinationsFile(settings.destinations),
            line=WaitingLine(database, routine_longest_wait_s=settings.routine_longest_wait_s),
            segmenter=segmenter,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            seg_options=settings.seg_options,
            is_ending=is_ending,
            tell_relay=tell_relay,
        )

    def run_next(self) -> None:
        """Take the job that is next in line, whichever the message named; nothing where nobody waits.

        Raises:
            WorkerEnding: the process has to end; the job is queued again.
        """
        if not self.store.room().has_for_result:
            log.warning("jobs wait: the disk has no room for a result")
            return
        owner = lease_owner()
        if (job := self.line.start_next(owner, lease_s=self.lease_s)) is not None:
            self._run(job, owner)

    def run_job(self, job_id: str) -> bool:
        """Take the job and bring it to an end; nothing it does wrong takes the worker down. False: not to be had.

        Raises:
            WorkerEnding: as above.
        """
        owner = lease_owner()
        job = self.jobs.claim(job_id, owner, lease_s=self.lease_s)
        if job is None:
            log.info("job %s is not to be had any more", job_id)
            return False
        self._run(job, owner)
        return True

    def _run(self, job: JobRow, owner: str) -> None:
        try:
            with HeldLease(self.jobs, job.id, owner, lease_s=self.lease_s, is_ending=self.is_ending) as lease:
                self._bring_to_an_end(job, owner, lease)
        except StateConflict:
            log.warning("job %s went to another worker meanwhile; this result is thrown away", job.id)

    def _bring_to_an_end(self, job: JobRow, owner: str, lease: HeldLease) -> None:
        progress = JobProgress(lease)
        try:
            try:
                self._analyse(job, owner, progress)
            except NotAnalysable as refusal:
                self._say_not_analysable(job, owner, refusal.reasons, lease)
        except WorkerEnding as ending:
            self.jobs.hand_back(job.id, owner, code=ending.code, message=ending.message)
            log.info("job %s is handed back: this worker ends", job.id)
            raise
        except Cancelled:
            self.jobs.finish_cancelled(job.id, owner)
            log.info("job %s: cancelled", job.id)
        except StateConflict:
            raise
        except Exception as error:  # noqa: BLE001  the task's outermost loop: one study must not take the worker down
            self._fail(job, owner, error)

    def _analyse(self, job: JobRow, owner: str, progress: JobProgress) -> None:
        progress(Stage.LOAD, 0.0)
        source = _read(self.store.read_inputs(job.id), partial(progress, Stage.LOAD))
        with ThreadPoolExecutor(1, "digest") as beside:
            digest = beside.submit(source.content_digest)
            result = self.segmenter.segment(source.volume, on_progress=progress)
        result = result.with_reasons(Reason(**warning) for warning in job.reasons)  # from the intake
        progress(Stage.WRITE, 0.0)
        identity = identify_result(self.segmenter.package, digest.result(), seg_options=self.seg_options)
        with self._filled_directory() as directory:
            written = write_results(source, result, directory, identity, self.seg_options)
            progress(Stage.WRITE, 1.0)
            self.jobs.finish(
                job.id,
                owner,
                findings=written.findings.to_dict(),
                stage_seconds={**progress.done(), **result.stage_seconds},
                deliveries=self.destinations.current().deliveries_for(job, written),
                put_in_place=partial(self._put_in_place, directory, job),
            )
        self.tell_relay()
        log.info("job %s: %s", job.id, written.findings.outcome)

    def _say_not_analysable(self, job: JobRow, owner: str, reasons: Sequence[Reason], lease: HeldLease) -> None:
        findings = Findings(Outcome.NOT_ANALYSABLE, reasons=tuple(reasons))
        identity = identify_result(self.segmenter.package, job.inputs_digest or "", seg_options=self.seg_options)
        lease.check()
        with self._filled_directory() as directory:
            written = write_not_analysable(findings, directory, identity, self.store.read_inputs(job.id))
            self.jobs.finish_not_analysable(
                job.id,
                owner,
                written.findings.to_dict(),
                deliveries=self.destinations.current().deliveries_for(job, written),
                put_in_place=partial(self._put_in_place, directory, job),
            )
        self.tell_relay()
        log.info("job %s: not analysable: %s", job.id, ", ".join(reason.code for reason in reasons))

    def _fail(self, job: JobRow, owner: str, error: Exception) -> None:
        if database_is_full(error) or (means_full(error) and not self.store.room().has_for_result):
            self._hand_back(job, owner)
            return
        # Texts of foreign exceptions may quote a header: neither the log nor the job repeats them.
        match error:
            case EmbolensError():
                code, message = error.code, error.message
            case SoftTimeLimitExceeded():
                code, message = TIME_LIMIT, TOOK_TOO_LONG
            case MemoryError():
                code, message = OutOfMemory.default_code, "the analysis needs more memory than it may have"
            case OSError() if means_full(error):
                code, message = (
                    STORAGE_FULL,
                    "a disk that the analysis needs, not that of the data, has no room left",
                )
            case _:
                code, message = "internal", f"unexpected {type(error).__name__}"
        trace = where_raised(error)
        _let_go(error)
        log.error("job %s: %s (%s)\n%s", job.id, type(error).__name__, code, trace)
        state = self.jobs.fail(job.id, owner, code=code, message=message, max_attempts=self.max_attempts)
        if state is JobState.QUEUED:
            log.info(
                "job %s: attempt %d of %d failed; the sweep queues it again", job.id, job.attempts, self.max_attempts
            )

    def _hand_back(self, job: JobRow, owner: str) -> None:
        """The study is not to blame. Where the database's disk is full too, nobody else can take the job meanwhile."""
        log.error("job %s: the disk has no room for its result; it is handed back", job.id)
        message = "no room left on the disk for the result; the job runs when there is some"
        while True:
            try:
                self.jobs.hand_back(job.id, owner, code=STORAGE_FULL, message=message)
            except DBAPIError as error:
                if not means_full(error):
                    raise
                time.sleep(_FULL_DISK_PAUSE_S)
            else:
                return

    @contextmanager
    def _filled_directory(self) -> Iterator[Path]:
        """A directory to fill with a result; gone on leaving, unless it was put in its place."""
        directory = self.store.arriving_directory()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _put_in_place(self, filled: Path, job: JobRow) -> None:
        """In the transaction that ends the job: who lost it meanwhile must not touch the files of who has it now."""
        self.store.replace_directory(filled, self.store.result_directory(job.id))


def _let_go(error: BaseException | None) -> None:
    """Of what the analysis held when it failed: it may be all the memory there is."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _read(files: Sequence[Path], on_progress: Callable[[float], None]) -> SourceImage:
    """The image in these files. Files that hold none are an answer about them, not a failure of ours."""
    try:
        return read_input(files, on_progress=on_progress)
    except InputError as error:
        if error.code == "input.unreadable":  # the files are ours: our disk's trouble is no answer about the study
            raise
        raise NotAnalysable([Reason(error.code, error.message)]) from error
