"""A result object, and dcmtk's storescp as the node that takes it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, SegmentationStorage, generate_uid

from services.settings import Settings
from services.store.outbox import Outbox
from services.store.rows import JobRow, OutboxRow


def result_object(path: Path) -> Dataset:
    one = Dataset()
    one.SOPClassUID = SegmentationStorage
    one.SOPInstanceUID, one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid(), generate_uid()
    one.Modality = "SEG"
    one.PatientID, one.PatientName = "PHI-4711", "Secret^Person"
    one.PixelData = bytes(1000)
    one.BitsAllocated = 8
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.save_as(path, enforce_file_format=True)
    return one


def secondary_capture(path: Path, transfer_syntax_uid: UID) -> Dataset:
    """A colour picture in this transfer syntax."""
    one = result_object(path)
    one.SOPClassUID = SecondaryCaptureImageStorage
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.Modality = "OT"
    one.PhotometricInterpretation, one.SamplesPerPixel, one.PlanarConfiguration = "RGB", 3, 0
    one.Rows, one.Columns = 40, 50
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 8, 8, 7, 0
    one.PixelData = np.random.default_rng(7).integers(0, 255, (40, 50, 3), dtype=np.uint8).tobytes()
    one["PixelData"].VR = "OW"
    if transfer_syntax_uid.is_encapsulated:
        one.compress(transfer_syntax_uid, generate_instance_uid=False)
    one.file_meta.TransferSyntaxUID = transfer_syntax_uid
    one.save_as(path, enforce_file_format=True)
    return one


class StoreScp:
    """dcmtk's storescp; `options` are its own (`+xi`: implicit VR only, `--refuse`)."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()

    def start(self, *options: str) -> None:
        if shutil.which("storescp") is None:
            pytest.fail("storescp is not installed (Debian: dcmtk)")
        command = ["storescp", *options, "-aet", "PACS", "-od", str(self.directory), str(self.port)]
        self._process = subprocess.Popen(
            command, env={**os.environ, "TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def received(self) -> list[Path]:
        return sorted(path for path in self.directory.iterdir() if path.is_file())

    def toml(self, ae_title: str = "PACS") -> str:
        return f'[[nodes]]\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {self.port}\n'

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def wait_until(happened: Callable[[], object], *, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def write_destinations(settings: Settings, text: str) -> None:
    settings.destinations.write_text(text)
    moment = time.time_ns() + 1_000_000
    os.utime(settings.destinations, ns=(moment, moment))


def only_row(outbox: Outbox, job: JobRow) -> OutboxRow:
    (row,) = outbox.of_job(job.id)
    return row
