"""A real archive with DICOMweb and storage commitment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.end_to_end import hospital
from tests.end_to_end.hospital import Orthanc

USER, PASSWORD = "embolens", "opensesame"


@contextmanager
def running_orthanc(directory: Path, *, listener_port: int) -> Iterator[Orthanc]:
    """Lets in whoever knows the password, and knows EMBOLENS as a modality at `listener_port`."""
    with hospital.running_orthanc(
        directory,
        user=(USER, PASSWORD),
        DicomModalities={"embolens": ["EMBOLENS", "127.0.0.1", listener_port]},
        Plugins=[hospital.DICOMWEB_PLUGIN],
    ) as running:
        yield running
