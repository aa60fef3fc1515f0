"""Another archive than Orthanc: dcmtk's dcmqrscp."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.embedded_redis import free_port
from services.settings import Settings
from services.store.retrievals import series_of
from tests.end_to_end.hospital import storescu
from tests.services.ingest.peers import ct_series, save, wait_until
from tests.services.retrieve.conftest import Archive, Fetching, node_toml


class QueryRetrieveScp:
    """dcmqrscp with one storage area."""

    def __init__(self, directory: Path, listener_port: int) -> None:
        self.port = free_port()
        (directory / "area").mkdir(parents=True)
        (directory / "dcmqrscp.cfg").write_text(
            f"NetworkTCPPort = {self.port}\n"
            "MaxPDUSize = 16384\nMaxAssociations = 16\n"
            f"HostTable BEGIN\nembolens = (EMBOLENS, localhost, {listener_port})\nHostTable END\n"
            f"AETable BEGIN\nDCMTK {directory}/area RW (200, 1024mb) ANY\nAETable END\n"
        )
        command = ["dcmqrscp", "-c", str(directory / "dcmqrscp.cfg"), "--allow-shutdown"]
        self._process = subprocess.Popen(
            command, env=os.environ | {"TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)


@pytest.fixture
def scp(tmp_path: Path, fetching: Fetching) -> Iterator[QueryRetrieveScp]:
    if shutil.which("dcmqrscp") is None:
        pytest.fail("dcmqrscp is not installed (Debian: dcmtk)")
    running = QueryRetrieveScp(tmp_path / "dcmtk", fetching.port)
    wait_until(running.listens)
    yield running
    running.stop()


@pytest.mark.parametrize("how", ["c-get", "c-move"])
def test_a_study_is_fetched(
    fetching: Fetching, scp: QueryRetrieveScp, settings: Settings, tmp_path: Path, how: str
) -> None:
    settings.destinations.write_text(node_toml(scp.port, how, ae_title="DCMTK"))
    slices = ct_series(9)
    save(slices, tmp_path / "slices")
    storescu(scp.port, tmp_path / "slices", called_ae_title="DCMTK")
    row = fetching.wait_for_end(fetching.fetch(slices[0], node="DCMTK"), "completed")
    assert [(one.instances, one.received) for one in series_of(row)] == [(9, 9)]
    (job,) = fetching.wait_for_state(slices[0], "queued")
    assert (job.calling_ae_title, job.completion_reason) == ("DCMTK", "queried 9 instances received")


def test_somebody_else_has_a_study_moved_to_us(
    fetching: Fetching, scp: QueryRetrieveScp, archive: Archive, tmp_path: Path
) -> None:
    """movescu asks dcmqrscp, then Orthanc: what they push is a series like any other."""
    of_dcmtk, of_orthanc = ct_series(3), ct_series(3)
    save(of_dcmtk, tmp_path / "slices")
    storescu(scp.port, tmp_path / "slices", called_ae_title="DCMTK")
    archive.add(*of_orthanc)
    for port, called, slices in ((scp.port, "DCMTK", of_dcmtk), (archive.port, "ORTHANC", of_orthanc)):
        study = f"StudyInstanceUID={slices[0].StudyInstanceUID}"
        command = ["movescu", "-S", "-aec", called, "-aet", "EMBOLENS", "-aem", "EMBOLENS"]
        command += ["-k", "QueryRetrieveLevel=STUDY", "-k", study, "127.0.0.1", str(port)]
        subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, check=True, timeout=30)
        (job,) = fetching.wait_for_state(slices[0], "queued")
        assert (job.calling_ae_title, job.instance_count) == (called, 3)
