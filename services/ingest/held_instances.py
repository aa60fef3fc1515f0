"""Whether an instance that comes in is held already: the same for every way in.

The same SOP instance again changes nothing: an instance that a job may have read already stays what it was, since a
corrected instance has to have a new SOP Instance UID (PS3.5 section 9). A copy that differs is logged. A file that
breaks off where the received bytes go on was torn by a power cut, and is replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from imaging.errors import InputError, NotFound
from services.dicom.file_meta import mapped, read_file_meta
from services.ingest.identifiers import Identifiers
from services.store.jobs import JobStore
from services.store.rows import DEFAULT_TENANT
from services.store.study_store import StudyStore

log = logging.getLogger(__name__)

_REMEMBERED_SERIES = 64


class HeldInstances:
    """What lies in the study store and belongs to a job."""

    def __init__(self, store: StudyStore, jobs: JobStore) -> None:
        self._store = store
        self._jobs = jobs
        self._inputs: dict[frozenset[str], frozenset[Path]] = {}  # by the ids of all jobs that took a series in

    def holds(
        self, path: Path, named: Identifiers, data_set: memoryview, *, is_arriving: bool, tenant: str = DEFAULT_TENANT
    ) -> bool:
        """Whether the instance is here, whole, and will be in a job's inputs or is: there is nothing to store.

        Args:
            path: where it is to lie.
            data_set: as it came, encoded, without file meta.
            is_arriving: a job is receiving the series.
        """
        study, series, sop = named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
        stored = _data_set_of(path)
        if stored is None:
            return False
        if len(stored) < len(data_set) and _equal(data_set[: len(stored)], stored):
            log.warning("instance %s lies torn on disk and is replaced", sop)
            return False
        if not (is_arriving or self._was_taken_in(study, series, tenant, path)):
            return False
        if not _equal(stored, data_set):
            log.warning("instance %s came again with different content; the first one stays", sop)
        self._store.write_through(path)
        return True

    def inputs_of_jobs(
        self, study_instance_uid: str, series_instance_uid: str, tenant: str = DEFAULT_TENANT
    ) -> Iterator[Path]:
        """Every file that a job of the series took in."""
        yield from self._inputs_of(self._jobs.that_took_in(study_instance_uid, series_instance_uid, tenant=tenant))

    def _was_taken_in(self, study_instance_uid: str, series_instance_uid: str, tenant: str, path: Path) -> bool:
        """Whether a job has this file among its inputs. What a job took in stays the same until it is purged, and then
        the job is not among these any more; so their files are read once."""
        jobs = frozenset(self._jobs.that_took_in(study_instance_uid, series_instance_uid, tenant=tenant))
        if jobs not in self._inputs:
            if len(self._inputs) >= _REMEMBERED_SERIES:
                self._inputs.clear()
            self._inputs[jobs] = frozenset(self._inputs_of(jobs))
        return path in self._inputs[jobs]

    def _inputs_of(self, job_ids: Iterable[str]) -> Iterator[Path]:
        for job_id in job_ids:
            with suppress(NotFound):  # its directory is gone
                yield from self._store.read_inputs(job_id)


def _equal(one: memoryview, other: memoryview) -> bool:
    """As `==`, which takes both apart byte by byte."""
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def _data_set_of(path: Path) -> memoryview | None:
    """The file without its file meta, which names each sender's own software; None where there is no file."""
    if not os.access(path, os.F_OK):  # as most often; less work than an exception
        return None
    try:
        content = mapped(path)
    except FileNotFoundError:
        return None
    try:
        return content[read_file_meta(content).data_set_begin :]
    except InputError:
        return content[:0]  # torn in the middle of its meta
