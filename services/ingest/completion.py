"""When is a series complete, and what becomes of it then."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import InputError, Reason, StateConflict
from services.dicom.series_reader import SeriesInfo, inspect_headers
from services.ingest.arriving_series import ArrivingSeries, ArrivingSeriesRegister
from services.ingest.completeness import Completeness
from services.ingest.intake_rules import IntakeRules, IntakeVerdict
from services.ingest.series_selection import ranked
from services.process_log import where_raised
from services.store.jobs import JobStore
from services.store.rows import JobState, Priority
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue

log = logging.getLogger(__name__)

_LONGEST_TICK_S = 0.5


def completion_reason(
    *,
    instance_count: int,
    announced_instances: int | None,
    open_associations: int,
    being_stored: int,
    quiet_for_s: float,
    series_quiet_s: float,
    missing_of_queried: int | None = None,
    is_sent: bool = False,
    series_released_quiet_s: float = math.inf,
) -> str | None:
    """Why the series is complete, or None while it is not.

    `is_sent` says that nothing more of it is to be expected: the shorter quiet time is enough.

    A number of instances that was announced and then passed was wrong, so it does not count any more: else every
    further slice would complete the series again.
    """
    if being_stored:
        return None
    if announced_instances is not None and instance_count == announced_instances:
        return f"announced {announced_instances} instances received"
    if missing_of_queried == 0:
        return f"queried {instance_count} instances received"
    if not open_associations and quiet_for_s >= series_quiet_s:
        return f"associations released, quiet for {series_quiet_s:g} s"
    if is_sent and not open_associations and quiet_for_s >= series_released_quiet_s:
        return f"sent whole and released, quiet for {series_released_quiet_s:g} s"
    return None


def until_next_look_s(quiet_for_s: Iterable[float], quiet_times_s: Sequence[float], tick_s: float) -> float:
    """A tick, or less where one of the series will have been quiet long enough before.

    `quiet_for_s` is each series' own.
    """
    left = (enough_s - quiet_s for quiet_s in quiet_for_s for enough_s in quiet_times_s)
    return min((one for one in left if 0 < one < tick_s), default=tick_s)


class CompletionWatcher:
    """A thread that looks at the arriving series and hands the complete ones on: to the queue, or set aside.

    The series' lock is held from the decision to the job's new state, so an instance is either among the inputs of
    this job or opens the next one. What another process stores is noticed by its job: one that is `receiving` is taken
    up, and one whose `arrivals` have grown since its files were listed is not completed.
    """

    def __init__(
        self,
        register: ArrivingSeriesRegister,
        store: StudyStore,
        jobs: JobStore,
        queue: TaskQueue,
        rules: IntakeRules,
        completeness: Completeness,
        *,
        series_quiet_s: float,
        series_released_quiet_s: float = math.inf,
        has_open_association: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`has_open_association` tells it of an AE title, whatever series that sends."""
        self._register = register
        self._store = store
        self._jobs = jobs
        self._queue = queue
        self._rules = rules
        self._completeness = completeness
        self._series_quiet_s = series_quiet_s
        self._series_released_quiet_s = series_released_quiet_s
        self._has_open_association = has_open_association
        self._come_back: set[str] = set()  # AE titles that have sent late slices: theirs get the long quiet time
        self._quiet_times_s = (series_quiet_s, series_released_quiet_s)
        self._tick_s = max(0.02, min(_LONGEST_TICK_S, series_quiet_s / 4, series_released_quiet_s / 4))
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="completion", daemon=True)

    def start(self) -> None:
        """Take up what was receiving when the process ended, then watch."""
        self._follow_jobs()
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def look_now(self) -> None:
        """The announced number of instances may be there."""
        self._wake.set()

    def _watch(self) -> None:
        while not self._stopping:
            now = time.monotonic()
            quiet_for_s = [now - series.last_arrival for series in self._register.all()]
            self._wake.wait(until_next_look_s(quiet_for_s, self._quiet_times_s, self._tick_s))
            self._wake.clear()
            try:
                self._follow_jobs()
            except Exception as error:  # noqa: BLE001  as below; a disk that does not answer must not end this thread
                log.error("jobs cannot be followed (%s); trying again\n%s", type(error).__name__, where_raised(error))
            for series in self._register.all():
                try:
                    self.look_at(series)
                except Exception as error:  # noqa: BLE001  outermost loop: one series must not stop the others
                    uid, name = series.series_instance_uid, type(error).__name__
                    log.error("series %s cannot be completed: %s\n%s", uid, name, where_raised(error))
                    series.last_arrival = time.monotonic()

    def _follow_jobs(self) -> None:
        for job in self._jobs.receiving():
            self._register.follow(job)

    def look_at(self, series: ArrivingSeries) -> None:
        """Complete the series if it is complete."""
        to_enqueue: Priority | None = None
        with series.lock:
            if series.is_closed:
                return
            count = len(series.sop_instance_uids)
            missing_of_queried = series.missing_of_queried()
            quiet_for_s = time.monotonic() - series.last_arrival
            reason = completion_reason(
                instance_count=count,
                missing_of_queried=missing_of_queried,
                announced_instances=series.announced_instances,
                open_associations=series.open_associations(),
                being_stored=series.being_stored,
                quiet_for_s=quiet_for_s,
                series_quiet_s=self._series_quiet_s,
                is_sent=self._is_sent(series),
                series_released_quiet_s=self._series_released_quiet_s,
            )
            try:
                incomplete: tuple[Reason, ...] = ()
                if reason is not None and missing_of_queried != 0 and count != series.announced_instances:
                    reason, incomplete = self._completeness.judge(series, reason)
                if reason is None:
                    self._record_count(series, count)
                    return
                to_enqueue = self._complete(series, reason, incomplete)
            except StateConflict:
                state = self._jobs.get(series.job_id).state
                if state == JobState.RECEIVING.value:
                    return  # another process has stored more of it meanwhile
                if state != JobState.CANCELLED.value:
                    log.warning("job %s was completed by another process; the series gets a new one", series.job_id)
                    self._register.reopen(series)
                    return
                log.info("job %s was cancelled while it was receiving", series.job_id)
            except SQLAlchemyError as error:
                log.error("the database does not answer (%s); trying again", type(error).__name__)
                series.last_arrival = time.monotonic()
                return
            series.is_closed = True
            self._register.remove(series)
        if to_enqueue is not None:
            self._queue.enqueue(series.job_id, to_enqueue)

    def _is_sent(self, series: ArrivingSeries) -> bool:
        """Whether nothing more of the series is to be expected (docs/adr/0005): it came in one sending, its sender has
        nothing open and is not known to come back, and what is here is a whole chest.

        Asked from the release on, so that the headers are read while it is quiet.
        """
        title = series.calling_ae_title
        return (
            math.isfinite(self._series_released_quiet_s)
            and series.is_sent()
            and title not in self._come_back
            and not self._has_open_association(title)
            and self._completeness.is_whole_chest(series)
        )

    def _record_count(self, series: ArrivingSeries, count: int) -> None:
        if count == series.instances_recorded:
            return
        series.instances_recorded = count
        try:
            self._jobs.count_received(series.job_id, count)
        except StateConflict:  # cancelled: what is still coming belongs to the same push and stays so
            log.debug("job %s no longer receives", series.job_id)

    def _complete(self, series: ArrivingSeries, reason: str, incomplete: tuple[Reason, ...]) -> Priority | None:
        """The priority with which the job is now to be enqueued; None where it was not queued."""
        directory = self._store.series_directory(
            series.study_instance_uid, series.series_instance_uid, tenant=series.tenant
        )
        files = sorted(directory.glob("*.dcm"))
        superseded = self._jobs.get(series.job_id).supersedes
        if not self._has_something_new(superseded, files):
            self._jobs.drop_receiving(series.job_id, reason="nothing new was received", arrivals=series.arrivals)
            return None
        if superseded is not None:
            self._come_back.add(series.calling_ae_title)
        digest = self._store.write_inputs(series.job_id, files)
        verdict = self._judge(files, series)
        if reasons := (*incomplete, *verdict.reasons):
            self._jobs.set_aside(
                series.job_id,
                reasons,
                inputs_digest=digest,
                instance_count=len(files),
                completion_reason=reason,
                arrivals=series.arrivals,
            )
            codes = ", ".join(one.code for one in reasons)
            log.info("series %s (%d files) set aside: %s", series.series_instance_uid, len(files), codes)
            return None
        asked_for = Priority(self._jobs.get(series.job_id).priority)
        priority = Priority.STAT if Priority.STAT in (asked_for, verdict.priority) else Priority.ROUTINE
        self._jobs.complete_intake(
            series.job_id,
            inputs_digest=digest,
            instance_count=len(files),
            completion_reason=reason,
            priority=priority,
            arrivals=series.arrivals,
        )
        log.info("series %s complete (%s): job %s", series.series_instance_uid, reason, series.job_id)
        return priority

    def _has_something_new(self, superseded: str | None, files: Sequence[Path]) -> bool:
        if superseded is None or not files:
            return bool(files)
        return self._jobs.get(superseded).inputs_digest != self._store.inputs_digest(files)

    def _judge(self, files: Sequence[Path], series: ArrivingSeries) -> IntakeVerdict:
        try:
            summary = inspect_headers(files)
            if not summary.series:
                raise InputError("no image in this series", code="input.not_dicom")
        except InputError as error:
            if error.code == "input.unreadable":  # our own disk's trouble, not an answer about the series
                raise
            return IntakeVerdict(Priority.ROUTINE, (Reason(error.code, error.message),))
        verdict = self._rules.judge(summary.series[0], series.calling_ae_title)
        if not verdict.reasons and (better := self._better_series(summary.series[0], series)) is not None:
            return IntakeVerdict(verdict.priority, (better,))
        return verdict

    def _better_series(self, info: SeriesInfo, series: ArrivingSeries) -> Reason | None:
        """The series of this study that is segmented already and is more likely the angiogram.

        Nothing waits for a better one that may still come: that one is segmented too. Equals both are: an acquisition
        is repeated when the first one failed.
        """
        if not (self._rules.best_of_study and self._rules.selection):
            return None
        study = series.study_instance_uid
        others = [
            inspect_headers(
                sorted(self._store.series_directory(study, uid, tenant=series.tenant).glob("*.dcm"))
            ).series[0]
            for uid in self._jobs.segmented_series(study, tenant=series.tenant)
            if uid != series.series_instance_uid
        ]
        (own,) = ranked([info], self._rules.selection)
        for best in ranked(others, self._rules.selection)[:1]:
            if best.points > own.points:
                text = (
                    f"series {best.series.series_instance_uid} of this study is segmented: {best.points:g} points "
                    f"({best.because}); this one has {own.points:g} ({own.because})"
                )
                return Reason("intake.better_series", text)
        return None
