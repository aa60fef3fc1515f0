"""What becomes of a job, whatever its study or the networks do."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from sqlalchemy.event import listen

from imaging.errors import ConfigurationError
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.delivery.destinations_file import DestinationsFile
from services.dicom.ct_series_writer import write_ct_series
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.rows import JobRow, JobState, Stage
from services.store.study_store import StudyStore
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline

QueueJob = Callable[..., JobRow]
MakePipeline = Callable[..., Pipeline]


def test_a_study_becomes_findings_and_masks_and_a_finished_job(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, store: StudyStore
) -> None:
    job = queue_job()

    make_pipeline(ThresholdSegmenter()).run_job(job.id)

    done = jobs.get(job.id)
    assert (done.state, done.outcome, done.progress) == (JobState.COMPLETED, "embolus_found", 1.0)
    assert set(done.stage_seconds) == set(Stage)
    findings = json.loads(store.result_file(job.id, "findings.json").read_text())
    assert findings == done.findings
    assert findings["lesions"][0]["volume_ml"] == pytest.approx(0.064)
    assert findings["provenance"]["package_name"] == "threshold"
    mask = np.asarray(nibabel.load(store.result_file(job.id, "mask.nii.gz")).dataobj)
    assert np.count_nonzero(mask[20:24, 18:22, 10:14]) == np.count_nonzero(mask) == 64
    assert not list((store.data_dir / "arriving").iterdir())


@pytest.mark.parametrize("study", [{}, {"artery_hu": 40, "clot": False}], ids=["findings", "not analysable"])
def test_the_relay_is_told_once_and_when_the_job_has_ended(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, study: dict[str, Any]
) -> None:
    job, told = queue_job(**study), []
    pipeline = replace(
        make_pipeline(ThresholdSegmenter()), tell_relay=lambda: told.append(jobs.get(job.id).finished_at is not None)
    )
    pipeline.run_job(job.id)
    assert told == [True]


def test_a_job_costs_its_worker_so_many_statements_whatever_it_reports(
    queue_job: QueueJob, make_pipeline: MakePipeline, database: Database
) -> None:
    """Counted, since every statement of 32 workers goes to one database: nothing for what a job of under a second
    reports, and the job is chosen and claimed in one transaction."""
    job, pipeline = queue_job(), make_pipeline(ThresholdSegmenter())
    asked: list[str] = []
    listen(database.engine, "before_cursor_execute", lambda *about: asked.append(str(about[2]).split()[0]))
    began = time.monotonic()
    pipeline.run_next()
    beats = int(time.monotonic() - began)  # of the lease, one a second: none, but where the machine is busy
    assert asked.count("UPDATE") <= 2 + beats, asked
    assert len(asked) <= 4 + 2 * beats, asked
    assert pipeline.jobs.get(job.id).state == JobState.COMPLETED


def test_a_study_without_a_clot_has_an_answer_of_its_own(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore
) -> None:
    job = queue_job(clot=False)

    make_pipeline(ThresholdSegmenter()).run_job(job.id)

    assert jobs.get(job.id).outcome == "no_embolus"


@pytest.mark.parametrize(
    ("study", "code"),
    [({"artery_hu": 40, "clot": False}, "contrast.none"), ({"file": b"\x1f\x8bnot a gzip"}, "input.")],
    ids=["no contrast", "damaged file"],
)
def test_what_cannot_be_analysed_says_why_and_is_never_a_negative(
    queue_job: QueueJob,
    make_pipeline: MakePipeline,
    jobs: JobStore,
    store: StudyStore,
    study: dict[str, Any],
    code: str,
) -> None:
    job = queue_job(**study)

    make_pipeline(ThresholdSegmenter()).run_job(job.id)

    done = jobs.get(job.id)
    assert (done.state, done.outcome) == (JobState.NOT_ANALYSABLE, "not_analysable")
    assert done.reasons[0]["code"].startswith(code)
    findings = json.loads(store.result_file(job.id, "findings.json").read_text())
    assert (findings["outcome"], findings["scan_probability"]) == ("not_analysable", None)
    assert [path.name for path in store.result_directory(job.id).iterdir()] == ["findings.json"]


@pytest.mark.parametrize(
    ("lumen_hu", "clot", "state", "objects"),
    [
        (LUMEN_HU, True, JobState.DELIVERING, ["seg.dcm", "sr.dcm"]),
        (LUMEN_HU, False, JobState.DELIVERING, ["seg.dcm", "sr.dcm"]),
        (40, False, JobState.NOT_ANALYSABLE, ["sr.dcm"]),
    ],
    ids=["embolus found", "none found", "not analysable"],
)
def test_every_ending_of_a_pushed_series_goes_back_as_dicom(
    make_pipeline: MakePipeline,
    jobs: JobStore,
    store: StudyStore,
    database: Database,
    tmp_path: Path,
    lumen_hu: int,
    clot: bool,
    state: JobState,
    objects: list[str],
) -> None:
    hu = np.full((24, 40, 48), -800, dtype=np.int16)
    hu[8:16, 16:24, 4:44] = lumen_hu
    if clot:
        hu[10:14, 18:22, 20:24] = CLOT_HU
    volume = CtVolume(hu, np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64))
    files = write_ct_series(volume, tmp_path / "ct", patient_id="P1", patient_name="Phantom^One")
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    digest = store.write_inputs(job.id, files)
    jobs.complete_intake(job.id, inputs_digest=digest, instance_count=len(files), completion_reason="quiet")

    make_pipeline(ThresholdSegmenter()).run_job(job.id)

    assert jobs.get(job.id).state == state
    rows = Outbox(database).of_job(job.id)
    assert [(row.destination, row.state) for row in rows] == [("node:CT1", "pending")] * len(objects)
    assert [Path(row.object_path).name for row in rows] == objects
    for row in rows:
        sent = pydicom.dcmread(store.data_dir / row.object_path)
        assert (sent.SOPInstanceUID, sent.PatientID) == (row.sop_instance_uid, "P1")
        assert ("no embolus" in sent.SeriesDescription) == (not clot and state == JobState.DELIVERING)


def test_a_job_that_is_not_queued_is_left_alone(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore
) -> None:
    job = queue_job()
    jobs.cancel(job.id)

    make_pipeline(ThresholdSegmenter()).run_job(job.id)

    assert jobs.get(job.id).state == JobState.CANCELLED


def test_an_unexpected_error_is_tried_again_and_then_failed(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore
) -> None:
    job = queue_job()
    pipeline = make_pipeline(ThresholdSegmenter(error=KeyError()), max_attempts=2)

    pipeline.run_job(job.id)
    after_first = jobs.get(job.id)
    pipeline.run_job(job.id)
    after_second = jobs.get(job.id)

    assert (after_first.state, after_first.attempts) == (JobState.QUEUED, 1)
    assert (after_second.state, after_second.attempts) == (JobState.FAILED, 2)
    assert (after_second.error_code, after_second.error_message) == ("internal", "unexpected KeyError")


def test_an_error_of_ours_keeps_its_code(queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore) -> None:
    job = queue_job()

    make_pipeline(ThresholdSegmenter(error=ConfigurationError("no such device")), max_attempts=1).run_job(job.id)

    assert jobs.get(job.id).error_code == "configuration"


def test_the_text_of_a_foreign_error_reaches_neither_log_nor_job(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    job = queue_job()
    error = ValueError("PatientName is DOE^JANE")

    with caplog.at_level(logging.DEBUG):
        make_pipeline(ThresholdSegmenter(error=error), max_attempts=1).run_job(job.id)

    assert "DOE" not in caplog.text + (jobs.get(job.id).error_message or "")
    assert "threshold_worker.py" in caplog.text  # where it happened is said


@pytest.mark.parametrize("lease_s", [0.9, 30.0])
def test_a_cancelled_job_stops_in_the_middle(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, lease_s: float
) -> None:
    job = queue_job()
    worker = _in_background(make_pipeline(ThresholdSegmenter(stage_s=5.0), lease_s=lease_s), job)

    _wait_for(lambda: jobs.get(job.id).stage == Stage.ROI)
    jobs.cancel(job.id)
    worker.join(timeout=3)  # a long lease is renewed only after ten seconds

    assert not worker.is_alive()
    assert jobs.get(job.id).state == JobState.CANCELLED


def test_a_job_cancelled_in_its_last_moment_has_no_result(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore
) -> None:
    job = queue_job()

    class CancelledAtTheEnd(ThresholdSegmenter):
        def segment(self, *arguments: Any, **keywords: Any) -> SegmentationResult:
            result = ThresholdSegmenter.segment(self, *arguments, **keywords)
            jobs.cancel(job.id)
            return result

    make_pipeline(CancelledAtTheEnd()).run_job(job.id)

    assert (jobs.get(job.id).state, jobs.get(job.id).outcome) == (JobState.CANCELLED, None)


def test_files_of_ours_that_cannot_be_read_are_tried_again_and_are_no_answer(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, store: StudyStore
) -> None:
    job = queue_job()
    (path,) = store.read_inputs(job.id)
    path.unlink()
    path.mkdir()  # reading it gives EISDIR, as a disk in trouble gives EIO

    make_pipeline(ThresholdSegmenter(), max_attempts=2).run_job(job.id)

    waiting = jobs.get(job.id)
    assert (waiting.state, waiting.outcome, waiting.error_code) == (JobState.QUEUED, None, "input.unreadable")


def test_the_lease_is_renewed_for_as_long_as_the_work_lasts(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore
) -> None:
    job = queue_job()
    worker = _in_background(make_pipeline(ThresholdSegmenter(stage_s=0.5), lease_s=0.9), job)

    seen = set()
    while worker.is_alive():
        seen.update(jobs.leases())
        time.sleep(0.05)

    assert jobs.get(job.id).state == JobState.COMPLETED
    assert len(seen) >= 4  # of two seconds; each renewal makes it another one


def test_a_result_after_the_lease_was_lost_is_thrown_away(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, store: StudyStore
) -> None:
    job = queue_job()
    worker = _in_background(make_pipeline(ThresholdSegmenter(stage_s=2.0), lease_s=0.6), job)

    _wait_for(lambda: jobs.get(job.id).stage == Stage.ROI)
    jobs.fail(job.id, jobs.get(job.id).lease_owner or "", code="worker_lost", message="silent", max_attempts=3)
    other = jobs.claim(job.id, "another worker", lease_s=60)
    worker.join(timeout=5)

    assert other is not None
    assert not worker.is_alive()
    assert jobs.get(job.id).lease_owner == "another worker"
    assert not store.result_directory(job.id).exists()


def test_who_lost_a_job_without_knowing_leaves_the_files_of_who_has_it_alone(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, store: StudyStore
) -> None:
    job = queue_job()
    files: list[dict[str, int]] = []

    def note_files() -> None:
        files.append({path.name: path.stat().st_ino for path in store.result_directory(job.id).iterdir()})

    class HungAtTheEnd(ThresholdSegmenter):
        """Meanwhile the job is taken back and finished by another worker."""

        def segment(self, *arguments: Any, **keywords: Any) -> SegmentationResult:
            result = ThresholdSegmenter.segment(self, *arguments, **keywords)
            jobs.take_back_expired(jobs.leases(), max_attempts=3)
            make_pipeline(ThresholdSegmenter()).run_job(job.id)
            note_files()
            return result

    make_pipeline(HungAtTheEnd()).run_job(job.id)
    note_files()

    assert (jobs.get(job.id).state, jobs.get(job.id).attempts) == (JobState.COMPLETED, 2)
    assert files[0]
    assert files[0] == files[1]


def test_a_job_worked_on_twice_gives_the_same_files(
    queue_job: QueueJob, make_pipeline: MakePipeline, jobs: JobStore, store: StudyStore
) -> None:
    job = queue_job()
    pipeline = make_pipeline(ThresholdSegmenter())
    masks = []
    for _ in range(2):
        claimed = jobs.claim(job.id, "dies before it finishes", lease_s=60)
        assert claimed is not None
        jobs.fail(job.id, "dies before it finishes", code="worker_lost", message="silent", max_attempts=3)
        masks.append(_mask_after(pipeline, job, store))
        job = queue_job()

    assert masks[0] == masks[1]


def _mask_after(pipeline: Pipeline, job: JobRow, store: StudyStore) -> bytes:
    pipeline.run_job(job.id)
    return store.result_file(job.id, "mask.nii.gz").read_bytes()


def _in_background(pipeline: Pipeline, job: JobRow) -> threading.Thread:
    thread = threading.Thread(target=pipeline.run_job, args=(job.id,))
    thread.start()
    return thread


def _wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_destination_that_is_added_while_the_worker_runs_counts_from_the_next_job_on(
    queue_job: QueueJob, make_pipeline: MakePipeline, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "destinations.toml"
    file.write_text("")
    pipeline = replace(make_pipeline(ThresholdSegmenter()), destinations=DestinationsFile(file))
    before, after = queue_job(), queue_job()
    pipeline.run_job(before.id)
    file.write_text(
        '[[webhooks]]\nname = "ris"\nurl = "https://ris.example/"\nsecret_file = "secret"\n'
        '[[routes]]\nto = ["webhook:ris"]\n'
    )
    pipeline.run_job(after.id)
    outbox = Outbox(database)
    assert [row.destination for job in (before, after) for row in outbox.of_job(job.id)] == ["webhook:ris"]
