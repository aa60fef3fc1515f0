"""A failed job's report: whatever made it fail, written once, for whom the result would have been."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import highdicom
import pydicom
import pytest
from pydicom.sr.codedict import codes

from services.delivery import failure_report
from services.delivery.failure_report import FailureReports
from services.delivery.sweep import Sweep
from services.dicom.result_codes import WHY_NOT_ANALYSED
from services.settings import Settings
from services.store.jobs import Delivery, JobStore
from services.store.outbox import Outbox
from services.store.rows import JobRow
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from tests.services.delivery.peers import write_destinations
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors, dsrdump
from tests.services.dicom.made_series import written_series

FAILED = {"code": "worker_crashed", "message": "the process crashed (SIGSEGV)"}
FINDINGS = {"outcome": "no_embolus", "reasons": []}
PACS = '[[nodes]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'


@pytest.fixture
def reports(settings: Settings, store: StudyStore, jobs: JobStore) -> FailureReports:
    write_destinations(settings, PACS)
    return FailureReports(settings, store, jobs)


@pytest.fixture
def written_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written without a process of their own: that costs seconds, and is not what is tested."""
    monkeypatch.setattr(failure_report, "_written_apart", failure_report.written_report)


@pytest.fixture
def running_job(jobs: JobStore, store: StudyStore) -> Callable[[], JobRow]:
    """A pushed series in the hands of the worker "a"."""

    def make() -> JobRow:
        directory = store.series_directory("1.2", "1.2.3")
        files = written_series(directory)
        job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="PACS")
        digest = store.write_inputs(job.id, files)
        jobs.complete_intake(job.id, inputs_digest=digest, instance_count=len(files), completion_reason="quiet")
        assert jobs.claim(job.id, "a", lease_s=60) is not None
        return jobs.get(job.id)

    return make


def test_a_failed_job_has_an_sr_that_says_not_analysed_and_why(
    reports: FailureReports, running_job: Callable[[], JobRow], jobs: JobStore, outbox: Outbox, store: StudyStore
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)

    reports.write_due()

    failed = jobs.get(job.id)
    assert (failed.state, failed.outcome, failed.error_code) == ("failed", "failed", "worker_crashed")
    (row,) = outbox.of_job(job.id)
    path = store.data_dir / (row.object_path or "")
    assert (row.destination, row.state, path.name) == ("node:PACS", "pending", "sr.dcm")
    assert dciodvfy_errors(path) == []
    assert dcentvfy_errors([path, *store.read_inputs(job.id)]) == []
    sr = highdicom.sr.srread(path)
    assert sr.SOPInstanceUID == row.sop_instance_uid
    assert sr.SeriesDescription == "Embolens: failed, not analysed (research use only)"
    (scan,) = sr.content.get_image_measurement_groups()
    (answer,) = scan.get_qualitative_evaluations(name=codes.SCT.PulmonaryEmbolism)
    (why,) = scan.get_qualitative_evaluations(name=WHY_NOT_ANALYSED)
    assert (answer.value.value, why.value.value) == ("not_analysed", "worker_crashed")
    assert scan.get_measurements() == []
    assert {uid for _, _, uid, _ in sr.get_evidence()} == {
        pydicom.dcmread(file).SOPInstanceUID for file in store.read_inputs(job.id)
    }
    text = dsrdump(path)
    assert "the process crashed (SIGSEGV)" in text
    for negative in ("Absent", "No embolus", "not analysable"):
        assert negative not in text


@pytest.mark.usefixtures("written_here")
def test_a_job_that_the_sweep_gives_up_is_reported_as_well(
    reports: FailureReports,
    running_job: Callable[[], JobRow],
    settings: Settings,
    store: StudyStore,
    jobs: JobStore,
    outbox: Outbox,
) -> None:
    job = running_job()
    queue, seconds = TaskQueue(settings.redis_url), itertools.count(0.0, settings.lease_s)
    brief = settings.model_copy(update={"max_attempts": 1, "lease_s": 1.0})
    sweep = Sweep(brief, store, jobs, queue, lambda: next(seconds))
    for _ in range(3):
        sweep.run()
    queue.close()

    reports.write_due()

    assert jobs.get(job.id).error_code == "worker_lost"
    assert [row.destination for row in outbox.of_job(job.id)] == ["node:PACS"]


