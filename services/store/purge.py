"""Taking inputs and results of ended jobs away from the disk, and what must stay.

Row first, then files. A first transaction says of the jobs that their files are gone, and from then on everything
behaves as if they were: nothing is read or tried again, and an instance that comes again opens a new job. A second one,
in the middle of which no job of the series can be opened, looks whether somebody did so meanwhile, and renames the
directory away. What a process leaves lying that dies between the two is found by its directory (`Purge.finish`).
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session, load_only

from services.store.database import Database
from services.store.jobs import CANCELLED, receiving_key, utc_now
from services.store.rows import (
    FINAL_RETRIEVAL_STATES,
    FINAL_STATES,
    DeliveryState,
    JobRow,
    JobState,
    OutboxRow,
    RetrievalRow,
    Source,
    WorkitemState,
    WorklistItemRow,
)
from services.store.study_store import StudyStore

LOCK = "purge"  # whoever holds it in the data directory (a backup, another relay) lets nothing be purged
_WITHOUT_FINDINGS = load_only(
    JobRow.tenant, JobRow.state, JobRow.source, JobRow.study_instance_uid, JobRow.series_instance_uid,
    JobRow.error_code, JobRow.created_at, JobRow.updated_at, JobRow.finished_at,
)  # fmt: skip
_SETTLED = timedelta(hours=1)  # far longer than any process needs from looking at a job to using its files


class What(StrEnum):
    INPUTS = "inputs"
    RESULTS = "results"


@dataclass(frozen=True, slots=True)
class Purgeable:
    """Files that go together: a pushed series, which all its jobs share, or the upload or the result of one job.

    Attributes:
        jobs: all whose files these are, the newest first.
        ended_at: when the last of them did.
    """

    what: What
    jobs: tuple[JobRow, ...]
    directory: Path
    ended_at: datetime

    @property
    def name(self) -> str:
        newest = self.jobs[0]
        return f"series {newest.series_instance_uid}" if _is_shared(self.what, newest) else f"job {newest.id}"

    @property
    def is_completed(self) -> bool:
        """Whether a result came of it: not failed, refused or cancelled by somebody who may want it tried again."""
        counting = [job for job in self.jobs if job.state != JobState.CANCELLED or job.error_code == CANCELLED]
        return bool(counting) and counting[0].state == JobState.COMPLETED

    def size_bytes(self) -> int:
        """What it takes of the disk."""
        with suppress(FileNotFoundError):
            return sum(path.lstat().st_blocks * 512 for path in self.directory.rglob("*"))
        return 0


class Purge:
    """`asks_for_commitment` says of a destination whether what it has counts only when it has committed to it."""

    def __init__(
        self, database: Database, store: StudyStore, asks_for_commitment: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._database = database
        self._store = store
        self._asks_for_commitment = asks_for_commitment

    def candidates(self, what: What) -> list[Purgeable]:
        """All that is not purged of series and jobs that have ended, what ended first first."""
        query = (
            select(JobRow)
            .where(_purged_at(what).is_(None))
            .order_by(JobRow.created_at.desc())
            .options(_WITHOUT_FINDINGS)
        )
        together: dict[tuple[str | None, ...], list[JobRow]] = defaultdict(list)
        with self._database.read() as session:
            for job in session.scalars(query):
                series = (job.tenant, job.study_instance_uid, job.series_instance_uid)
                together[series if _is_shared(what, job) else (job.id,)].append(job)
        found = [self._purgeable(what, jobs) for jobs in together.values()]
        return sorted((one for one in found if one is not None), key=lambda one: one.ended_at)

    def why_kept(self, one: Purgeable) -> str | None:
        """What speaks against taking it away, however old it is; None where nothing does."""
        with self._database.read() as session:
            return self._why_kept(session, one)

    def is_delivered(self, one: Purgeable) -> bool:
        """Whether some destination was sent the result's objects."""
        query = select(func.count()).where(
            OutboxRow.job_id.in_([job.id for job in one.jobs]), OutboxRow.sop_instance_uid.is_not(None)
        )
        with self._database.read() as session:
            return bool(session.scalar(query))

    def purge(self, one: Purgeable) -> bool:
        """Take it away. False where somebody has come to need it since it was found, or reads it right now."""
        try:
            with _alone_in(one.directory):
                return self._say_so(one) and self._take_away(one.what, one.jobs[0], one.directory)
        except (BlockingIOError, FileNotFoundError):
            return False

    def finish(self) -> None:
        """Take away what is purged by its rows and still lies here."""
        data_dir = self._store.data_dir
        for tenant, received in self._store.received_directories():
            for directory in received.glob("*/*"):
                self._finish(What.INPUTS, directory, _of_series(tenant, directory.parent.name, directory.name))
        for what, name in ((What.INPUTS, "input"), (What.RESULTS, "result")):
            for directory in (data_dir / "jobs").glob(f"*/{name}"):
                self._finish(what, directory, JobRow.id == directory.parent.name)

    def _finish(self, what: What, directory: Path, of_it: ColumnElement[bool]) -> None:
        with self._database.read() as session:
            job = session.scalars(select(JobRow).where(of_it, _purged_at(what).is_not(None)).limit(1)).first()
        if job is not None:
            with suppress(BlockingIOError, FileNotFoundError), _alone_in(directory):
                self._take_away(what, job, directory)

    def _purgeable(self, what: What, jobs: Sequence[JobRow]) -> Purgeable | None:
        if not all(job.state in FINAL_STATES for job in jobs):
            return None
        directory = self._directory(what, jobs[0])
        if directory is None or not directory.is_dir():
            return None
        return Purgeable(what, tuple(jobs), directory, max(job.finished_at or job.updated_at for job in jobs))

    def _directory(self, what: What, job: JobRow) -> Path | None:
        if what is What.RESULTS:
            return self._store.result_directory(job.id)
        if job.source == Source.REST:
            return self._store.upload_directory(job.id)
        assert job.study_instance_uid is not None
        assert job.series_instance_uid is not None
        return self._store.series_directory(job.study_instance_uid, job.series_instance_uid, tenant=job.tenant)

    def _why_kept(self, session: Session, one: Purgeable) -> str | None:
        if utc_now() - one.ended_at < _SETTLED:
            return "it ended less than an hour ago"
        return self._who_has_not_got_it(session, [job.id for job in one.jobs]) or _who_needs(session, one.jobs[0])

    def _who_has_not_got_it(self, session: Session, job_ids: Collection[str]) -> str | None:
        of_jobs = OutboxRow.job_id.in_(job_ids)
        waiting = select(OutboxRow).where(of_jobs, OutboxRow.state != DeliveryState.DELIVERED.value)
        if (row := session.scalars(waiting.limit(1)).first()) is not None:
            return f"a delivery to {row.destination} is {row.state}"
        uncommitted = select(OutboxRow.destination).where(
            of_jobs, OutboxRow.sop_instance_uid.is_not(None), OutboxRow.committed_at.is_(None)
        )
        for destination in session.scalars(uncommitted.distinct()):
            if self._asks_for_commitment(destination):
                return f"{destination} has not committed to keeping it"
        return None

    def _say_so(self, one: Purgeable) -> bool:
        """The rows first: the files are gone, whatever the disk says yet."""
        newest, now = one.jobs[0], utc_now()
        values: dict[str, Any] = {_purged_at(one.what).key: now, "updated_at": now, "indexed_at": None}
        if one.what is What.INPUTS:
            values["inputs_digest"] = None
        with self._database.write() as session:
            self._database.one_at_a_time(session, receiving_key(newest.series_instance_uid))
            unpurged = and_(_sharing(one.what, newest), _purged_at(one.what).is_(None))
            newest_first = select(JobRow).where(unpurged).order_by(JobRow.created_at.desc())
            jobs = session.scalars(newest_first.with_for_update()).all()
            as_it_is = self._purgeable(one.what, jobs) if jobs else None
            if as_it_is is None or self._why_kept(session, as_it_is) is not None:
                return False
            session.execute(update(JobRow).where(JobRow.id.in_([job.id for job in jobs])).values(**values))
        return True

    def _take_away(self, what: What, job: JobRow, directory: Path) -> bool:
        """Then the files, unless somebody has sent them, or asked for them, again since."""
        with self._database.write() as session:
            self._database.one_at_a_time(session, receiving_key(job.series_instance_uid))
            wanted = select(JobRow.id).where(_sharing(what, job), _purged_at(what).is_(None)).limit(1)
            if session.scalars(wanted).first() is not None:
                return False
            taken = self._store.take_away(directory)
        self._store.remove(taken)
        return True


