"""The index that DICOMweb searches: what lies in the data directory, as rows.

It is a copy. Files and jobs are the truth, and every process may bring it up to date at any time: whatever changes the
files of a job changes its `updated_at`, so the jobs whose `indexed_at` is another are those to look at. A file is read
once; a search reads none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy import and_, delete, exists, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from imaging.errors import InputError, NotFound
from services.dicomweb.indexed_headers import IndexedHeader, read_indexed_header
from services.store.database import Database
from services.store.rows import HeldInstanceRow, HeldSeriesRow, JobRow, JobState, Source, UtcDateTime
from services.store.study_store import StudyStore, purged

log = logging.getLogger(__name__)

_CHUNK = 500  # values of one IN
_OUTDATED = or_(JobRow.indexed_at.is_(None), JobRow.indexed_at != JobRow.updated_at)


class HeldIndex:
    """Brings the index up to date and finds files by it."""

    def __init__(self, database: Database, store: StudyStore) -> None:
        self._database = database
        self._store = store

    def update(self, *, most_jobs: int) -> int:
        """Look at the jobs that changed, the latest first; returns how many there still are.

        A job of which the disk does not give a file back stays one of them.
        """
        with self._database.read() as session:
            query = select(JobRow).where(_OUTDATED).order_by(JobRow.updated_at.desc()).limit(most_jobs)
            outdated = session.scalars(query).all()
        failed = 0
        for job in outdated:
            try:
                self._index(job)
            except SQLAlchemyError:
                raise
            except Exception as error:  # noqa: BLE001  one damaged file must not hide all others
                failed += 1
                code = error.code if isinstance(error, InputError) else type(error).__name__
                log.warning("the files of job %s cannot be indexed: %s", job.id, code)
        if len(outdated) < most_jobs:
            return failed
        with self._database.read() as session:
            return session.scalar(select(func.count()).select_from(JobRow).where(_OUTDATED)) or 0

    def instances(
        self, study: str, series: str | None = None, instance: str | None = None, *, tenant: str | None = None
    ) -> Sequence[HeldInstanceRow]:
        """In the order of series and instance number; of one tenant, or else of all, each instance once.

        Raises:
            NotFound: there is none.
            Purged: there may have been, of a study that was purged.
        """
        query = select(HeldInstanceRow).where(HeldInstanceRow.study_instance_uid == study)
        if series is not None:
            query = query.where(HeldInstanceRow.series_instance_uid == series)
        if instance is not None:
            query = query.where(HeldInstanceRow.sop_instance_uid == instance)
        if tenant is not None:
            query = query.where(HeldInstanceRow.tenant == tenant)
        number = func.coalesce(HeldInstanceRow.instance_number, 0)
        query = query.order_by(HeldInstanceRow.series_instance_uid, number, HeldInstanceRow.sop_instance_uid)
        with self._database.read() as session:
            found = list({row.sop_instance_uid: row for row in session.scalars(query)}.values())
        if not found:
            self._say_if_purged(study, series, tenant)
            what = "instance" if instance else "series" if series else "study"
            raise NotFound(f"no such {what} is held here", remedy="GET /dicom-web/studies lists what is")
        return found

    def path(self, row: HeldInstanceRow) -> Path:
        """Raises Purged where it is gone since the row was read."""
        path = self._store.data_dir / row.place / row.file_name
        if not path.is_file():
            raise purged("the instance")
        return path

    def _say_if_purged(self, study: str, series: str | None, tenant: str | None) -> None:
        """Raises Purged: inputs of this study, or of this series, or results, whose series no job names, are gone."""
        of_series = JobRow.study_instance_uid == study
        if tenant is not None:
            of_series &= JobRow.tenant == tenant
        if series is not None:
            of_series &= or_(JobRow.series_instance_uid == series, JobRow.results_purged_at.is_not(None))
        when = select(func.max(func.coalesce(JobRow.inputs_purged_at, JobRow.results_purged_at, type_=UtcDateTime)))
        with self._database.read() as session:
            if (purged_at := session.scalar(when.where(of_series))) is not None:
                raise purged("what was held of this study", purged_at)

    def _index(self, job: JobRow) -> None:
        if job.source != Source.REST.value:
            assert job.study_instance_uid is not None
            assert job.series_instance_uid is not None
            directory = self._store.series_directory(job.study_instance_uid, job.series_instance_uid, tenant=job.tenant)
            self._index_place(job.tenant, directory, () if self._is_purged(job) else directory.glob("*.dcm"))
        elif job.input_kind == "dicom" and job.indexed_at is None:  # an upload stays what it was, until it is purged
            self._index_place(job.tenant, self._store.upload_directory(job.id), self._uploaded(job))
        results = self._store.result_directory(job.id)
        self._index_place(job.tenant, results, results.glob("*.dcm") if _has_objects(job) else ())
        with self._database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job.id).values(indexed_at=job.updated_at))

    def _is_purged(self, job: JobRow) -> bool:
        """Whether what was received of the job's series counts as gone."""
        of_series = select(JobRow.id).where(
            JobRow.tenant == job.tenant,
            JobRow.study_instance_uid == job.study_instance_uid,
            JobRow.series_instance_uid == job.series_instance_uid,
            JobRow.source != Source.REST.value,
            JobRow.inputs_purged_at.is_(None),
        )
        with self._database.read() as session:
            return session.scalars(of_series.limit(1)).first() is None

    def _uploaded(self, job: JobRow) -> Sequence[Path]:
        if job.inputs_purged_at is not None:
            return ()
        try:
            return self._store.read_inputs(job.id)
        except NotFound:
            return ()

    def _index_place(self, tenant: str, directory: Path, paths: Iterable[Path]) -> None:
        """Rows of the files in one directory, and of no others there."""
        place = str(directory.relative_to(self._store.data_dir))
        files = {str(path.relative_to(directory)): path for path in paths}
        with self._database.read() as session:
            columns = HeldInstanceRow.file_name, HeldInstanceRow.modified_ns
            known = dict(session.execute(select(*columns).where(HeldInstanceRow.place == place)).tuples().all())
        changed = {name: path for name, path in files.items() if known.get(name) != _modified_ns(path)}
        gone = [name for name in known if name not in files or name in changed]
        if changed or gone:
            self._replace_rows(tenant, place, gone, _read(place, changed))

    def _replace_rows(self, tenant: str, place: str, gone: Sequence[str], headers: Sequence[IndexedHeader]) -> None:
        with self._database.write() as session:
            self._database.one_at_a_time(session, "held instances")
            _remove(session, place, gone)
            new = {header.instance.sop_instance_uid: header for header in headers}
            for header in new.values():
                header.instance.tenant = header.series.tenant = tenant
            for uids in _chunks(list(new)):
                elsewhere = select(HeldInstanceRow.sop_instance_uid).where(
                    HeldInstanceRow.tenant == tenant, HeldInstanceRow.sop_instance_uid.in_(uids)
                )
                for uid in session.scalars(elsewhere).all():
                    del new[uid]  # the same instance came another way too
            for header in {
                (one.series.study_instance_uid, one.series.series_instance_uid): one for one in new.values()
            }.values():
                session.merge(header.series)
            session.add_all(header.instance for header in new.values())
            if gone:
                session.flush()
                _remove_empty_series(session)


