"""One job from its files to its outbox rows: read -> cascade -> write -> outbox."""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from celery.exceptions import SoftTimeLimitExceeded

from imaging.errors import Cancelled, EmbolensError, InputError, NotAnalysable, OutOfMemory, Reason, StateConflict
from imaging.findings import Findings, Outcome
from services.delivery.destinations import Destinations
from services.dicom.input_reader import read_input
from services.dicom.result_files import write_not_analysable, write_results
from services.dicom.seg_options import SegOptions
from services.dicom.source_image import SourceImage
from services.process_log import where_raised
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import JobRow, JobState, Stage
from services.store.study_store import StudyStore
from worker.held_lease import HeldLease
from worker.job_progress import JobProgress
from worker.lost_process import TIME_LIMIT, TOOK_TOO_LONG, lease_owner
from worker.result_identity import identify_result
from worker.segmenter import Segmenter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Works on one job at a time with networks that are loaded already."""

    jobs: JobStore
    store: StudyStore
    destinations: Destinations
    segmenter: Segmenter
    lease_s: float
    max_attempts: int
    seg_options: SegOptions

    @classmethod
    def connect(cls, settings: Settings, segmenter: Segmenter) -> Self:
        """Raises ConfigurationError when the destinations cannot be read."""
        return cls(
            jobs=JobStore(Database(settings.resolved_database_url)),
            store=StudyStore(settings.data_dir),
            destinations=Destinations.load(settings.destinations),
            segmenter=segmenter,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            seg_options=settings.seg_options,
        )

    def run_job(self, job_id: str) -> None:
        """Take the job if it is to be had and bring it to an end; nothing it does wrong takes the worker down."""
        owner = lease_owner()
        job = self.jobs.claim(job_id, owner, lease_s=self.lease_s)
        if job is None:
            log.info("job %s is not to be had any more", job_id)
            return
        try:
            with HeldLease(self.jobs, job_id, owner, lease_s=self.lease_s) as lease:
                self._bring_to_an_end(job, owner, lease)
        except StateConflict:
            log.warning("job %s went to another worker meanwhile; this result is thrown away", job_id)

    def _bring_to_an_end(self, job: JobRow, owner: str, lease: HeldLease) -> None:
        progress = JobProgress(self.jobs, job.id, owner, lease)
        try:
            try:
                self._analyse(job, owner, progress)
            except NotAnalysable as refusal:
                self._say_not_analysable(job, owner, refusal.reasons, lease)
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
        result = self.segmenter.segment(source.volume, on_progress=progress)
        result = result.with_reasons(Reason(**warning) for warning in job.reasons)  # from the intake
        progress(Stage.WRITE, 0.0)
        identity = identify_result(self.segmenter.package, source.content_digest(), seg_options=self.seg_options)
        with self._result_directory(job) as directory:
            written = write_results(source, result, directory, identity, self.seg_options)
            deliveries = self.destinations.deliveries_for(job, written)
            progress(Stage.WRITE, 1.0)
        self.jobs.finish(
            job.id,
            owner,
            findings=written.findings.to_dict(),
            stage_seconds={**progress.done(), **result.stage_seconds},
            deliveries=deliveries,
        )
        log.info("job %s: %s", job.id, written.findings.outcome)

    def _say_not_analysable(self, job: JobRow, owner: str, reasons: Sequence[Reason], lease: HeldLease) -> None:
        findings = Findings(Outcome.NOT_ANALYSABLE, reasons=tuple(reasons))
        identity = identify_result(self.segmenter.package, job.inputs_digest or "", seg_options=self.seg_options)
        lease.check()
        with self._result_directory(job) as directory:
            written = write_not_analysable(findings, directory, identity, self.store.read_inputs(job.id))
            deliveries = self.destinations.deliveries_for(job, written)
        self.jobs.finish_not_analysable(job.id, owner, written.findings.to_dict(), deliveries=deliveries)
        log.info("job %s: not analysable: %s", job.id, ", ".join(reason.code for reason in reasons))

    def _fail(self, job: JobRow, owner: str, error: Exception) -> None:
        # Texts of foreign exceptions may quote a header: neither the log nor the job repeats them.
        match error:
            case EmbolensError():
                code, message = error.code, error.message
            case SoftTimeLimitExceeded():
                code, message = TIME_LIMIT, TOOK_TOO_LONG
            case MemoryError():
                code, message = OutOfMemory.default_code, "the analysis needs more memory than it may have"
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

    @contextmanager
    def _result_directory(self, job: JobRow) -> Iterator[Path]:
        """A directory to fill; on leaving without an exception it is the job's result, else it is gone."""
        directory = self.store.arriving_directory()
        try:
            yield directory
            self.store.replace_directory(directory, self.store.result_directory(job.id))
        finally:
            shutil.rmtree(directory, ignore_errors=True)


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
