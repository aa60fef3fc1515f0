"""One job from its files to its outbox rows: read -> cascade -> write -> outbox."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from imaging.errors import Cancelled, EmbolensError, InputError, NotAnalysable, Reason, StateConflict, WorkerEnding
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
    is_ending: Callable[[], bool] = lambda: False

    @classmethod
    def connect(cls, settings: Settings, segmenter: Segmenter, is_ending: Callable[[], bool]) -> Self:
        """Raises ConfigurationError when the destinations cannot be read."""
        return cls(
            jobs=JobStore(Database(settings.resolved_database_url)),
            store=StudyStore(settings.data_dir),
            destinations=Destinations.load(settings.destinations),
            segmenter=segmenter,
            lease_s=settings.lease_s,
            max_attempts=settings.max_attempts,
            seg_options=settings.seg_options,
            is_ending=is_ending,
        )

    def run_job(self, job_id: str) -> None:
        """Take the job if it is to be had and bring it to an end; nothing it does wrong takes the worker down.

        Raises:
            WorkerEnding: the process has to end; the job is queued again.
        """
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"  # a fencing token, new for every claim
        job = self.jobs.claim(job_id, owner, lease_s=self.lease_s)
        if job is None:
            log.info("job %s is not to be had any more", job_id)
            return
        try:
            with HeldLease(self.jobs, job_id, owner, lease_s=self.lease_s, is_ending=self.is_ending) as lease:
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
        result = self.segmenter.segment(source.volume, on_progress=progress)
        result = result.with_reasons(Reason(**warning) for warning in job.reasons)  # from the intake
        progress(Stage.WRITE, 0.0)
        identity = identify_result(self.segmenter.package, source.content_digest(), seg_options=self.seg_options)
        with self._filled_directory() as directory:
            written = write_results(source, result, directory, identity, self.seg_options)
            progress(Stage.WRITE, 1.0)
            self.jobs.finish(
                job.id,
                owner,
                findings=written.findings.to_dict(),
                stage_seconds={**progress.done(), **result.stage_seconds},
                deliveries=self.destinations.deliveries_for(job, written),
                put_in_place=partial(self._put_in_place, directory, job),
            )
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
                deliveries=self.destinations.deliveries_for(job, written),
                put_in_place=partial(self._put_in_place, directory, job),
            )
        log.info("job %s: not analysable: %s", job.id, ", ".join(reason.code for reason in reasons))

    def _fail(self, job: JobRow, owner: str, error: Exception) -> None:
        # Texts of foreign exceptions may quote a header: neither the log nor the job repeats them.
        code = error.code if isinstance(error, EmbolensError) else "internal"
        message = error.message if isinstance(error, EmbolensError) else f"unexpected {type(error).__name__}"
        trace = where_raised(error)
        log.error("job %s: %s (%s)\n%s", job.id, type(error).__name__, code, trace)
        state = self.jobs.fail(job.id, owner, code=code, message=message, max_attempts=self.max_attempts)
        if state is JobState.QUEUED:
            log.info(
                "job %s: attempt %d of %d failed; the sweep queues it again", job.id, job.attempts, self.max_attempts
            )

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


def _read(files: Sequence[Path], on_progress: Callable[[float], None]) -> SourceImage:
    """The image in these files. Files that hold none are an answer about them, not a failure of ours."""
    try:
        return read_input(files, on_progress=on_progress)
    except InputError as error:
        if error.code == "input.unreadable":  # the files are ours: our disk's trouble is no answer about the study
            raise
        raise NotAnalysable([Reason(error.code, error.message)]) from error
