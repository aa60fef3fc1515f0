"""Orthanc as the archive that is fetched from, and a listener with its retriever in the test's process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from pydicom.dataset import Dataset

from services.embedded_redis import free_port
from services.ingest.intake_rules import DescriptionRules, IntakeRules
from services.retrieve.retriever import Retriever
from services.settings import Settings
from services.store.database import Database
from services.store.retrievals import RetrievalStore
from services.store.rows import RetrievalRow
from tests.end_to_end.hospital import Orthanc, running_orthanc
from tests.services.ingest.peers import Receiving, wait_until


class Archive:
    """An Orthanc that anybody may ask, and what lies in it."""

    def __init__(self, orthanc: Orthanc, directory: Path) -> None:
        self.orthanc = orthanc
        self._directory = directory

    @property
    def port(self) -> int:
        return self.orthanc.dicom_port

    def add(self, *slices: Dataset) -> None:
        archive = BytesIO()
        with ZipFile(archive, "w") as opened:
            for number, one in enumerate(slices):
                written = BytesIO()
                one.save_as(written, enforce_file_format=True)
                opened.writestr(f"{number}.dcm", written.getvalue())
        self.orthanc.http.post("/instances", content=archive.getvalue()).raise_for_status()

    def lose(self, one: Dataset) -> None:
        """Its disk loses the file of an instance that it still lists."""
        uid = str(one.SOPInstanceUID).encode()
        (path,) = (
            path for path in self._directory.rglob("*") if len(path.name) == 36 and uid in path.read_bytes()[:5000]
        )
        path.unlink()

    def knows_as(self, ae_title: str, port: int) -> None:
        """Where a C-MOVE to this AE title goes."""
        self.orthanc.http.put(f"/modalities/{ae_title}", json=[ae_title, "127.0.0.1", port]).raise_for_status()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    allowed = {f"DicomAlwaysAllow{what}": True for what in ("Find", "Get", "Move", "Echo")}
    directory = tmp_path_factory.mktemp("archive")
    with running_orthanc(directory, MaximumStorageCacheSize=0, **allowed) as orthanc:
        yield Archive(orthanc, directory)


class Fetching(Receiving):
    """A listener with its retriever; `node` is a [[nodes]] table without its address."""

    def __init__(self, settings: Settings, database: Database, now: Callable[[], datetime] = datetime.now) -> None:
        rules = IntakeRules(min_slices=2, description=DescriptionRules(exclude=("topogram", "scout")))
        super().__init__(settings, database, rules)
        self.retrievals = RetrievalStore(database)
        self.retriever = Retriever(settings, self.listener, self.retrievals, rules, now=now)
        self.retriever.start()

    def stop(self) -> None:
        self.retriever.stop()
        super().stop()

    def fetch(self, one: Dataset, node: str = "ORTHANC", **how: str) -> RetrievalRow:
        return self.retrievals.request_study(node=node, study_instance_uid=str(one.StudyInstanceUID), **how)

    def wait_for_end(self, row: RetrievalRow, state: str) -> RetrievalRow:
        wait_until(lambda: self.retrievals.get(row.id).finished_at, timeout_s=30)
        ended = self.retrievals.get(row.id)
        assert ended.state == state, (ended.state, ended.error_code, ended.error_message)
        return ended


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, archive: Archive) -> Settings:
    destinations = tmp_path / "destinations.toml"
    destinations.write_text(node_toml(archive.port))
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        dicom_port=free_port(),
        series_quiet_s=0.4,
        series_longest_wait_s=5.0,
        destinations=destinations,
        retrieve_first_backoff_s=0.3,
        retrieve_max_backoff_s=0.5,
        retrieve_max_attempts=3,
    )


def node_toml(port: int, how: str = "c-get", *, ae_title: str = "ORTHANC", more: str = "") -> str:
    return f'[[nodes]]\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\nretrieve = "{how}"\n{more}\n'


@pytest.fixture
def fetching(settings: Settings, database: Database, archive: Archive) -> Iterator[Fetching]:
    running = Fetching(settings, database)
    archive.knows_as("EMBOLENS", running.port)
    yield running
    running.stop()
