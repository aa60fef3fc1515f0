"""Too much work at once: STAT first, routine not without end, senders told to come later, and every job ends once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import generate_uid
from redis import Redis
from sqlalchemy import select

from services.delivery.sweep import Sweep
from services.embedded_redis import free_port
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery, JobStore, utc_now
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from services.store.waiting_line import STAT_IN_A_ROW, WaitingLine
from services.task_queue import TaskQueue
from tests.api.conftest import RunningGateway, findings_with, serving
from tests.services.delivery.peers import wait_until
from tests.services.ingest.peers import Receiving, ct_series, push

REPOSITORY = Path(__file__).resolve().parents[2]
STAT, ROUTINE = Priority.STAT, Priority.ROUTINE


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


def queued(jobs: JobStore, priority: Priority = ROUTINE) -> JobRow:
    job, _ = jobs.submit(str(uuid.uuid4()), input_kind="nifti", inputs_digest="d", instance_count=1, priority=priority)
    return job


def start_next(line: WaitingLine) -> JobRow | None:
    """What a worker does with a message, up to the work itself."""
    return line.start_next(threading.current_thread().name, lease_s=60)


def finish(jobs: JobStore, job: JobRow) -> None:
    owner = threading.current_thread().name
    jobs.finish(job.id, owner, findings=findings_with(0), stage_seconds={"unet": 1.0}, deliveries=())


@pytest.mark.fault(
    "overload",
    "500 routine studies wait, four workers take from them, and a STAT study comes last",
    "the STAT study starts next, the others in the order in which they came; every one of the 501 ends exactly once",
)
def test_five_hundred_studies_and_a_stat_study_that_comes_last(database: Database, jobs: JobStore) -> None:
    line = WaitingLine(database, routine_longest_wait_s=1800.0)
    routine = [queued(jobs).id for _ in range(500)]
    ended: list[str] = []
    for _ in range(4):  # what was running when it came
        job = start_next(line)
        assert job is not None
        finish(jobs, job)
        ended.append(job.id)
    stat = queued(jobs, STAT)
    assert jobs.queue_position(stat) == 0
    assert line.next_to_start() == stat.id

    def work() -> None:
        while (job := start_next(line)) is not None:
            finish(jobs, job)
            ended.append(job.id)

    workers = [threading.Thread(target=work, name=f"worker {number}") for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Counter(ended) == Counter([*routine, stat.id])
    with database.read() as session:
        rows = session.scalars(select(JobRow).order_by(JobRow.started_at)).all()
    assert [row.id for row in rows] == [*routine[:4], stat.id, *routine[4:]]
    assert {row.state for row in rows} == {"completed"}
    assert {row.attempts for row in rows} == {1}


@pytest.mark.fault(
    "overload",
    "STAT studies come faster than they are worked on, for as long as it takes",
    "a routine study that has waited for routine_longest_wait_s starts after at most 4 STAT studies; before that, none",
)
def test_a_steady_stream_of_stat_studies_does_not_starve_routine_ones(database: Database, jobs: JobStore) -> None:
    line = WaitingLine(database, routine_longest_wait_s=1800.0)
    routine = [queued(jobs) for _ in range(5)]
    started: list[JobRow] = []

    def run(count: int) -> list[str]:
        for _ in range(count):
            queued(jobs, STAT), queued(jobs, STAT)
            job = start_next(line)
            assert job is not None
            started.append(job)
            finish(jobs, job)
        return [job.priority for job in started[-count:]]

    assert run(10) == [STAT] * 10
    with database.write() as session:
        for row in session.scalars(select(JobRow).where(JobRow.priority == ROUTINE.value)):
            assert row.queued_at is not None
            row.queued_at -= timedelta(seconds=1801)
    order = run(5 * (STAT_IN_A_ROW + 1) + 3)
    places = [place for place, priority in enumerate(order) if priority == ROUTINE]
    assert places[0] == 0  # ten STAT studies went before it
    assert [after - before for before, after in pairwise(places)] == [STAT_IN_A_ROW + 1] * 4
    assert [job.id for job in started if job.priority == ROUTINE] == [job.id for job in routine]


@contextmanager
def full_gateway(tmp_path: Path, redis_url: str, nifti: bytes, *, most: int) -> Iterator[RunningGateway]:
    (tmp_path / "destinations.toml").write_text(
        '[[nodes]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\nretrieve = "c-get"\n'
    )
    settings = Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        gateway_port=free_port(),
        destinations=tmp_path / "destinations.toml",
        queue_max_jobs=most,
    )
    with serving(settings) as gateway:
        for number in range(most):
            gateway.submit(nifti, headers={"Idempotency-Key": f"key {number}"})
        yield gateway


@pytest.fixture
def nifti(tmp_path: Path) -> bytes:
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((16, 16, 8), -800, dtype=np.int16), np.diag((-1.0, -1.0, 1.0, 1.0))), path)
    return path.read_bytes()


@pytest.mark.fault(
    "overload",
    "queue_max_jobs studies wait and more are uploaded, sent by STOW-RS or asked for by /retrieve",
    "503 queue_full with Retry-After before anything is read; STAT and repeated requests are taken; room makes it end",
)
def test_those_who_can_come_again_are_told_when(tmp_path: Path, redis_url: str, nifti: bytes) -> None:
    with full_gateway(tmp_path, redis_url, nifti, most=3) as gateway:
        kept = len(gateway.kept_files())
        stow = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
        refused = [
            gateway.client.post("/segment", files={"files": ("x", nifti)}),
            gateway.client.post("/dicom-web/studies", content=b"--x--", headers=stow),
            gateway.client.post("/retrieve", json={"node": "PACS", "study_instance_uid": "1.2.3"}),
        ]
        for answer in refused:
            assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
            assert 5 <= int(answer.headers["Retry-After"]) <= 600
        assert len(gateway.kept_files()) == kept
        repeated = gateway.submit(nifti, headers={"Idempotency-Key": "key 1"})
        assert repeated in {job.id for job in gateway.jobs.queued()}
        gateway.submit(nifti, params={"priority": "stat"})
        assert len(gateway.jobs.queued()) == 4
        for job in gateway.jobs.queued()[:2]:
            gateway.finish(job.id)
        gateway.submit(nifti)


@pytest.mark.fault(
    "overload",
    "queue_max_jobs studies wait and a PACS pushes one more by C-STORE",
    "Success for every instance, and a job: a PACS cannot choose to come later",
)
def test_c_store_is_never_refused_for_a_full_queue(database: Database, redis_url: str, tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "data", redis_url=redis_url, dicom_port=0, series_quiet_s=0.2, queue_max_jobs=1
    )
    receiving = Receiving(settings, database, IntakeRules(min_slices=2))
    try:
        queued(receiving.jobs)
        series = ct_series(3)
        push(receiving.port, series)
        wait_until(lambda: len(receiving.jobs.queued()) == 2)
    finally:
        receiving.stop()


@pytest.mark.fault(
    "overload",
    "Redis is emptied while 12 studies wait, so that the worker's messages run out",
    "the sweep hands out as many messages as studies wait; each is brought to one end, the STAT study first",
)
def test_no_study_is_left_when_the_messages_run_out(tmp_path: Path, redis_url: str, database: Database) -> None:
    jobs, store, queue = JobStore(database), StudyStore(tmp_path), TaskQueue(redis_url)
    Redis.from_url(redis_url).flushall()
    made = [study(jobs, store) for _ in range(11)]
    made.append(study(jobs, store, STAT))
    queue.enqueue(made[0].id, ROUTINE)  # all that is left of twelve
    sweep = Sweep(Settings(data_dir=tmp_path, sweep_s=0.2), store, jobs, queue)
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(tmp_path),
        "EMBOLENS_DATABASE_URL": database.url,
        "EMBOLENS_REDIS_URL": redis_url,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "tests/worker/threshold_worker.py"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def all_ended() -> bool:
        sweep.run()
        return {jobs.get(job.id).state for job in made} == {"completed"}

    try:
        wait_until(all_ended, timeout_s=90)
    finally:
        worker.terminate()
        worker.wait(timeout=30)
        queue.close()
    ended = [jobs.get(job.id) for job in made]
    assert {job.attempts for job in ended} == {1}
    assert min(ended, key=lambda job: job.started_at or utc_now()).id == made[-1].id


def study(jobs: JobStore, store: StudyStore, priority: Priority = ROUTINE) -> JobRow:
    job_id = str(uuid.uuid4())
    path = store.upload_directory(job_id) / "ct.nii.gz"
    path.parent.mkdir(parents=True)
    hu = np.full((24, 24, 16), 400, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag((-1.0, -1.0, 1.0, 1.0))), path)
    digest = store.write_inputs(job_id, [path])
    job, _ = jobs.submit(job_id, input_kind="nifti", inputs_digest=digest, instance_count=1, priority=priority)
    return job


def test_metrics_count_what_waits_and_name_no_study(tmp_path: Path, redis_url: str, nifti: bytes) -> None:
    with full_gateway(tmp_path, redis_url, nifti, most=2) as gateway:
        first, _ = gateway.jobs.queued()
        uid = generate_uid()
        gateway.finish(first.id, deliveries=(Delivery('node:A "B"', "x", "1.2", uid),))
        answer = gateway.client.get("/metrics")
        shown = answer.text
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = dict(line.rsplit(" ", 1) for line in shown.splitlines() if not line.startswith("#"))
    assert lines['embolens_jobs{state="queued"}'] == lines['embolens_jobs{state="delivering"}'] == "1"
    assert lines['embolens_jobs{state="failed"}'] == "0"
    assert lines['embolens_queue_jobs{priority="routine"}'] == "1"
    assert float(lines['embolens_queue_oldest_seconds{priority="routine"}']) > 0
    assert lines['embolens_queue_oldest_seconds{priority="stat"}'] == "0"
    assert lines[r'embolens_deliveries{destination="node:A \"B\"",state="pending"}'] == "1"
    assert float(lines[r'embolens_delivery_oldest_seconds{destination="node:A \"B\""}']) > 0
    assert float(lines["embolens_data_dir_free_bytes"]) > 1e6
    assert uid not in shown
    assert first.id not in shown
