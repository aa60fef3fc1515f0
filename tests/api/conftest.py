"""A gateway on a real port beside a real Redis; the worker is played by claiming and finishing jobs in the database."""

from __future__ import annotations

import gzip
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from api.app import create_app
from imaging.findings import ArteryLevel, Findings, Lesion, Outcome
from services.accounts.key_store import FIRST_KEY_FILE, KeyStore
from services.accounts.principal import Scope
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery, JobStore
from services.store.outbox import Outbox
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from tests.paths_below import paths_below

WORKER = "worker-of-the-test"


@dataclass
class RunningGateway:
    """A served gateway and the same stores that a worker would open."""

    url: str
    settings: Settings
    client: httpx.Client
    jobs: JobStore
    outbox: Outbox
    store: StudyStore
    queue: TaskQueue
    keys: KeyStore

    def key_for(self, tenant: str, *scopes: Scope, **limits: Any) -> dict[str, str]:
        """The header of a new client."""
        name, given = f"client {uuid.uuid4()}", scopes or (Scope.READ, Scope.SUBMIT)
        _, key = self.keys.create(name, scopes=given, tenant=tenant, **limits)
        return {"Authorization": f"Bearer {key.text()}"}

    def submit(self, nifti: bytes, **request: Any) -> str:
        response = self.client.post("/segment", files={"files": ("x", nifti)}, **request)
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        return job_id

    def finish(
        self, job_id: str, *, lesions: int = 1, deliveries: tuple[Delivery, ...] = (), files: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """What a worker does with a job, in the worker's order: claim, files, finish."""
        self.jobs.claim(job_id, WORKER, lease_s=60)
        filled = self.store.arriving_directory()
        for name in files:
            (filled / name).write_bytes(f"content of {name}".encode())
        self.store.replace_directory(filled, self.store.result_directory(job_id))
        findings = findings_with(lesions)
        self.jobs.finish(job_id, WORKER, findings=findings, stage_seconds={"unet": 1.5}, deliveries=deliveries)
        return findings

    def kept_files(self) -> list[Path]:
        """Every file of studies in the data directory, on its way or in place."""
        roots = (self.settings.data_dir / "arriving", self.settings.data_dir / "jobs")
        return [path for root in roots for path in paths_below(root)]


def findings_with(lesions: int) -> dict[str, Any]:
    found = tuple(
        Lesion(number, 0.9, 1.25, (1.0, 2.0, 3.0), (1.0, 2.0, 4.0), 12.5, 55.0, ArteryLevel.LOBAR)
        for number in range(1, lesions + 1)
    )
    outcome = Outcome.EMBOLUS_FOUND if found else Outcome.NO_EMBOLUS
    return Findings(outcome, scan_probability=0.9 if found else 0.1, lesions=found).to_dict()


def bearer(data_dir: Path) -> dict[str, str]:
    """What shows the first key, which a gateway on loopback has made if it asks for any."""
    if not (data_dir / FIRST_KEY_FILE).exists():
        return {}
    return {"Authorization": f"Bearer {(data_dir / FIRST_KEY_FILE).read_text().strip()}"}


@contextmanager
def serving(settings: Settings) -> Iterator[RunningGateway]:
    """A gateway with these settings, in a thread of the test's process."""
    stopping = threading.Event()
    app = create_app(settings, is_stopping=stopping.is_set)
    server = uvicorn.Server(uvicorn.Config(app, port=settings.gateway_port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the gateway did not start"
        assert time.monotonic() < deadline, "the gateway did not start in time"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{settings.gateway_port}"
    database = Database(settings.resolved_database_url)
    queue = TaskQueue(settings.redis_url)
    client = httpx.Client(base_url=url, timeout=30, headers=bearer(settings.data_dir))
    try:
        yield RunningGateway(
            url,
            settings,
            client,
            JobStore(database),
            Outbox(database),
            StudyStore(settings.data_dir),
            queue,
            KeyStore(database),
        )
    finally:
        client.close()
        stopping.set()
        server.should_exit = True
        thread.join(timeout=15)
        queue.close()
        database.close()


@pytest.fixture
def start_gateway(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways with settings of their own; all end with the test."""
    with ExitStack() as running:
        numbers = count()

        def start(**chosen: Any) -> RunningGateway:
            defaults: dict[str, Any] = {"data_dir": tmp_path / f"data{next(numbers)}", "redis_url": redis_url}
            return running.enter_context(serving(Settings(gateway_port=free_port(), **(defaults | chosen))))

        yield start


@pytest.fixture
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    return start_gateway()


@pytest.fixture(scope="session")
def make_nifti() -> Callable[..., bytes]:
    """A small NIfTI-1 file, written by hand: 348 bytes of header, 4 of nothing, int16 voxels."""

    def make(slices: int = 8, *, seed: int = 0, compress: bool = True) -> bytes:
        shape = (16, 16, slices)
        header = bytearray(352)
        struct.pack_into("<i", header, 0, 348)
        struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
        struct.pack_into("<2h", header, 70, 4, 16)  # DT_INT16
        struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
        struct.pack_into("<3f", header, 108, 352, 1, 0)
        header[123] = 2  # mm
        struct.pack_into("<2h", header, 252, 0, 1)  # sform
        struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
        header[344:348] = b"n+1\0"
        voxels = np.random.default_rng(seed).integers(-1000, 400, shape, dtype=np.int16)
        content = bytes(header) + voxels.tobytes(order="F")
        return gzip.compress(content, mtime=0) if compress else content

    return make


@pytest.fixture(scope="session")
def nifti(make_nifti: Callable[..., bytes]) -> bytes:
    return make_nifti()


@pytest.fixture(scope="session")
def make_series() -> Callable[..., list[bytes]]:
    """The files of one small axial series."""

    def make(slices: int = 6, *, modality: str = "CT", patient_id: str = "P1", study_uid: str = "") -> list[bytes]:
        study_uid, series_uid, frame_uid = study_uid or generate_uid(), generate_uid(), generate_uid()
        return [
            _instance(modality, patient_id, study_uid, series_uid, frame_uid, number) for number in range(1, slices + 1)
        ]

    return make


def _instance(modality: str, patient_id: str, study_uid: str, series_uid: str, frame_uid: str, number: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study_uid, series_uid, frame_uid
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientID, dataset.PatientName = patient_id, f"Doe^{patient_id}"
    dataset.InstanceNumber = number
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, float(number)]
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = np.full((16, 16), number, dtype=np.int16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    written = BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
