"""How far an input series of a workitem is: fetched, if it is not here, and then a job like any other."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto

from imaging.errors import NotFound, StateConflict
from services.ingest.completeness import INCOMPLETE
from services.ingest.intake_rules import WORKLIST, Tenants
from services.retrieve.study_fetch import NOTHING_TO_SEGMENT
from services.settings import Settings
from services.store.jobs import JobStore, utc_now
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore, has_ended
from services.store.rows import (
    DeliveryState,
    JobRow,
    JobState,
    OutboxRow,
    Priority,
    RetrievalRow,
    RetrievalState,
)
from services.store.study_store import StudyStore
from services.store.worklist_items import InputSeries, WorklistItems


class Outcome(Enum):
    ANALYSED = auto()
    NOT_ANALYSABLE = auto()
    INCOMPLETE = auto()  # not all of it could be had
    FAILED = auto()
    CANCELLED = auto()


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one input is.

    Attributes:
        outcome: None while it is under way.
        progress: fraction of its work that is done, 0..1.
        text: the stage; of an input that was not analysed, why not.
        code: of why it was not analysed; empty where there is none.
        job: that stands for it; None where there is none (yet).
    """

    outcome: Outcome | None
    progress: float
    text: str
    code: str = ""
    job: JobRow | None = None


