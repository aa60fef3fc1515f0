"""A backup of a site under load, restored elsewhere: what was acknowledged before it goes to its end, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imaging.errors import ConfigurationError, NotFound, WorkerEnding
from services.delivery.relay import Relay
from services.delivery.unchanged import Unchanged
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.backup import back_up
from services.store.database import Database
from services.store.jobs import JobFilter, Lease
from services.store.outbox import Outbox
from services.store.rows import FINAL_STATES, JobRow, JobState
from services.store.study_store import StudyStore
from tests.faults.test_purge import opacified_series
from tests.services.ingest.peers import QUIET_S, Receiving, association, push, wait_until
from tests.worker.threshold_worker import ThresholdSegmenter
from worker.pipeline import Pipeline


class Site(Receiving):
    """A listener, a worker and a relay in this process, which work until they are stopped."""

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(settings, database, IntakeRules(min_slices=2))
        self.outbox = Outbox(database)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._work, self._deliver)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        settings = self.settings.model_copy(update={"lease_s": 5.0, "max_attempts": 3})
        pipeline = Pipeline.connect(settings, ThresholdSegmenter(stage_s=0.02), self._stopping.is_set)
        leases = Unchanged[Lease](1.0, time.monotonic)
        while not self._stopping.wait(0.02):
            held_for_s = leases.look(self.jobs.leases())
            silent = [lease for lease, unchanged_s in held_for_s.items() if unchanged_s > settings.lease_s]
            self.jobs.take_back_expired(silent, max_attempts=3)
            with suppress(WorkerEnding):
                pipeline.run_next()

    def _deliver(self) -> None:
        relay = Relay(self.settings, self.outbox, self.store)
        while not self._stopping.wait(0.05):
            relay.deliver_due()
        relay.stop()

    def all_jobs(self) -> list[JobRow]:
        return list(self.jobs.page(JobFilter(), limit=500))

    def sent(self, job: JobRow) -> set[str | None]:
        return {row.sop_instance_uid for row in self.outbox.of_job(job.id)}

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        super().stop()


@contextmanager
def running(settings: Settings) -> Iterator[Site]:
    database = Database.of(settings)
    database.upgrade()
    site = Site(settings, database)
    try:
        yield site
    finally:
        site.stop()
        database.close()


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    (tmp_path / "pacs").mkdir()
    (tmp_path / "destinations.toml").write_text(
        f'[[folders]]\nname = "pacs"\npath = "{tmp_path / "pacs"}"\n[[routes]]\nto = ["folder:pacs"]\n'
    )
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        destinations=tmp_path / "destinations.toml",
        dicom_port=0,
        series_quiet_s=QUIET_S,
    )


@pytest.mark.fault(
    "backup",
    "a backup while series are pushed, worked on and delivered; then everything but the backup is lost",
    "on a copy of it every series acknowledged before the backup is completed, with the result UIDs that the archive "
    "holds already: one result set of each series; a series that the backup cut is completed once it is sent again",
)
def test_what_was_acknowledged_before_a_backup_goes_to_its_end_on_a_copy_of_it(
    settings: Settings, tmp_path: Path
) -> None:
    acknowledged = []
    with running(settings) as site:
        done = threading.Event()

        def push_on() -> None:
            while not done.is_set():
                slices = opacified_series()
                push(site.port, slices)
                acknowledged.append(str(slices[0].SeriesInstanceUID))

        pushing = threading.Thread(target=push_on)
        pushing.start()
        cut = opacified_series()
        try:
            wait_until(lambda: any(job.state == JobState.COMPLETED for job in site.all_jobs()), timeout_s=60)
            with association(site.port) as opened:
                assert opened.send_c_store(cut[0]).Status == 0x0000
                before = list(acknowledged)
                made = back_up(site.database, site.store, tmp_path / "backup")
                for one in cut[1:]:
                    assert opened.send_c_store(one).Status == 0x0000
        finally:
            done.set()
            pushing.join()
        assert made.has_database
        wait_until(lambda: all(job.state == JobState.COMPLETED for job in site.all_jobs()), timeout_s=60)
        sent_first = {job.series_instance_uid: site.sent(job) for job in site.all_jobs()}
        at_the_archive = {path.name for path in (tmp_path / "pacs").iterdir()}
    states = states_in(tmp_path / "backup")
    assert states > {JobState.COMPLETED}, "the backup fell into no load"

    (tmp_path / "backup").rename(tmp_path / "restored")
    with running(settings.model_copy(update={"data_dir": tmp_path / "restored"})) as site:
        wait_until(lambda: all(job.state in FINAL_STATES for job in site.all_jobs()), timeout_s=60)
        assert len({job.series_instance_uid for job in site.all_jobs()}) == len(site.all_jobs())
        completed = [job for job in site.all_jobs() if job.state == JobState.COMPLETED]
        restored = {job.series_instance_uid: site.sent(job) for job in completed}
        assert cut[0].SeriesInstanceUID not in restored
        push(site.port, cut)
        wait_until(lambda: site.jobs_of(cut[0])[-1].state == JobState.COMPLETED, timeout_s=60)
        assert site.sent(site.jobs_of(cut[0])[-1]) == sent_first[str(cut[0].SeriesInstanceUID)]
    assert set(before) <= set(restored)
    assert all(restored[series] == sent_first[series] != set() for series in before)
    expected = {f"{uid}.dcm" for series in before for uid in restored[series]}
    assert expected <= at_the_archive


def states_in(backup: Path) -> set[str]:
    database = Database(f"sqlite:///{backup / 'embolens.sqlite'}")
    with database.read() as session:
        states = {state for (state,) in session.query(JobRow.state).distinct()}
    database.close()
    return states


def test_a_backup_goes_into_an_empty_directory_elsewhere(database: Database, tmp_path: Path) -> None:
    store = StudyStore(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    for target in (tmp_path / "full", store.data_dir / "backup"):
        with pytest.raises(ConfigurationError, match="name an empty directory"):
            back_up(database, store, target)


def test_a_backup_says_that_an_input_is_missing(settings: Settings, tmp_path: Path) -> None:
    with running(settings) as site:
        slices = opacified_series()
        push(site.port, slices)
        site.wait_for_state(slices[0], JobState.COMPLETED)
        next(site.store.data_dir.rglob("received/*/*/*.dcm")).unlink()
        with pytest.raises(NotFound, match="is not in the backup"):
            back_up(site.database, site.store, tmp_path / "backup")
