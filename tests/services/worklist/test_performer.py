"""A workitem from SCHEDULED to its end, whatever its end is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.settings import Settings
from services.store.database import Database
from services.store.outbox import Outbox
from services.store.rows import JobRow, JobState, Priority
from tests.services.ingest.peers import ct_series, push, wait_until
from tests.services.worklist.conftest import Site, wait_for_state
from tests.services.worklist.origin_server import Held, OriginServer, code, input_of, workitem
from tests.worker.threshold_worker import ThresholdSegmenter
from worker.segmenter import OnProgress

MakeAngiogram = Callable[..., list[Dataset]]


def discontinued_for(held: Held) -> str:
    return str(held.information.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue)


@dataclass(slots=True)
class Watched(ThresholdSegmenter):
    """Goes on to the next stage when the origin server has been told of this one."""

    told: list[tuple[int, str]] = field(default_factory=list)

    def segment(
        self, volume: CtVolume, *, on_progress: OnProgress | None = None, min_score: float | None = None
    ) -> SegmentationResult:
        assert on_progress is not None
        report = on_progress

        def report_and_see(stage: str, fraction: float) -> None:
            report(stage, fraction)
            if fraction == 1.0:
                wait_until(lambda: any(text == f"running: {stage}" for _, text in self.told))

        return ThresholdSegmenter.segment(self, volume, on_progress=report_and_see, min_score=min_score)


def claimed(site: Site, origin: OriginServer, slices: list[Dataset]) -> tuple[JobRow, Held]:
    """The job of what a scanner pushed, and a workitem on it that is in progress."""
    job = site.push_and_wait(slices)
    held = origin.add(workitem(input_of(slices)))
    wait_until(lambda: held.state == "IN PROGRESS")
    return job, held


def test_a_series_that_is_here_is_analysed_and_the_workitem_says_where_the_result_is(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slices = angiogram()
    job = site.push_and_wait(slices)
    held = origin.add(workitem(input_of(slices), ScheduledProcedureStepPriority="HIGH"))
    wait_until(lambda: held.progress)
    site.analyse(job, Watched(told=held.progress))
    wait_until(lambda: (100, "delivering the result") in held.progress)
    assert held.state == "IN PROGRESS"
    site.deliver()
    wait_for_state(held, "IN PROGRESS", "COMPLETED")

    percents = [percent for percent, _ in held.progress]
    assert percents == sorted(percents)
    assert {f"running: {stage}" for stage in ("roi", "unet", "aanet", "fuse")} <= {text for _, text in held.progress}
    assert len({percent for percent in percents if 0 < percent < 100}) >= 2, "no progress was reported"
    performed = held.performed
    assert performed.PerformedStationNameCodeSequence[0].CodeValue == "EMBOLENS"
    assert performed.PerformedWorkitemCodeSequence[0].CodeMeaning == "Computer Aided Detection"
    assert performed.PerformedProcedureStepStartDateTime < performed.PerformedProcedureStepEndDateTime
    outputs = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: item for item in performed.OutputInformationSequence
    }
    for name in ("seg.dcm", "sr.dcm"):
        written = dcmread(site.store.result_file(job.id, name), stop_before_pixels=True)
        output = outputs[written.SOPInstanceUID]
        assert output.ReferencedSOPSequence[0].ReferencedSOPClassUID == written.SOPClassUID
        assert output.StudyInstanceUID == slices[0].StudyInstanceUID
        assert output.WADORSRetrievalSequence[0].RetrieveURL == (
            f"https://embolens.example/dicom-web/studies/{written.StudyInstanceUID}/series/{written.SeriesInstanceUID}"
        )
    wait_until(lambda: not held.subscribers)
    item = site.item(held)
    assert item is not None
    assert (item.state, item.transaction_uid) == ("completed", held.transaction_uid)
    assert "Secret" not in caplog.text


def test_what_is_not_for_us_is_left_alone(site: Site, origin: OriginServer, angiogram: MakeAngiogram) -> None:
    slices = angiogram()
    left = [
        origin.add(workitem(input_of(slices), station="OTHER")),
        origin.add(workitem(input_of(slices), station=None)),
        origin.add(workitem(input_of(slices), InputReadinessState="INCOMPLETE")),
        origin.add(workitem(input_of(slices), ScheduledProcedureStepStartDateTime="29990101")),
        origin.add(workitem(input_of(slices), ScheduledWorkitemCodeSequence=[code("110005", "DCM", "Interpretation")])),
        # The search matches items of the sequence by value and by scheme, each on its own.
        origin.add(workitem(input_of(slices), ScheduledStationNameCodeSequence=[code("EMBOLENS", "99OTHER", "Other")])),
    ]
    garbled = origin.add(workitem(input_of(slices), ScheduledProcedureStepPriority="HIGH"))
    origin.garbled.add(str(garbled.dataset.SOPInstanceUID))
    left.append(garbled)
    ours = origin.add(workitem(input_of(slices)))
    wait_until(lambda: ours.state != "SCHEDULED")
    seen = origin.count("GET", "/workitems")
    wait_until(lambda: origin.count("GET", "/workitems") > seen + 2)
    assert [held.state for held in left] == ["SCHEDULED"] * len(left)


def test_only_so_many_are_held_and_the_urgent_ones_first(
    settings: Settings, database: Database, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    slices = angiogram()
    low = origin.add(workitem(input_of(slices), ScheduledProcedureStepPriority="LOW"))
    later = origin.add(workitem(input_of(slices), ScheduledProcedureStepStartDateTime="20260103"))
    urgent = origin.add(workitem(input_of(slices), ScheduledProcedureStepPriority="HIGH"))
    earlier = origin.add(workitem(input_of(slices), ScheduledProcedureStepStartDateTime="20260101"))
    site = Site(settings, database)
    try:
        job = site.push_and_wait(slices)
        wait_until(lambda: earlier.state == urgent.state == "IN PROGRESS")
        assert low.state == later.state == "SCHEDULED"
        site.analyse(job)
        site.deliver()
        for held in (urgent, earlier, later, low):
            wait_for_state(held, "IN PROGRESS", "COMPLETED")
        assert site.item(urgent).priority == Priority.STAT  # type: ignore[union-attr]
    finally:
        site.stop()


def test_a_result_that_is_there_already_answers_at_once(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    slices = angiogram()
    site.analyse(job := site.push_and_wait(slices))
    site.deliver()
    held = origin.add(workitem(input_of(slices)))
    wait_for_state(held, "IN PROGRESS", "COMPLETED")
    assert [one.id for one in site.jobs_of(slices[0])] == [job.id]
    assert site.jobs.get(job.id).attempts == 1
    told = [one for item in held.performed.OutputInformationSequence for one in item.ReferencedSOPSequence]
    assert (
        len(told)
        == len(list(site.store.result_directory(job.id).glob("*.dcm")))
        > len(held.performed.OutputInformationSequence)
    ), "objects of one series are one item"


def test_not_analysable_is_canceled_with_its_report(site: Site, origin: OriginServer, angiogram: MakeAngiogram) -> None:
    slices = angiogram(artery_hu=0, clot=False)
    job = site.push_and_wait(slices)
    held = origin.add(workitem(input_of(slices)))
    wait_until(lambda: held.state == "IN PROGRESS")
    site.analyse(job)
    site.deliver()
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    assert site.jobs.get(job.id).state == JobState.NOT_ANALYSABLE
    assert held.information.ReasonForCancellation == "not analysable: no opacified vessel"
    assert discontinued_for(held) == "110513"
    sr = dcmread(site.store.result_file(job.id, "sr.dcm"))
    outputs = held.performed.OutputInformationSequence
    assert sr.SOPInstanceUID in [one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in outputs]


def test_a_failed_job_cancels_the_workitem_and_the_next_one_tries_again(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    slices = angiogram()
    job, held = claimed(site, origin, slices)
    site.analyse(job, ThresholdSegmenter(error=RuntimeError("Secret^Person")))
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    assert held.information.ReasonForCancellation == "failed: unexpected RuntimeError"
    assert discontinued_for(held) == "110501"
    assert not held.performed.get("OutputInformationSequence")

    again = origin.add(workitem(input_of(slices)))
    wait_until(lambda: site.jobs.get(job.id).state == JobState.QUEUED)
    site.analyse(job)
    site.deliver()
    wait_for_state(again, "IN PROGRESS", "COMPLETED")


def test_a_series_that_the_intake_rules_set_aside_is_analysed_since_the_workitem_names_it(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    slices = angiogram()[:1]  # the rules want two
    push(site.port, slices)
    (job,) = site.wait_for_state(slices[0], "not_analysable")
    held = origin.add(workitem(input_of(slices)))
    wait_until(lambda: site.jobs.get(job.id).state == JobState.QUEUED)
    site.analyse(job)
    site.deliver()
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    assert site.jobs.get(job.id).findings is not None, "now there is a report that says so"
    assert held.performed.OutputInformationSequence


def test_a_job_that_is_cancelled_here_cancels_the_workitem(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    job, held = claimed(site, origin, angiogram())
    site.jobs.cancel(job.id)
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    assert held.information.ReasonForCancellation == "cancelled: cancelled on request"


def test_inputs_that_cannot_be_had_are_said(site: Site, origin: OriginServer, angiogram: MakeAngiogram) -> None:
    slices = angiogram()
    site.analyse(site.push_and_wait(slices[:-2]))
    site.deliver()
    nowhere = origin.add(workitem(input_of(ct_series(3))))
    partly = origin.add(workitem(input_of(slices)))
    none = origin.add(workitem())
    other = origin.add(workitem(input_of(ct_series(2, SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))))
    for held, reason in ((nowhere, "110523"), (partly, "110523"), (none, "110522"), (other, "110522")):
        wait_for_state(held, "IN PROGRESS", "CANCELED")
        assert discontinued_for(held) == reason
    assert "not known whom to fetch it from" in nowhere.information.ReasonForCancellation
    assert partly.performed.OutputInformationSequence, "what was made of the others is told all the same"


def test_a_result_that_nobody_takes_does_not_keep_the_workitem_for_ever(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    job, held = claimed(site, origin, angiogram())
    site.analyse(job)
    outbox = Outbox(site.database)
    outbox.park(outbox.of_job(job.id)[0], "refused")
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    assert held.information.ReasonForCancellation == ("failed: the result could not be delivered to folder:results")


# Cancelling


def test_a_request_to_cancel_reaches_the_job_over_the_websocket(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    slices = angiogram()
    job = site.push_and_wait(slices)
    site.jobs.cancel(job.id)
    held = origin.add(workitem(input_of(slices)))
    wait_until(lambda: held.state == "IN PROGRESS" and origin.channels.get("EMBOLENS"))
    wait_until(lambda: site.jobs.get(job.id).state == JobState.QUEUED)  # again, for the workitem
    working = threading.Thread(target=site.analyse, args=(job, ThresholdSegmenter(stage_s=20)))
    working.start()
    wait_until(lambda: site.jobs.get(job.id).state == JobState.RUNNING)
    assert origin.request_cancel(held.dataset.SOPInstanceUID, "the patient was taken away").status_code == 202
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    working.join()
    assert site.jobs.get(job.id).state == JobState.CANCELLED
    assert held.information.ReasonForCancellation == "cancelled as requested: the patient was taken away"
    assert discontinued_for(held) == "110513"


def test_what_a_scanner_pushed_is_analysed_though_its_workitem_is_cancelled(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    slices = angiogram()
    job = site.push_and_wait(slices)
    held = origin.add(workitem(input_of(slices)))
    wait_until(lambda: held.state == "IN PROGRESS" and origin.channels.get("EMBOLENS"))
    origin.request_cancel(held.dataset.SOPInstanceUID)
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    site.analyse(job)
    assert site.jobs.get(job.id).state == JobState.DELIVERING


def test_a_request_that_comes_too_late_changes_nothing(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    job, held = claimed(site, origin, angiogram())
    site.analyse(job)
    origin.request_cancel(held.dataset.SOPInstanceUID)
    wait_until(lambda: site.item(held).cancel_reason)  # type: ignore[union-attr]
    site.deliver()
    wait_for_state(held, "IN PROGRESS", "COMPLETED")


def test_a_job_that_another_workitem_needs_goes_on(site: Site, origin: OriginServer, angiogram: MakeAngiogram) -> None:
    slices = angiogram()
    job = site.push_and_wait(slices)
    first, second = (origin.add(workitem(input_of(slices))) for _ in range(2))
    wait_until(lambda: first.state == second.state == "IN PROGRESS")
    origin.request_cancel(first.dataset.SOPInstanceUID)
    wait_until(lambda: site.item(first).cancel_reason)  # type: ignore[union-attr]
    site.analyse(job)
    site.deliver()
    wait_for_state(second, "IN PROGRESS", "COMPLETED")


def test_without_events_the_worklist_is_worked_on_all_the_same(
    site: Site, origin: OriginServer, angiogram: MakeAngiogram
) -> None:
    origin.has_events = False
    job, held = claimed(site, origin, angiogram())
    site.analyse(job)
    site.deliver()
    wait_for_state(held, "IN PROGRESS", "COMPLETED")


def test_a_workitem_that_somebody_else_ended_or_removed_is_let_go_and_its_work_stops(
    site: Site, origin: OriginServer
) -> None:
    ended, removed = [], []
    for kept in (ended, removed):
        slices = ct_series(3)
        job = site.push_and_wait(slices)
        site.jobs.cancel(job.id)
        held = origin.add(workitem(input_of(slices)))
        wait_until(lambda job=job: site.jobs.get(job.id).state == JobState.QUEUED)  # again, for the workitem
        wait_until(lambda held=held: held.state == "IN PROGRESS")
        kept += [held, job]
    ended[0].transaction_uid = "1.2.3"
    ended[0].history.append("CANCELED")
    ended[0].dataset.ProcedureStepState = "CANCELED"
    del origin.workitems[str(removed[0].dataset.SOPInstanceUID)]
    for held, job in (ended, removed):
        wait_until(lambda held=held: site.item(held).state == "lost")
        wait_until(lambda job=job: site.jobs.get(job.id).state == JobState.CANCELLED)