def _is_shared(what: What, job: JobRow) -> bool:
    """Whether all jobs of the job's series work on the same files."""
    return what is What.INPUTS and job.source != Source.REST


def _purged_at(what: What) -> Any:
    return JobRow.inputs_purged_at if what is What.INPUTS else JobRow.results_purged_at


def _of_series(tenant: str, study_instance_uid: str | None, series_instance_uid: str | None) -> ColumnElement[bool]:
    return and_(
        JobRow.tenant == tenant,
        JobRow.study_instance_uid == study_instance_uid,
        JobRow.series_instance_uid == series_instance_uid,
        JobRow.source != Source.REST.value,
    )


def _sharing(what: What, job: JobRow) -> ColumnElement[bool]:
    """The jobs that have these files in common."""
    if _is_shared(what, job):
        return _of_series(job.tenant, job.study_instance_uid, job.series_instance_uid)
    return JobRow.id == job.id


def _who_needs(session: Session, job: JobRow) -> str | None:
    """Who is at work on the same study: another of its series (which is compared with this one), a retrieval, a
    workitem."""
    study = job.study_instance_uid
    if study is None:
        return None
    ended = [state.value for state in FINAL_STATES]
    query = select(JobRow).where(JobRow.study_instance_uid == study, JobRow.state.not_in(ended)).limit(1)
    if (other := session.scalars(query).first()) is not None:
        return f"job {other.id} of the same study is {other.state}"
    ended = [state.value for state in FINAL_RETRIEVAL_STATES]
    fetched = select(RetrievalRow.id).where(RetrievalRow.study_instance_uid == study, RetrievalRow.state.not_in(ended))
    if (retrieval := session.scalars(fetched.limit(1)).first()) is not None:
        return f"retrieval {retrieval} fetches the study"
    held = WorklistItemRow.state.in_([WorkitemState.CLAIMING.value, WorkitemState.IN_PROGRESS.value])
    for item in session.scalars(select(WorklistItemRow).where(held)):
        if any(one["study_instance_uid"] == study for one in item.inputs):
            return f"workitem {item.workitem_uid} asks for the study"
    return None


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Raises BlockingIOError while somebody reads in it (`StudyStore.reading`)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
