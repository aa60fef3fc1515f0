"""That a job failed is told like any other end: objects and notifications, to whom its result would have gone.

Whatever ended the job's last attempt, its failing is only a state. What follows from it is made here, from failed jobs
that have no outcome yet; until that is committed it is made again.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import resource
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.errors import NotFound, Reason
from imaging.findings import Findings, Outcome
from services.delivery.destinations_file import DestinationsFile
from services.dicom.identity import ResultIdentity
from services.settings import Settings
from services.store.jobs import JobStore
from services.store.rows import JobRow
from services.store.study_store import StudyStore
from services.version import VERSION

if TYPE_CHECKING:
    from services.dicom.result_files import ResultFiles

log = logging.getLogger(__name__)

_LONGEST_S = 60.0
_MOST_MEMORY_BYTES = 4 << 30  # address space
_TRIES = 3


class FailureReports:
    """Run every few seconds by the relay; harmless when several relays do it."""

    def __init__(self, settings: Settings, store: StudyStore, jobs: JobStore) -> None:
        """Raises ConfigurationError when the destinations cannot be read."""
        self._store = store
        self._jobs = jobs
        self._destinations = DestinationsFile(settings.destinations)
        self._broken_off: Counter[str] = Counter()

    def write_due(self, stopping: threading.Event | None = None) -> None:
        """Report every failure that is not yet, or as many as there is time for until `stopping`."""
        for job in self._jobs.unreported_failures():
            if stopping is not None and stopping.is_set():
                return
            try:
                self._report(job)
            except OSError as error:
                log.error("that job %s failed cannot be told yet: %s", job.id, type(error).__name__)

    def _report(self, job: JobRow) -> None:
        directory = self._store.arriving_directory()
        try:
            written = self._written(job, directory)
            if written is None:
                return
            told = self._jobs.report_failure(
                job,
                written.findings.to_dict(),
                self._destinations.current().deliveries_for(job, written),
                lambda: self._store.replace_directory(directory, self._store.result_directory(job.id)),
            )
            if told:
                log.info("job %s: reported as failed", job.id)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _written(self, job: JobRow, directory: Path) -> ResultFiles | None:
        """The report; of images that broke its writer off every time, one without an object that refers to them."""
        try:
            files = self._store.read_inputs(job.id)
        except NotFound:
            files = []
        if self._broken_off[job.id] >= _TRIES:
            log.error("job %s: its images cannot be read; of its failure there is no object to send", job.id)
            files = []
        written = _written_apart(job, directory, files)
        if written is None:
            self._broken_off[job.id] += 1
        else:
            del self._broken_off[job.id]
        return written


def _written_apart(job: JobRow, directory: Path, files: Sequence[Path]) -> ResultFiles | None:
    """In a process of its own: what broke the worker must not break the relay. None where it ended or took too long.

    Raises OSError where the file system refused.
    """
    context = multiprocessing.get_context("spawn")
    answers, answer = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(answer, job, directory, files), name="failure report", daemon=True)
    process.start()
    answer.close()
    try:
        written = answers.recv() if answers.poll(_LONGEST_S) else None
    except EOFError:
        written = None
    finally:
        process.kill()
        process.join()
        answers.close()
    if isinstance(written, OSError):
        raise written
    return written


def _answer(answer: Connection, job: JobRow, directory: Path, files: Sequence[Path]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    try:
        answer.send(written_report(job, directory, files))
    except OSError as error:
        answer.send(OSError(error.errno, "the report of a failure cannot be written"))
    except Exception:  # noqa: BLE001  the process's outermost loop; what it says may quote a header
        answer.close()


def written_report(job: JobRow, directory: Path, files: Sequence[Path]) -> ResultFiles:
    """Write findings and objects that say that the job failed, and why."""
    from services.dicom.result_files import write_not_analysable  # not in the relay, as long as nothing fails

    why = Reason(job.error_code or "internal", job.error_message or "the analysis failed")
    findings = Findings(Outcome.FAILED, reasons=(why,))
    return write_not_analysable(findings, directory, _identity(why, job.inputs_digest or ""), files)


def _identity(why: Reason, inputs_digest: str) -> ResultIdentity:
    """Of no model package: none came to a result. Another cause is another report; the same again is the same one."""
    return ResultIdentity(
        software_version=VERSION,
        package_name="none",
        package_version="0",
        package_sha256="0" * 64,
        configuration_sha256=hashlib.sha256(f"{why.code}\n{why.text}".encode()).hexdigest(),
        input_digest=inputs_digest,
    )
