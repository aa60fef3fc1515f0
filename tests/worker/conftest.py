"""A data directory with a database, and small NIfTI studies to put into it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from redis import Redis

from services.delivery.destinations_file import DestinationsFile
from services.dicom.seg_options import DEFAULT_OPTIONS
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from services.store.waiting_line import WaitingLine
from services.task_queue import TaskQueue
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return StudyStore(tmp_path)


@pytest.fixture
def queue_job(jobs: JobStore, store: StudyStore) -> Callable[..., JobRow]:
    """Queue a NIfTI study: an artery along x with a clot of 4x4x4 voxels, each of 1 mm; or any bytes as its file.

    `poison_hu` is the value of a corner; `threshold_worker.POISON` lists those that do harm.
    """

    def queue(
        *,
        artery_hu: int = LUMEN_HU,
        clot: bool = True,
        poison_hu: int = -800,
        file: bytes | None = None,
        priority: Priority = Priority.ROUTINE,
    ) -> JobRow:
        job_id = str(uuid.uuid4())
        path = store.upload_directory(job_id) / "ct.nii.gz"
        path.parent.mkdir(parents=True)
        if file is None:
            hu_xyz = np.full((48, 40, 24), -800, dtype=np.int16)
            hu_xyz[4:44, 16:24, 8:16] = artery_hu
            hu_xyz[0, 0, 0] = poison_hu
            if clot:
                hu_xyz[20:24, 18:22, 10:14] = CLOT_HU
            nibabel.save(nibabel.Nifti1Image(hu_xyz, np.diag((-1.0, -1.0, 1.0, 1.0))), path)
        else:
            path.write_bytes(file)
        job, _ = jobs.submit(
            job_id,
            input_kind="nifti",
            inputs_digest=store.write_inputs(job_id, [path]),
            instance_count=1,
            priority=priority,
        )
        return job

    return queue


@pytest.fixture
def make_pipeline(jobs: JobStore, store: StudyStore, database: Database) -> Callable[..., Pipeline]:
    """A pipeline around a segmenter."""

    def make(segmenter: ThresholdSegmenter, *, lease_s: float = 30.0, max_attempts: int = 3) -> Pipeline:
        return Pipeline(
            jobs=jobs,
            store=store,
            destinations=DestinationsFile(REPOSITORY / "deploy/destinations.toml"),
            line=WaitingLine(database, routine_longest_wait_s=1800.0),
            segmenter=segmenter,
            lease_s=lease_s,
            max_attempts=max_attempts,
            seg_options=DEFAULT_OPTIONS,
        )

    return make


@pytest.fixture
def queue(redis_url: str) -> Iterator[TaskQueue]:
    Redis.from_url(redis_url).flushall()
    queue = TaskQueue(redis_url)
    yield queue
    queue.close()


@pytest.fixture
def start(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process of Embolens on this test's data directory; all are ended, by pid, at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start_process(*command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "EMBOLENS_DATA_DIR": str(tmp_path),
                    "EMBOLENS_REDIS_URL": redis_url,
                    "EMBOLENS_DESTINATIONS": str(REPOSITORY / "deploy/destinations.toml"),
                    "EMBOLENS_LEASE_S": "2",
                    "EMBOLENS_SWEEP_S": "0.5",
                    "PYTHONPATH": str(REPOSITORY),
                    "OMP_NUM_THREADS": "1",
                }
                | environment,
            )
        started.append(process)
        return process

    yield start_process
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
