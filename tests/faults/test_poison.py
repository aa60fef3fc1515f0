"""Studies that harm the worker which works on them: each costs its own job and nothing else."""

from __future__ import annotations

import gzip
import resource
import subprocess
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.rows import DeliveryState, JobRow, JobState, Priority
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from tests.end_to_end.hospital import running_orthanc
from tests.worker.conftest import jobs, make_pipeline, queue, queue_job, start, store  # noqa: F401
from tests.worker.threshold_worker import ThresholdSegmenter
from worker.pipeline import Pipeline

Start = Callable[..., subprocess.Popen[bytes]]
LONG_LEASE = {"EMBOLENS_LEASE_S": "300"}  # nobody may have to wait until it has run out
HARM = {
    3001: ("worker_crashed", "SIGSEGV"),
    3002: ("worker_killed", "SIGKILL"),
    3003: ("out_of_memory", "more memory"),
}
DELAY = {3004: ("time_limit", "longer than a job may"), 3005: ("time_limit", "longer than a job may")}


@pytest.fixture
def poisoned(
    start: Start,  # noqa: F811
    queue: TaskQueue,  # noqa: F811
    queue_job: Callable[..., JobRow],  # noqa: F811
    jobs: JobStore,  # noqa: F811
) -> Callable[..., list[JobRow]]:
    """The failed jobs of such studies, worked on by one worker that outlived them and analysed two others."""

    def work_on(studies: Iterable[int], **settings: str) -> list[JobRow]:
        ids = [queue_job(poison_hu=hu).id for hu in studies]
        harmless = queue_job().id
        settings |= LONG_LEASE
        worker = start("tests/worker/threshold_worker.py", **settings)
        start("-m", "cli.app", "serve", "--only", "relay", **settings)
        for job_id in [*ids, harmless]:
            queue.enqueue(job_id, Priority.ROUTINE)
        _wait_for(lambda: all(jobs.get(job_id).state == JobState.FAILED for job_id in ids))
        last = queue_job().id
        queue.enqueue(last, Priority.ROUTINE)
        for job_id in (harmless, last):
            _wait_for(lambda job_id=job_id: jobs.get(job_id).state == JobState.COMPLETED)  # type: ignore[misc]
            assert jobs.get(job_id).attempts == 1
        assert worker.poll() is None
        return [jobs.get(job_id) for job_id in ids]

    return work_on


@pytest.mark.fault(
    "poison studies",
    "studies that make the process crash (SIGSEGV), have it killed (SIGKILL) or take all its memory",
    "each is tried 3 times and failed with its cause; the worker lives on and analyses the other studies",
)
def test_a_study_that_harms_its_process_fails_with_the_cause_and_the_next_is_analysed(
    poisoned: Callable[..., list[JobRow]],
) -> None:
    ended = poisoned(HARM, EMBOLENS_WORKER_MEMORY_BYTES=str(1 << 29))

    assert [(job.error_code, job.attempts) for job in ended] == [(code, 3) for code, _ in HARM.values()]
    for job, (_, said) in zip(ended, HARM.values(), strict=True):
        assert said in (job.error_message or "")


@pytest.mark.fault(
    "poison studies",
    "studies whose analysis never ends, in Python and as in C code that hears no signal",
    "each attempt is ended by the time limit, the job failed after the last; the other studies are analysed",
)
def test_a_study_that_takes_for_ever_fails_by_the_time_limit_and_the_next_is_analysed(
    poisoned: Callable[..., list[JobRow]],
) -> None:
    ended = poisoned(DELAY, EMBOLENS_JOB_TIMEOUT_S="1", EMBOLENS_MAX_ATTEMPTS="2")

    assert [(job.error_code, job.attempts) for job in ended] == [(code, 2) for code, _ in DELAY.values()]
    for job, (_, said) in zip(ended, DELAY.values(), strict=True):
        assert said in (job.error_message or "")


@pytest.mark.fault(
    "failed jobs",
    "a pushed study kills its process at every attempt, and again when a person has it tried again",
    "the PACS holds one SR, which says that the study was not analysed; nothing of the job is still to be sent",
)
def test_the_pacs_gets_one_sr_that_says_not_analysed(
    start: Start,  # noqa: F811
    queue: TaskQueue,  # noqa: F811
    jobs: JobStore,  # noqa: F811
    store: StudyStore,  # noqa: F811
    database: Database,
    tmp_path: Path,
) -> None:
    hu = np.full((8, 32, 32), -800, dtype=np.int16)
    hu[0, 0, 0] = 3002
    volume = CtVolume(hu, np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64))
    files = write_ct_series(volume, tmp_path / "ct", patient_id="1", patient_name="A")
    uids = {"study_instance_uid": "1.2", "series_instance_uid": "1.2.3"}
    job = jobs.open_receiving(**uids, calling_ae_title="ORTHANC")
    digest = store.write_inputs(job.id, files)
    jobs.complete_intake(job.id, inputs_digest=digest, instance_count=len(files), completion_reason="quiet")
    pacs = tmp_path / "orthanc"
    pacs.mkdir()
    with running_orthanc(pacs) as orthanc:
        (tmp_path / "destinations.toml").write_text(
            f'[[nodes]]\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {orthanc.dicom_port}\n'
        )
        settings = LONG_LEASE | {
            "EMBOLENS_DESTINATIONS": str(tmp_path / "destinations.toml"),
            "EMBOLENS_MAX_ATTEMPTS": "1",
        }
        start("tests/worker/threshold_worker.py", **settings)
        start("-m", "cli.app", "serve", "--only", "relay", **settings)
        _wait_for(lambda: {row.state for row in Outbox(database).of_job(job.id)} == {DeliveryState.DELIVERED})
        jobs.retry(job.id)
        _wait_for(lambda: jobs.get(job.id).outcome == "failed")

        (instance,) = orthanc.instances(modality="SR")
        sr = dcmread(BytesIO(orthanc.file(instance["ID"])))
    assert jobs.get(job.id).state == JobState.FAILED
    assert sr.SeriesDescription == "Embolens: failed, not analysed (research use only)"
    assert [row.sop_instance_uid for row in Outbox(database).of_job(job.id)] == [sr.SOPInstanceUID]


@pytest.mark.fault(
    "poison studies",
    "a header of 352 bytes claims 1.001e9 voxels, or 9e8 to a process that may take 8 GB",
    "refused as not analysable (input.too_large) before any memory is taken, with less than 50 MB more in use",
)
@pytest.mark.parametrize(("slices", "memory_bytes"), [(1001, resource.RLIM_INFINITY), (900, 8_000_000_000)])
def test_a_header_that_claims_more_voxels_than_there_is_memory_for_is_refused_before_it_is_read(
    slices: int,
    memory_bytes: int,
    make_pipeline: Callable[..., Pipeline],  # noqa: F811
    queue_job: Callable[..., JobRow],  # noqa: F811
    jobs: JobStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1000, 1000, slices))
    header.set_data_dtype(np.int16)
    job = queue_job(file=gzip.compress(header.binaryblock + bytes(4)))
    bounded = {resource.RLIMIT_DATA: (memory_bytes, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: bounded[which])
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    make_pipeline(ThresholdSegmenter()).run_job(job.id)

    done = jobs.get(job.id)
    assert (done.state, [reason["code"] for reason in done.reasons]) == (JobState.NOT_ANALYSABLE, ["input.too_large"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000


def _wait_for(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
