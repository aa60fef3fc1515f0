"""A job with a result on its way, and real peers to send it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from services.delivery.relay import Relay
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery, JobStore
from services.store.outbox import Outbox
from services.store.rows import JobRow
from services.store.study_store import StudyStore
from tests.end_to_end.hospital import Orthanc
from tests.services.delivery.orthanc import running_orthanc
from tests.services.delivery.peers import StoreScp, result_object

FINDINGS = {"outcome": "no_embolus", "reasons": []}


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    (tmp_path / "destinations.toml").write_text("")
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        destinations=tmp_path / "destinations.toml",
        delivery_first_backoff_s=0.2,
        delivery_max_backoff_s=1.0,
        sweep_s=0.2,
    )


@pytest.fixture
def jobs(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


@pytest.fixture
def store(settings: Settings) -> StudyStore:
    return StudyStore(settings.data_dir)


@pytest.fixture
def finished_job(jobs: JobStore, store: StudyStore) -> Callable[..., JobRow]:
    """Make a job, of a series of its own, that has a SEG for each of the destinations."""

    def make(*destinations: str, calling_ae_title: str = "CT1") -> JobRow:
        job = jobs.open_receiving(
            study_instance_uid="1.2", series_instance_uid=generate_uid(), calling_ae_title=calling_ae_title
        )
        jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
        assert jobs.claim(job.id, "worker", lease_s=60) is not None
        directory = store.result_directory(job.id)
        directory.mkdir(parents=True)
        one = result_object(directory / "seg.dcm")
        deliveries = [
            Delivery(destination, store.relative(directory / "seg.dcm"), one.SOPClassUID, one.SOPInstanceUID)
            for destination in destinations
        ]
        jobs.finish(job.id, "worker", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
        return jobs.get(job.id)

    return make


@pytest.fixture
def relay(settings: Settings, outbox: Outbox, store: StudyStore) -> Iterator[Relay]:
    relay = Relay(settings, outbox, store)
    yield relay
    relay.stop()


@pytest.fixture(scope="session")
def listener_port() -> int:
    """Where the archive believes our listener to be."""
    return free_port()


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory, listener_port: int) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), listener_port=listener_port) as orthanc:
        yield orthanc


@pytest.fixture
def store_scp(tmp_path: Path) -> Iterator[StoreScp]:
    """dcmtk's storescp, not yet running."""
    scp = StoreScp(tmp_path / "pacs", free_port())
    yield scp
    scp.stop()
