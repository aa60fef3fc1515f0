"""A disk that is full or nearly so: refused for now and never for good, nothing half written, and over by itself."""

from __future__ import annotations

import errno
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from services.delivery.relay import Relay
from services.delivery.sweep import Sweep
from services.dicomweb.multipart_related import Part, related_body
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery, JobStore
from services.store.outbox import Outbox
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from services.store.waiting_line import WaitingLine
from services.task_queue import TaskQueue
from tests.faults.small_disk import MIB, SmallDisk
from tests.paths_below import paths_below
from tests.services.delivery.peers import StoreScp, result_object
from tests.services.ingest.peers import ListenerProcess, ct_series, jobs_of, save, wait_until
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline

JOB = "11111111-2222-4333-8444-555555555555"
MakeDisk = Callable[[int], SmallDisk]


def push_with_storescu(port: int, directory: Path) -> list[str]:
    """What dcmtk's storescu was answered, instance by instance."""
    command = ["storescu", "-v", "--no-halt", "-aec", "EMBOLENS", "127.0.0.1", str(port), "+sd", str(directory)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    return [line.partition("Received Store Response ")[2] for line in lines if "Received Store Response" in line]


def files_below(directory: Path) -> list[Path]:
    paths = [path for name in ("received", "arriving", "jobs") for path in paths_below(directory / name)]
    return [path for path in paths if path.suffix]


@pytest.mark.fault(
    "disk",
    "the data directory's disk is nearly full (less than the reserve is free), or full to its last byte with the "
    "database on it, while storescu pushes a series",
    "every instance is answered A700, nothing is left of it; with room again the same push is taken in and completed",
)
@pytest.mark.parametrize(("leave_bytes", "reserve_bytes"), [(MIB, 2 * 1024**3), (0, 0)])
def test_a_listener_on_a_full_disk_answers_a700_and_recovers_by_itself(
    leave_bytes: int, reserve_bytes: int, small_disk: MakeDisk, tmp_path: Path, redis_url: str
) -> None:
    disk = small_disk(48 * MIB)  # of which 2.4 MiB are reserved
    settings = Settings(data_dir=disk.path / "data", redis_url=redis_url)
    slices = ct_series(4, size=256)
    save(slices, tmp_path / "series")
    listener = ListenerProcess(settings, tmp_path, EMBOLENS_DISK_RESERVE_BYTES=str(reserve_bytes))
    try:
        disk.fill(leave_bytes=leave_bytes)
        answers = push_with_storescu(listener.port, tmp_path / "series")
        assert answers == ["(Refused: OutOfResources)"] * 4
        assert not files_below(settings.data_dir)
        disk.make_room()
        assert push_with_storescu(listener.port, tmp_path / "series") == ["(Success)"] * 4
        jobs = JobStore(database := Database.of(settings))
        wait_until(lambda: [job.instance_count for job in jobs_of(jobs, slices[0]) if job.inputs_digest] == [4])
        database.close()
    finally:
        listener.process.terminate()
        listener.process.wait(timeout=20)


@pytest.mark.fault(
    "disk",
    "the data directory's disk is nearly full, or full to its last byte, when studies come by HTTP",
    "507 with Retry-After and the code storage_full, nothing kept; with room again the same upload is taken",
)
@pytest.mark.parametrize(("leave_bytes", "reserve_bytes"), [(MIB, 2 * 1024**3), (0, 0)])
def test_uploads_on_a_full_disk_are_answered_507(
    leave_bytes: int, reserve_bytes: int, small_disk: MakeDisk, start_gateway: Callable[..., Any], nifti: bytes
) -> None:
    disk = small_disk(48 * MIB)
    gateway = start_gateway(data_dir=disk.path / "data", disk_reserve_bytes=reserve_bytes)
    disk.fill(leave_bytes=leave_bytes)
    assert_storage_full(gateway.client.post("/segment", files={"files": ("x", nifti)}))
    assert_storage_full(gateway.client.post("/convert", files={"files": ("x", nifti)}))
    assert not files_below(disk.path / "data")
    ready = gateway.client.get("/health/ready")
    assert ready.status_code == 503
    assert not ready.json()["parts"]["data_dir"]["ok"]
    disk.make_room()
    assert gateway.client.get("/health/ready").status_code == 200
    gateway.submit(nifti)


@pytest.mark.fault(
    "disk",
    "the disk fills up in the middle of an upload of 30 MiB, half of which fits",
    "507 with Retry-After, nothing kept of the half; what is reserved is still free",
)
def test_an_upload_that_does_not_fit_leaves_nothing_behind(
    small_disk: MakeDisk, start_gateway: Callable[..., Any]
) -> None:
    disk = small_disk(48 * MIB)
    gateway = start_gateway(data_dir=disk.path / "data")
    disk.fill(leave_bytes=16 * MIB)
    big = bytes(30 * MIB)
    octets = {"Content-Type": "application/octet-stream"}
    assert_storage_full(gateway.client.post("/segment", content=big, headers=octets))  # by its Content-Length
    chunks = (big[at : at + MIB] for at in range(0, len(big), MIB))
    assert_storage_full(gateway.client.post("/segment", content=chunks, headers=octets))
    assert not files_below(disk.path / "data")
    assert disk.free_bytes > 13 * MIB


def stow(gateway: Any, slices: list[Dataset]) -> httpx.Response:
    files = [BytesIO() for _ in slices]
    for one, file in zip(slices, files, strict=True):
        one.save_as(file, enforce_file_format=True)
    body = related_body("application/dicom", iter([Part("application/dicom", (file.getvalue(),)) for file in files]))
    headers = {"Content-Type": body.content_type}
    return gateway.client.post("/dicom-web/studies", content=b"".join(body.chunks), headers=headers)


def failure_reasons(answer: dict[str, Any]) -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer.get("00081198", {}).get("Value", [])]