def _has_objects(job: JobRow) -> bool:
    """Whether the objects in the job's result directory are its result: not those of an attempt that is taken back, nor
    what is purged."""
    if job.results_purged_at is not None:
        return False
    refused = job.state in (JobState.NOT_ANALYSABLE.value, JobState.FAILED.value) and job.findings is not None
    return refused or job.state in (JobState.DELIVERING.value, JobState.COMPLETED.value)


def _modified_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read(place: str, files: Mapping[str, Path]) -> list[IndexedHeader]:
    headers = [read_indexed_header(path, place, name) for name, path in files.items() if path.is_file()]
    return [header for header in headers if header is not None]


def _remove(session: Session, place: str, names: Sequence[str]) -> None:
    for chunk in _chunks(names):
        here = and_(HeldInstanceRow.place == place, HeldInstanceRow.file_name.in_(chunk))
        session.execute(delete(HeldInstanceRow).where(here))


def _remove_empty_series(session: Session) -> None:
    of_series = and_(
        HeldInstanceRow.tenant == HeldSeriesRow.tenant,
        HeldInstanceRow.study_instance_uid == HeldSeriesRow.study_instance_uid,
        HeldInstanceRow.series_instance_uid == HeldSeriesRow.series_instance_uid,
    )
    session.execute(delete(HeldSeriesRow).where(~exists().where(of_series)))


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[begin : begin + _CHUNK] for begin in range(0, len(values), _CHUNK))