class InputLook:
    """Looks at inputs, and sets going what brings them on."""

    def __init__(
        self,
        settings: Settings,
        items: WorklistItems,
        jobs: JobStore,
        retrievals: RetrievalStore,
        outbox: Outbox,
        store: StudyStore,
        tenants: Tenants,
        worklist: str,
    ) -> None:
        self._settings = settings
        self._items = items
        self._jobs = jobs
        self._retrievals = retrievals
        self._outbox = outbox
        self._store = store
        self._tenants = tenants
        self._tenant = tenants.of(WORKLIST + worklist)

    def look(
        self, series: InputSeries, *, since: datetime, priority: Priority, is_called_off: bool
    ) -> tuple[InputSeries, Standing]:
        """The series as it is to be remembered from now on, and its standing.

        A job that had ended before `since` counts if it is of these images: its result is the one that a repetition
        would write. One that failed, was cancelled or was set aside by the intake rules is worked on again, once: the
        workitem names the series. Where it is called off, nothing is set going.
        """
        job = self._newest_job(series)
        if is_called_off and (job is None or not self._counts(series, job)) and series.retrieval_id is None:
            return series, Standing(Outcome.CANCELLED, 1.0, "called off", job=job)
        if is_called_off and job is not None and not _has_ended(job) and not self._is_ours(series, job, since):
            return series, Standing(Outcome.CANCELLED, 1.0, "called off", job=job)
        if job is not None and job.state == JobState.CANCELLED and not _ended_before(job, since):
            return series, self._of_job(job)
        if job is None or not self._counts(series, job):
            return self._look_at_retrieval(series, job, priority)
        if not (is_called_off or series.is_retried) and _deserves_another_try(job, since):
            series = replace(series, is_retried=True)
            try:
                job = self._jobs.retry(job.id)
            except StateConflict:
                return self._look_at_retrieval(series, job, priority)
        return series, self._of_job(job)

    def call_off(self, series: InputSeries, *, since: datetime) -> None:
        """Stop what the workitem set going for it, as far as it can be stopped; what others asked for goes on."""
        with suppress(StateConflict):  # it has just ended
            if series.retrieval_id is not None:
                retrieval = self._retrievals.get(series.retrieval_id)
                if not has_ended(retrieval) and retrieval.created_at >= since:
                    self._retrievals.cancel(retrieval.id)
        job = self._newest_job(series)
        if job is not None and not _has_ended(job) and self._is_ours(series, job, since):
            with suppress(StateConflict):
                self._jobs.cancel(job.id)

    def _newest_job(self, series: InputSeries) -> JobRow | None:
        return self._items.newest_job(series.study_instance_uid, series.series_instance_uid, tenant=self._tenant)

    def _is_ours(self, series: InputSeries, job: JobRow, since: datetime) -> bool:
        """Whether the job is there for the workitem alone: tried again for it, or of images fetched for it."""
        if series.is_retried:
            return True
        if series.retrieval_id is None or job.created_at < since:
            return False
        return self._retrievals.get(series.retrieval_id).created_at >= since

    def _counts(self, series: InputSeries, job: JobRow) -> bool:
        """Whether the job is of all the images that the workitem names; more of them may come while it is open."""
        return not (_has_ended(job) and self._missing(series, job))

    def _missing(self, series: InputSeries, job: JobRow) -> int:
        """How many of the images that the workitem names the job did not take in."""
        try:
            taken_in = {path.stem for path in self._store.read_inputs(job.id)}
        except NotFound:
            taken_in = set()
        return len(set(series.sop_instance_uids) - taken_in)

    def _look_at_retrieval(
        self, series: InputSeries, job: JobRow | None, priority: Priority
    ) -> tuple[InputSeries, Standing]:
        if series.retrieval_id is None:
            if series.node is None or self._tenants.of(series.node) != self._tenant:
                text = "the series is not here, and it is not known whom to fetch it from"
                return series, Standing(Outcome.INCOMPLETE, 1.0, text, INCOMPLETE, job)
            retrieval = self._retrievals.request_study(
                node=series.node,
                study_instance_uid=series.study_instance_uid,
                series_instance_uid=series.series_instance_uid,
                priority=priority,
                tenant=self._tenant,
            )
            return replace(series, retrieval_id=retrieval.id), Standing(None, 0.0, "fetching the images")
        retrieval = self._retrievals.get(series.retrieval_id)
        return series, self._of_retrieval(series, retrieval, job)

    def _of_retrieval(self, series: InputSeries, retrieval: RetrievalRow, job: JobRow | None) -> Standing:
        if not has_ended(retrieval):
            return Standing(None, 0.0, "fetching the images")
        code, message = retrieval.error_code or "", retrieval.error_message or ""
        if retrieval.state == RetrievalState.CANCELLED:
            return Standing(Outcome.CANCELLED, 1.0, "the retrieval of the images was cancelled", code, job)
        if code == NOTHING_TO_SEGMENT:
            return Standing(Outcome.NOT_ANALYSABLE, 1.0, message, code, job)
        missing = len(series.sop_instance_uids) if job is None else self._missing(series, job)
        text = message or f"{missing} of the {len(series.sop_instance_uids)} images named could not be had"
        return Standing(Outcome.INCOMPLETE, 1.0, text, code or INCOMPLETE, job)

    def _of_job(self, job: JobRow) -> Standing:
        if job.state == JobState.RECEIVING:
            return Standing(None, 0.0, "receiving the images", job=job)
        if job.state == JobState.QUEUED:
            return Standing(None, 0.0, "queued", job=job)
        if job.state == JobState.RUNNING:
            return Standing(None, job.progress, f"running: {job.stage or 'load'}", job=job)
        if job.state == JobState.FAILED:
            return Standing(Outcome.FAILED, 1.0, job.error_message or "failed", job.error_code or "", job)
        if job.state == JobState.CANCELLED:
            return Standing(Outcome.CANCELLED, 1.0, job.error_message or "cancelled", job.error_code or "", job)
        objects = [row for row in self._outbox.of_job(job.id) if row.sop_instance_uid is not None]
        undelivered = [row for row in objects if row.state != DeliveryState.DELIVERED]
        if undelivered:
            return self._while_undelivered(job, undelivered)
        if job.state == JobState.NOT_ANALYSABLE:
            text = "; ".join(reason["text"] for reason in job.reasons) or "not analysable"
            return Standing(Outcome.NOT_ANALYSABLE, 1.0, text, job.reasons[0]["code"] if job.reasons else "", job)
        return Standing(Outcome.ANALYSED, 1.0, job.outcome or "", job=job)

    def _while_undelivered(self, job: JobRow, undelivered: list[OutboxRow]) -> Standing:
        """Waits for the destinations, yet no longer than a delivery is tried at all."""
        given_up = job.updated_at + timedelta(seconds=self._settings.delivery_park_after_s) < utc_now()
        parked = any(row.state == DeliveryState.PARKED for row in undelivered)
        if not (given_up or parked):
            return Standing(None, 1.0, "delivering the result", job=job)
        text = f"the result could not be delivered to {', '.join(sorted({row.destination for row in undelivered}))}"
        return Standing(Outcome.FAILED, 1.0, text, "delivery.failed", job)


def _has_ended(job: JobRow) -> bool:
    """Whether no more images come to it."""
    return job.state not in (JobState.RECEIVING, JobState.QUEUED, JobState.RUNNING)


def _ended_before(job: JobRow, moment: datetime) -> bool:
    return job.finished_at is not None and job.finished_at < moment


def _deserves_another_try(job: JobRow, since: datetime) -> bool:
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        return _ended_before(job, since)
    set_aside = job.state == JobState.NOT_ANALYSABLE and job.findings is None
    return set_aside and all(reason["code"] != INCOMPLETE for reason in job.reasons)