@pytest.mark.fault(
    "disk",
    "the disk fills up in the middle of a STOW-RS request, or is nearly full before it",
    "what did not fit is in the Failed SOP Sequence with A700; 202 beside others, 507 with Retry-After alone",
)
def test_stow_on_a_full_disk_refuses_each_instance_with_a700(
    small_disk: MakeDisk, start_gateway: Callable[..., Any]
) -> None:
    disk = small_disk(48 * MIB)
    gateway = start_gateway(data_dir=disk.path / "data")
    slices = ct_series(6, size=1024)  # 2 MiB each
    disk.fill(leave_bytes=9 * MIB)
    some = stow(gateway, slices)
    assert some.status_code == 202
    refused = failure_reasons(some.json())
    assert 1 <= len(refused) < 6
    assert set(refused) == {0xA700}
    assert len(list((disk.path / "data" / "received").rglob("*.dcm"))) == 6 - len(refused)
    none = stow(gateway, ct_series(1, size=1024))
    assert (none.status_code, failure_reasons(none.json())) == (507, [0xA700])
    assert int(none.headers["Retry-After"]) > 0
    assert not list((disk.path / "data" / "arriving").iterdir())
    disk.make_room()
    assert stow(gateway, slices).status_code == 200
    assert len(list((disk.path / "data" / "received").rglob("*.dcm"))) == 6


