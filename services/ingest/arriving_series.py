"""Which series are arriving right now, over which associations, and the lock between storing and completing one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imaging.errors import InputError
from services.dicom.file_meta import mapped, read_file_meta
from services.ingest.identifiers import read_identifiers
from services.store.jobs import JobStore
from services.store.rows import DEFAULT_TENANT, JobRow, Priority, Source
from services.store.study_store import StudyStore

_Key = tuple[str, str, str]  # Study and Series Instance UID, tenant
_OPENED_AT_ONCE = 64


@dataclass(eq=False)
class ArrivingSeries:
    """One series whose job is `receiving`. Everything that changes is changed under `lock`.

    Attributes:
        senders: the association threads that stored into it; an association is over when its thread is.
        brought: instances that those associations brought; fewer than there are where others came otherwise.
        was_broken_off: one of the associations ended without a release (PS3.8 7.2).
        was_returned_to: an association stored into it after all earlier ones had ended.
        being_stored: instances between "the job exists" and "the file lies under its final name".
        sop_instance_uids: instances on disk, those of an earlier job of the same series included.
        queried_instances: SOP Instance UIDs that a retrieval fetches of it; None where it is not fetched.
        last_arrival: `time.monotonic()` of the last instance.
        arrivals: of the job, as last seen: instances that other processes have stored.
        is_closed: completed; an instance that comes now belongs to a new job.
    """

    study_instance_uid: str
    series_instance_uid: str
    job_id: str
    sop_instance_uids: set[str]
    tenant: str = DEFAULT_TENANT
    calling_ae_title: str = ""
    source: Source = Source.DICOM
    arrivals: int = 0
    announced_instances: int | None = None
    queried_instances: frozenset[str] | None = None
    senders: set[threading.Thread] = field(default_factory=set)
    brought: set[str] = field(default_factory=set)
    was_broken_off: bool = False
    was_returned_to: bool = False
    being_stored: int = 0
    last_arrival: float = field(default_factory=time.monotonic)
    instances_recorded: int = 0
    is_closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open_associations(self) -> int:
        ended = {sender for sender in self.senders if not sender.is_alive()}
        self.was_broken_off |= not all(map(_was_released, ended))
        self.senders -= ended
        return len(self.senders)

    def is_sent(self) -> bool:
        """Whether every instance here came in one sending: over associations side by side, each released in order."""
        in_order = not (self.open_associations() or self.was_broken_off or self.was_returned_to)
        return in_order and self.brought == self.sop_instance_uids

    def add_sender(self, sender: threading.Thread) -> None:
        if sender not in self.senders:
            has_earlier = bool(self.brought) or self.was_broken_off
            self.was_returned_to |= has_earlier and all(map(_was_released, self.senders))
            self.senders.add(sender)

    def missing_of_queried(self) -> int | None:
        return None if self.queried_instances is None else len(self.queried_instances - self.sop_instance_uids)


@dataclass(frozen=True, slots=True)
class Expected:
    """A series that is being fetched: its job goes back to this AE title, with this priority."""

    sop_instance_uids: frozenset[str]
    ae_title: str
    priority: Priority
    tenant: str = DEFAULT_TENANT


class ArrivingSeriesRegister:
    """The series that are arriving; bounded by what is `receiving`, since a completed one is removed."""

    def __init__(self, store: StudyStore, jobs: JobStore) -> None:
        self._store = store
        self._jobs = jobs
        self._series: dict[_Key, ArrivingSeries] = {}
        self._expected: dict[_Key, Expected] = {}
        self._lock = threading.Lock()  # of the dictionary only, held for moments
        # A series is opened once, also when two associations begin with it. With one lock for all, each would wait
        # until a locked database has refused the one before, and the senders' patience ends meanwhile.
        self._opening = [threading.Lock() for _ in range(_OPENED_AT_ONCE)]

    def follow(self, job: JobRow) -> None:
        """Take up a job that another process, or this one before it ended, has opened; notice what was stored since.

        The quiet time of the series starts anew.
        """
        assert job.study_instance_uid is not None
        assert job.series_instance_uid is not None
        series = self.find(job.study_instance_uid, job.series_instance_uid, job.tenant)
        if series is None:
            self._add(job, job.study_instance_uid, job.series_instance_uid)
        elif series.job_id == job.id and series.arrivals != job.arrivals:
            with series.lock:
                series.arrivals = job.arrivals
                series.last_arrival = time.monotonic()
                self._look_at_files(series)

    def find(
        self, study_instance_uid: str, series_instance_uid: str, tenant: str = DEFAULT_TENANT
    ) -> ArrivingSeries | None:
        with self._lock:
            return self._series.get((study_instance_uid, series_instance_uid, tenant))

    def all(self) -> list[ArrivingSeries]:
        with self._lock:
            return list(self._series.values())

    def remove(self, series: ArrivingSeries) -> None:
        """Call with the series' lock held and `is_closed` set."""
        with self._lock:
            del self._series[series.study_instance_uid, series.series_instance_uid, series.tenant]

    @contextmanager
    def expecting(self, study_instance_uid: str, series_instance_uid: str, expected: Expected) -> Iterator[None]:
        """While a series is being fetched: it is complete as soon as every expected instance is here."""
        key = (study_instance_uid, series_instance_uid, expected.tenant)
        with self._lock:
            self._expected[key] = expected
            if (known := self._series.get(key)) is not None:
                known.queried_instances = expected.sop_instance_uids
        try:
            yield
        finally:
            with self._lock:
                self._expected.pop(key, None)

    @contextmanager
    def storing(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        calling: Calling,
        tenant: str = DEFAULT_TENANT,
    ) -> Iterator[ArrivingSeries]:
        """While the file of one instance is being written: the series has its job and cannot be completed.

        On leaving without an exception the instance is counted.
        """
        while True:
            series = self._find_or_open(study_instance_uid, series_instance_uid, calling, tenant)
            with series.lock:
                if series.is_closed:
                    continue
                series.being_stored += 1
                series.add_sender(calling.association)
                series.calling_ae_title = series.calling_ae_title or calling.ae_title
                break
        stored = False
        try:
            yield series
            stored = True
        finally:
            with series.lock:
                series.being_stored -= 1
                series.last_arrival = time.monotonic()
                if stored:
                    series.sop_instance_uids.add(sop_instance_uid)
                    series.brought.add(sop_instance_uid)

    def touch(self, series: ArrivingSeries, calling: Calling) -> None:
        """A copy of an instance came in: nothing new, but the sender is not done."""
        with series.lock:
            series.add_sender(calling.association)
            series.last_arrival = time.monotonic()

    def reopen(self, series: ArrivingSeries) -> None:
        """Give the series another job, its own having been completed by somebody else. Call with its lock held."""
        job = self._jobs.open_receiving(
            study_instance_uid=series.study_instance_uid,
            series_instance_uid=series.series_instance_uid,
            calling_ae_title=series.calling_ae_title,
            source=series.source,
            tenant=series.tenant,
        )
        series.job_id, series.arrivals = job.id, job.arrivals

    def _find_or_open(
        self, study_instance_uid: str, series_instance_uid: str, calling: Calling, tenant: str
    ) -> ArrivingSeries:
        if (known := self.find(study_instance_uid, series_instance_uid, tenant)) is not None:
            return known
        with self._opening[hash((study_instance_uid, series_instance_uid, tenant)) % _OPENED_AT_ONCE]:
            if (known := self.find(study_instance_uid, series_instance_uid, tenant)) is not None:
                return known
            with self._lock:
                expected = self._expected.get((study_instance_uid, series_instance_uid, tenant))
            job = self._jobs.open_receiving(
                study_instance_uid=study_instance_uid,
                series_instance_uid=series_instance_uid,
                calling_ae_title=calling.ae_title if expected is None else expected.ae_title,
                calling_address=calling.address,
                priority=Priority.ROUTINE if expected is None else expected.priority,
                tenant=tenant,
            )
            return self._add(job, study_instance_uid, series_instance_uid)

    def _add(self, job: JobRow, study_instance_uid: str, series_instance_uid: str) -> ArrivingSeries:
        series = ArrivingSeries(
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            job_id=job.id,
            sop_instance_uids=set(),
            tenant=job.tenant,
            calling_ae_title=job.calling_ae_title or "",
            source=Source(job.source),
            arrivals=job.arrivals,
        )
        self._look_at_files(series)
        key = (study_instance_uid, series_instance_uid, job.tenant)
        with self._lock:
            if (expected := self._expected.get(key)) is not None:
                series.queried_instances = expected.sop_instance_uids
            return self._series.setdefault(key, series)

    def _look_at_files(self, series: ArrivingSeries) -> None:
        directory = self._store.series_directory(
            series.study_instance_uid, series.series_instance_uid, tenant=series.tenant
        )
        files = list(directory.glob("*.dcm"))
        series.sop_instance_uids |= {path.stem for path in files}
        if series.announced_instances is None and files:
            series.announced_instances = _announced_in(files[0])


def _was_released(sender: threading.Thread) -> bool:
    """Only an association is (`pynetdicom.association.Association`); any other thread that stores just ends."""
    return bool(getattr(sender, "is_released", False))


def _announced_in(path: Path) -> int | None:
    """The number of instances of the series that an instance announces, as its sender knew it."""
    try:
        meta = read_file_meta(mapped(path))
        with path.open("rb") as file:
            file.seek(meta.data_set_begin)
            return read_identifiers(file, meta.transfer_syntax_uid, with_announcement=True).announced_instances
    except (InputError, OSError):  # what cannot be read is judged when the series is complete
        return None


@dataclass(frozen=True, slots=True)
class Calling:
    """Who is sending; "dicomweb:NAME" is an AE title too."""

    ae_title: str
    address: str
    association: threading.Thread