@pytest.mark.usefixtures("written_here")
@pytest.mark.fault(
    "failed jobs",
    "the relay ends after it wrote the report of a failure and before that is committed",
    "the report is written again under the same UID, and is in the outbox once",
)
def test_a_report_that_was_broken_off_is_written_again_with_the_same_uids(
    reports: FailureReports,
    running_job: Callable[[], JobRow],
    jobs: JobStore,
    outbox: Outbox,
    store: StudyStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    put_in_place = StudyStore.replace_directory

    def put_in_place_and_die(self: StudyStore, filled: Path, final: Path) -> None:
        put_in_place(self, filled, final)
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(StudyStore, "replace_directory", put_in_place_and_die)
        with pytest.raises(KeyboardInterrupt):
            reports.write_due()
    assert (jobs.get(job.id).outcome, outbox.of_job(job.id)) == (None, [])
    first = pydicom.dcmread(store.result_file(job.id, "sr.dcm")).SOPInstanceUID

    reports.write_due()
    reports.write_due()

    assert [row.sop_instance_uid for row in outbox.of_job(job.id)] == [first]


def test_two_relays_that_report_the_same_failure_report_it_once(
    running_job: Callable[[], JobRow], jobs: JobStore, outbox: Outbox
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    (seen,) = jobs.unreported_failures()
    delivery = Delivery("node:PACS", "x", "1.2", "1.2.3.4")
    put: list[int] = []

    assert jobs.report_failure(seen, FINDINGS, [delivery], lambda: put.append(1))
    assert not jobs.report_failure(seen, FINDINGS, [delivery], lambda: put.append(2))

    assert (put, len(outbox.of_job(job.id))) == ([1], 1)


@pytest.mark.usefixtures("written_here")
def test_a_retry_calls_the_report_off_and_a_late_report_does_not_count(
    reports: FailureReports, running_job: Callable[[], JobRow], jobs: JobStore, outbox: Outbox
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    (seen,) = jobs.unreported_failures()
    reports.write_due()
    (row,) = outbox.of_job(job.id)

    jobs.retry(job.id)

    assert outbox.of_job(job.id) == []
    assert (jobs.get(job.id).outcome, jobs.get(job.id).findings) == (None, None)
    assert not jobs.report_failure(seen, FINDINGS, [], lambda: pytest.fail("the job is another's now"))
    jobs.claim(job.id, "b", lease_s=60)
    jobs.fail(job.id, "b", **FAILED, max_attempts=1)
    assert not jobs.report_failure(seen, FINDINGS, [], lambda: pytest.fail("that was the failure before"))
    reports.write_due()
    assert [again.sop_instance_uid for again in outbox.of_job(job.id)] == [row.sop_instance_uid]


@pytest.mark.usefixtures("written_here")
def test_a_report_that_has_arrived_does_not_hold_up_the_success_that_follows(
    reports: FailureReports, running_job: Callable[[], JobRow], jobs: JobStore, outbox: Outbox
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    reports.write_due()
    (of_failure,) = outbox.claim_due(limit=5, lease_s=60)
    outbox.delivered(of_failure)
    assert jobs.get(job.id).state == "failed"
    jobs.retry(job.id)
    jobs.claim(job.id, "b", lease_s=60)
    deliveries = [Delivery("node:PACS", "x", "1.2", "1.2.3.4")]
    jobs.finish(job.id, "b", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
    (of_success,) = outbox.claim_due(limit=5, lease_s=60)

    outbox.delivered(of_success)

    assert (jobs.get(job.id).state, jobs.get(job.id).outcome) == ("completed", "no_embolus")


@pytest.mark.usefixtures("written_here")
@pytest.mark.parametrize("is_reported", [False, True])
def test_late_slices_call_the_report_on_the_partial_series_off(
    is_reported: bool, reports: FailureReports, running_job: Callable[[], JobRow], jobs: JobStore, outbox: Outbox
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    if is_reported:
        reports.write_due()
    late = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="PACS")
    jobs.complete_intake(late.id, inputs_digest="d", instance_count=9, completion_reason="quiet")

    reports.write_due()

    assert outbox.of_job(job.id) == []


@pytest.mark.fault(
    "failed jobs",
    "images of a failed study on which its report's writer hangs, three times",
    "the writer is ended each time, then the failure is told without an object; the relay lives on",
)
def test_images_that_break_the_writer_too_are_told_of_without_an_object(
    reports: FailureReports,
    running_job: Callable[[], JobRow],
    settings: Settings,
    store: StudyStore,
    jobs: JobStore,
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (settings.data_dir / "secret").write_text("whsec_" + "A" * 32)
    hook = f'[[webhooks]]\nname = "h"\nurl = "https://h.example"\nsecret_file = "{settings.data_dir / "secret"}"\n'
    write_destinations(settings, f'{PACS}{hook}[[routes]]\nto = ["node:PACS", "webhook:h"]\n')
    job = running_job()
    hanging = store.series_directory("1.2", "1.2.3") / "hanging.dcm"
    os.mkfifo(hanging)  # whoever opens it to read waits
    with monkeypatch.context() as recording:
        recording.setattr(store, "inputs_digest", lambda files: "d")
        store.write_inputs(job.id, [*store.read_inputs(job.id), hanging])
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    monkeypatch.setattr(failure_report, "_LONGEST_S", 1.0)
    for _ in range(3):
        reports.write_due()
        assert jobs.get(job.id).outcome is None
    monkeypatch.undo()

    reports.write_due()

    assert jobs.get(job.id).outcome == "failed"
    assert [row.destination for row in outbox.of_job(job.id)] == ["webhook:h"]


@pytest.mark.usefixtures("written_here")
def test_a_failure_is_told_to_the_destinations_as_they_were_while_they_cannot_be_read(
    reports: FailureReports, running_job: Callable[[], JobRow], settings: Settings, jobs: JobStore, outbox: Outbox
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    write_destinations(settings, "not TOML")
    reports.write_due()

    assert [row.destination for row in outbox.of_job(job.id)] == ["node:PACS"]


@pytest.mark.usefixtures("written_here")
def test_a_relay_that_is_asked_to_stop_leaves_the_rest_for_later(
    reports: FailureReports, running_job: Callable[[], JobRow], jobs: JobStore
) -> None:
    job = running_job()
    jobs.fail(job.id, "a", **FAILED, max_attempts=1)
    stopping = threading.Event()
    stopping.set()
    reports.write_due(stopping)
    assert jobs.get(job.id).outcome is None