def assert_storage_full(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (507, "storage_full"), response.text
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.fault(
    "disk",
    "the database's disk is full (SQLite: database or disk is full), that of the files is not",
    "A700 to C-STORE, 507 to uploads, no file of them kept; with room again both are taken",
)
def test_a_database_on_a_full_disk_refuses_for_now(
    small_disk: MakeDisk, tmp_path: Path, redis_url: str, start_gateway: Callable[..., Any], nifti: bytes
) -> None:
    disk = small_disk(4 * MIB)
    url = f"sqlite:///{disk.path / 'embolens.sqlite'}"
    settings = Settings(data_dir=tmp_path / "data", redis_url=redis_url, database_url=url)
    gateway = start_gateway(data_dir=settings.data_dir, database_url=url)
    listener = ListenerProcess(settings, tmp_path, EMBOLENS_DATABASE_URL=url)
    save(ct_series(2), tmp_path / "series")
    try:
        disk.fill()
        for _ in range(100):  # the write-ahead log has some room of its own
            response = gateway.client.post("/segment", files={"files": ("x", nifti)})
            if response.status_code != 202:
                break
        taken = len(list((settings.data_dir / "jobs").iterdir()))
        assert_storage_full(response)
        ready = gateway.client.get("/health/ready")
        assert (ready.status_code, ready.json()["parts"]["database"]["ok"]) == (503, False)
        assert push_with_storescu(listener.port, tmp_path / "series") == ["(Refused: OutOfResources)"] * 2
        assert not list((settings.data_dir / "received").rglob("*.dcm"))
        assert len(gateway.jobs.queued()) == taken
        assert len(list((settings.data_dir / "jobs").iterdir())) == taken
        disk.make_room()
        gateway.submit(nifti)
        assert push_with_storescu(listener.port, tmp_path / "series") == ["(Success)"] * 2
    finally:
        listener.process.terminate()
        listener.process.wait(timeout=20)


@pytest.fixture
def settings_elsewhere(tmp_path: Path, redis_url: str) -> Settings:
    (tmp_path / "destinations.toml").write_text("")
    return Settings(data_dir=tmp_path / "data", redis_url=redis_url, destinations=tmp_path / "destinations.toml")


@pytest.fixture
def on_small_disk(small_disk: MakeDisk, redis_url: str, tmp_path: Path) -> tuple[SmallDisk, Settings]:
    disk = small_disk(48 * MIB)
    (tmp_path / "destinations.toml").write_text("")
    return disk, Settings(
        data_dir=disk.path / "data", redis_url=redis_url, destinations=tmp_path / "destinations.toml", sweep_s=0.01
    )


def queued_job(store: StudyStore, jobs: JobStore) -> JobRow:
    path = store.upload_directory(JOB) / "ct.nii.gz"
    path.parent.mkdir(parents=True)
    hu_xyz = np.random.default_rng(0).integers(-900, -700, (48, 40, 24), dtype=np.int16)
    hu_xyz[4:44, 16:24, 8:16], hu_xyz[20:24, 18:22, 10:14] = LUMEN_HU, CLOT_HU
    nibabel.save(nibabel.Nifti1Image(hu_xyz, np.diag((-1.0, -1.0, 1.0, 1.0))), path)
    digest = store.write_inputs(JOB, [path])
    return jobs.submit(JOB, input_kind="nifti", inputs_digest=digest, instance_count=1, priority=Priority.ROUTINE)[0]


class FillingSegmenter(ThresholdSegmenter):
    """The disk is full when its work is done."""

    disk: SmallDisk

    def segment(self, *arguments: Any, **named: Any) -> Any:
        result = ThresholdSegmenter.segment(self, *arguments, **named)
        self.disk.fill()
        return result


@pytest.mark.fault(
    "disk",
    "the disk becomes full while a job runs: there is no byte left for its result",
    "the job is handed back to the queue with no attempt spent, nothing half written; no worker begins with it until "
    "there is room, then it completes",
)
def test_a_job_without_room_for_its_result_waits_and_is_not_failed(
    on_small_disk: tuple[SmallDisk, Settings], database: Database
) -> None:
    disk, settings = on_small_disk
    store, jobs, queue = StudyStore.of(settings), JobStore(database), TaskQueue(settings.redis_url)
    segmenter = FillingSegmenter()
    segmenter.disk = disk
    line = WaitingLine(database, routine_longest_wait_s=settings.routine_longest_wait_s)
    pipeline = replace(Pipeline.connect(settings, segmenter), jobs=jobs, line=line)
    queued_job(store, jobs)
    for _ in range(3):
        pipeline.run_job(JOB)
        job = jobs.get(JOB)
        assert (job.state, job.attempts, job.error_code) == ("queued", 0, "storage_full")
        assert not store.result_directory(JOB).exists()
        assert not list((settings.data_dir / "arriving").iterdir())
    started_at = job.started_at
    sweep = Sweep(settings, store, jobs, queue)
    sweep.run()
    assert JOB not in queue.waiting()
    pipeline.run_next()
    assert jobs.get(JOB).started_at == started_at  # not begun
    disk.make_room()
    replace(pipeline, segmenter=ThresholdSegmenter()).run_job(JOB)
    assert (jobs.get(JOB).state, jobs.get(JOB).attempts) == ("completed", 1)
    queue.close()


class FullElsewhere(ThresholdSegmenter):
    def segment(self, *_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x")


@pytest.mark.fault(
    "disk",
    "another disk than that of the data is full for a job (/tmp, /dev/shm)",
    "each try spends an attempt; after the third the job is failed with the code storage_full",
)
def test_a_job_for_which_another_disk_is_full_fails_in_the_end(
    settings_elsewhere: Settings, database: Database
) -> None:
    store, jobs = StudyStore.of(settings_elsewhere), JobStore(database)
    pipeline = replace(Pipeline.connect(settings_elsewhere, FullElsewhere()), jobs=jobs, max_attempts=3)
    queued_job(store, jobs)
    for state in ("queued", "queued", "failed"):
        pipeline.run_job(JOB)
        assert (jobs.get(JOB).state, jobs.get(JOB).error_code) == (state, "storage_full")


@pytest.mark.fault(
    "disk",
    "the database's disk is full when a job ends, and for 2 s after it",
    "the worker holds on to the job until it can hand it back; no attempt is spent, and it completes with the next try",
)
def test_a_job_whose_end_the_database_has_no_room_for_is_handed_back(
    small_disk: MakeDisk, settings_elsewhere: Settings
) -> None:
    disk = small_disk(4 * MIB)
    settings = settings_elsewhere.model_copy(update={"database_url": f"sqlite:///{disk.path / 'embolens.sqlite'}"})
    database = Database.of(settings)
    database.upgrade()
    store, jobs = StudyStore.of(settings), JobStore(database)
    segmenter = FillingSegmenter()
    segmenter.disk = disk
    pipeline = Pipeline.connect(settings, segmenter)
    queued_job(store, jobs)
    room = threading.Timer(2.0, disk.make_room)
    room.start()
    pipeline.run_job(JOB)
    room.join()
    job = jobs.get(JOB)
    assert (job.state, job.attempts, job.error_code) == ("queued", 0, "storage_full")
    replace(pipeline, segmenter=ThresholdSegmenter()).run_job(JOB)
    assert (jobs.get(JOB).state, jobs.get(JOB).attempts) == ("completed", 1)
    database.close()


@pytest.mark.fault(
    "disk",
    "less than the reserve is free, so that nothing new is taken in",
    "the job in hand writes its result into the reserve, and the relay delivers it to storescp",
)
def test_results_use_the_reserve_and_are_delivered(on_small_disk: tuple[SmallDisk, Settings], tmp_path: Path) -> None:
    disk, settings = on_small_disk
    database = Database.of(settings)
    database.upgrade()
    store, jobs, outbox = StudyStore.of(settings), JobStore(database), Outbox(database)
    queued_job(store, jobs)
    scp = StoreScp(tmp_path / "pacs", free_port())
    scp.start()
    settings.destinations.write_text(scp.toml())
    disk.fill(leave_bytes=MIB)
    assert not store.room().has_for_intake()
    try:
        Pipeline.connect(settings, ThresholdSegmenter()).run_job(JOB)
        assert jobs.get(JOB).state == "completed"
        pushed = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="PACS")
        jobs.complete_intake(pushed.id, inputs_digest="d", instance_count=1, completion_reason="test")
        jobs.claim(pushed.id, "w", lease_s=60)
        filled = store.arriving_directory()
        one = result_object(filled / "seg.dcm")
        store.replace_directory(filled, store.result_directory(pushed.id))
        delivery = Delivery("node:PACS", f"jobs/{pushed.id}/result/seg.dcm", one.SOPClassUID, one.SOPInstanceUID)
        findings = {"outcome": "no_embolus", "reasons": []}
        jobs.finish(pushed.id, "w", findings=findings, stage_seconds={}, deliveries=[delivery])
        relay = Relay(settings, outbox, store)
        relay.deliver_due()
        relay.stop()
        assert jobs.get(pushed.id).state == "completed"
        assert len(scp.received()) == 1
    finally:
        scp.stop()
        database.close()


def test_the_reserve_is_never_more_than_a_twentieth_of_the_disk(small_disk: MakeDisk) -> None:
    store = StudyStore(small_disk(40 * MIB).path, reserve_bytes=1024**4)
    assert store.room().reserved == pytest.approx(2 * MIB, rel=0.01)
    assert store.room().has_for_intake()
