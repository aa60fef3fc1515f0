"""CT series made on the spot, senders, and a listener that runs in the test's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom.association import Association

from services.delivery.storage_commitment import CommitmentReports
from services.embedded_redis import free_port
from services.ingest.intake_rules import AssociationRules, IntakeRules
from services.ingest.receiver_pool import ReceiverPool
from services.ingest.store_scp import Listener
from services.requestor import Requestor
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobFilter, JobStore
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.rows import JobRow
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue

ROOT = Path(__file__).parents[3]
QUIET_S = 0.4
EVERYBODY = AssociationRules(promiscuous=True, called_ae_title_must_match=False)


def ct_series(count: int, *, size: int = 16, spacing_mm: float = 1.0, **attributes: object) -> list[Dataset]:
    """Headers as CT Image Storage asks for them, pixels of noise."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    pixels = np.random.default_rng(0).integers(-1000, 1000, (size, size), dtype=np.int16)
    own = [{"SOPInstanceUID": f"{series[:55]}.{number}"} | attributes for number in range(1, count + 1)]
    return [_slice(study, series, frame, n, spacing_mm, pixels, own[n - 1]) for n in range(1, count + 1)]


def _slice(study, series, frame, number, spacing_mm, pixels, attributes) -> Dataset:  # type: ignore[no-untyped-def]
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.Modality = "CT"
    header.PatientName = "Secret^Person"
    header.PatientID = "PHI-4711"
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
    header.InstanceNumber = number
    header.ImagePositionPatient = [0.0, 0.0, spacing_mm * number]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [0.7, 0.7]
    header.Rows, header.Columns = pixels.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.SamplesPerPixel, header.PixelRepresentation = 1, 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.RescaleIntercept, header.RescaleSlope = 0, 1
    header.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    return header


def save(slices: list[Dataset], directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{number:04d}.dcm" for number in range(len(slices))]
    for one, path in zip(slices, paths, strict=True):
        one.save_as(path, enforce_file_format=True)
    return paths


@contextmanager
def association(port: int, *, calling_ae_title: str = "CT1", sop_class: str = CTImageStorage) -> Iterator[Association]:
    ae = Requestor(ae_title=calling_ae_title)
    ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    ae.add_requested_context("1.2.840.10008.1.1")
    opened = ae.associate("127.0.0.1", port, ae_title="EMBOLENS")
    assert opened.is_established
    try:
        yield opened
    finally:
        opened.release()


def push(port: int, slices: list[Dataset], **arguments: str) -> None:
    with association(port, **arguments) as opened:
        for one in slices:
            assert opened.send_c_store(one).Status == 0x0000


def wait_until(happened: Callable[[], object], *, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


class Receiving:
    """A listener in this process and what it works on; where the rules do not say who may come, everybody may."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        rules: IntakeRules,
        *,
        associations_as_shipped: bool = False,
        receivers: ReceiverPool | None = None,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = StudyStore.of(settings)
        self.jobs = JobStore(database)
        self.queue = TaskQueue(settings.redis_url)
        reports, retrievals = CommitmentReports(Outbox(database), settings), RetrievalStore(database)
        if rules.associations == AssociationRules() and not associations_as_shipped:
            rules = rules.model_copy(update={"associations": EVERYBODY})
        self.listener = Listener(settings, self.store, self.jobs, self.queue, rules, retrievals, reports, receivers)
        self.listener.start()

    @property
    def port(self) -> int:
        return self.listener.port

    def jobs_of(self, one: Dataset) -> list[JobRow]:
        """Oldest first."""
        return jobs_of(self.jobs, one)

    def wait_for_state(self, one: Dataset, *states: str) -> list[JobRow]:
        """Until the jobs of the series, oldest first, are in these states."""
        wait_until(lambda: [job.state for job in self.jobs_of(one)] == list(states))
        return self.jobs_of(one)

    def stop(self) -> None:
        self.listener.stop()
        self.queue.close()


class ListenerProcess:
    """`run_listener` in a process of its own, to be killed."""

    def __init__(
        self, settings: Settings, directory: Path, *, associations: str = "promiscuous = true", **more: str
    ) -> None:
        (directory / "intake.toml").write_text(f"min_slices = 2\n[associations]\n{associations}\n")
        self.port = free_port()
        environment = {
            **os.environ,
            "EMBOLENS_DATA_DIR": str(settings.data_dir),
            "EMBOLENS_REDIS_URL": settings.redis_url,
            "EMBOLENS_DICOM_PORT": str(self.port),
            "EMBOLENS_SERIES_QUIET_S": "1.5",
            "EMBOLENS_INTAKE_RULES": str(directory / "intake.toml"),
            **more,
        }
        code = "from services.ingest.listener import *; from services.settings import *; run_listener(Settings())"
        self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if b"ready" in line:
                break
        assert self.process.poll() is None

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def jobs_of(jobs: JobStore, one: Dataset) -> list[JobRow]:
    return list(reversed(jobs.page(JobFilter(series_instance_uid=str(one.SeriesInstanceUID)), limit=50)))
