"""A site with everything but its processes: listener, retriever, performers, a pipeline and a relay, and a worklist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.volume import CtVolume
from services.delivery.destinations_file import DestinationsFile
from services.delivery.relay import Relay
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.seg_options import DEFAULT_OPTIONS
from services.ingest.intake_rules import IntakeRules
from services.retrieve.retriever import Retriever
from services.settings import Settings
from services.store.database import Database
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.rows import JobRow, WorklistItemRow
from services.store.waiting_line import WaitingLine
from services.store.worklist_items import WorklistItems
from services.worklist.performers import Performers
from tests.services.ingest.peers import QUIET_S, Receiving, push, wait_until
from tests.services.worklist.origin_server import Held, OriginServer
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline

WORKLIST = """
[[worklists]]
name = "ai"
server = "manager"
station = { value = "EMBOLENS", scheme = "99TEST", meaning = "Embolens" }
poll_s = 0.1
progress_s = 0.05
"""


@pytest.fixture
def origin() -> Iterator[OriginServer]:
    server = OriginServer()
    with server.serving():
        yield server


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, origin: OriginServer) -> Settings:
    (tmp_path / "results").mkdir()
    (tmp_path / "destinations.toml").write_text(destinations_toml(origin, tmp_path))
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        dicom_port=0,
        series_quiet_s=QUIET_S,
        destinations=tmp_path / "destinations.toml",
        gateway_url="https://embolens.example/",
        retrieve_first_backoff_s=0.2,
        retrieve_max_attempts=2,
    )


def destinations_toml(origin: OriginServer, tmp_path: Path, *, worklist: str = WORKLIST, nodes: str = "") -> str:
    return (
        f'[[dicomweb]]\nname = "manager"\nurl = "{origin.url}"\n{worklist}\n{nodes}\n'
        f'[[folders]]\nname = "results"\npath = "{tmp_path / "results"}"\n[[routes]]\nto = ["folder:results"]\n'
    )


class Site(Receiving):
    """What works on the worklist; `analyse` is the worker, `deliver` the relay."""

    def __init__(self, settings: Settings, database: Database) -> None:
        rules = IntakeRules(min_slices=2)
        super().__init__(settings, database, rules)
        self.items = WorklistItems(database)
        self.retrievals = RetrievalStore(database)
        self.retriever = Retriever(settings, self.listener, self.retrievals, rules)
        self.retriever.start()
        self.performers = self.start_performers()

    def start_performers(self) -> Performers:
        self.performers = Performers(self.settings, self.database, self.store)
        self.performers.start()
        return self.performers

    def stop(self) -> None:
        self.performers.stop()
        self.retriever.stop()
        super().stop()

    def item(self, held: Held) -> WorklistItemRow | None:
        return self.items.get("ai", str(held.dataset.SOPInstanceUID))

    def push_and_wait(self, slices: list[Dataset]) -> JobRow:
        push(self.port, slices)
        (job,) = self.wait_for_state(slices[0], "queued")
        return job

    def analyse(self, job: JobRow, segmenter: ThresholdSegmenter | None = None) -> None:
        Pipeline(
            jobs=self.jobs,
            store=self.store,
            destinations=DestinationsFile(self.settings.destinations),
            line=WaitingLine(self.database, routine_longest_wait_s=1800.0),
            segmenter=segmenter or ThresholdSegmenter(),
            lease_s=30.0,
            max_attempts=1,
            seg_options=DEFAULT_OPTIONS,
        ).run_job(job.id)

    def deliver(self) -> None:
        relay = Relay(self.settings, Outbox(self.database), self.store)
        relay.deliver_due()
        relay.stop()


@pytest.fixture
def site(settings: Settings, database: Database) -> Iterator[Site]:
    running = Site(settings, database)
    yield running
    running.stop()


@pytest.fixture
def angiogram(tmp_path: Path) -> Callable[..., list[Dataset]]:
    """The images of a series with an artery along x; with a clot in it, or without any contrast."""

    def make(*, artery_hu: int = LUMEN_HU, clot: bool = True, name: str = "ct") -> list[Dataset]:
        hu = np.full((12, 40, 48), -800, dtype=np.int16)
        hu[4:10, 16:24, 4:44] = artery_hu
        if clot:
            hu[5:9, 18:22, 20:24] = CLOT_HU
        files = write_ct_series(
            CtVolume(hu, np.diag((1.0, 1.0, 1.0, 1.0))),
            tmp_path / name,
            patient_id="PHI-4711",
            patient_name="Secret^Person",
        )
        return [dcmread(path) for path in files]

    return make


def wait_for_state(held: Held, *history: str) -> None:
    wait_until(lambda: held.history[-1] == history[-1])
    assert tuple(held.history) == ("SCHEDULED", *history)
