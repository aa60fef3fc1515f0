"""Studies fetched from a real archive by C-GET and C-MOVE."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore, series_of
from services.store.rows import Priority, RetrievalState
from tests.services.ingest.peers import ListenerProcess, ct_series, jobs_of, wait_until
from tests.services.retrieve.conftest import Archive, Fetching, node_toml


@pytest.fixture(scope="module")
def long_series(archive: Archive) -> list[Dataset]:
    """Long enough to do something in the middle of its retrieval."""
    slices = ct_series(250, size=256)
    archive.add(*slices)
    return slices


@pytest.mark.parametrize("how", ["c-get", "c-move"])
def test_a_study_is_fetched_and_its_job_belongs_to_the_node(
    fetching: Fetching, archive: Archive, settings: Settings, how: str
) -> None:
    settings.destinations.write_text(node_toml(archive.port, how))
    slices = ct_series(12, SeriesDescription="CTPA")
    scout = ct_series(1, StudyInstanceUID=slices[0].StudyInstanceUID, SeriesDescription="Topogram")
    other = ct_series(3, StudyInstanceUID=slices[0].StudyInstanceUID, Modality="MR")
    archive.add(*slices, *scout, *other)
    row = fetching.wait_for_end(fetching.fetch(slices[0], priority=Priority.STAT), "completed")
    found = {series.series_instance_uid: series for series in series_of(row)}
    own = found[slices[0].SeriesInstanceUID]
    assert (own.instances, own.received, own.failed, own.skipped) == (12, 12, 0, None)
    assert found[scout[0].SeriesInstanceUID].skipped == "intake.description"
    assert found[other[0].SeriesInstanceUID].skipped == "intake.modality"
    (job,) = fetching.wait_for_state(slices[0], "queued")
    assert (job.calling_ae_title, job.priority, job.instance_count) == ("ORTHANC", "stat", 12)
    assert job.completion_reason == "queried 12 instances received"
    assert fetching.retrievals.newest_jobs(row) == {slices[0].SeriesInstanceUID: job.id}
    assert not jobs_of(fetching.jobs, scout[0])


def test_a_study_that_is_here_is_not_fetched_again(fetching: Fetching, archive: Archive) -> None:
    slices = ct_series(5)
    archive.add(*slices)
    first = fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    (job,) = fetching.wait_for_state(slices[0], "queued")
    second = fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    assert second.id != first.id
    assert [series.received for series in series_of(second)] == [5]
    assert [one.id for one in fetching.jobs_of(slices[0])] == [job.id]


def test_slices_that_the_archive_got_later_are_fetched_and_supersede_the_first_result(
    fetching: Fetching, archive: Archive
) -> None:
    slices = ct_series(8)
    archive.add(*slices[:5])
    fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    fetching.wait_for_state(slices[0], "queued")
    archive.add(*slices[5:])
    fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    first, second = fetching.wait_for_state(slices[0], "cancelled", "queued")
    assert (second.supersedes, second.instance_count) == (first.id, 8)


def test_what_the_archive_does_not_have_is_said(fetching: Fetching, archive: Archive) -> None:
    unknown = Dataset()
    unknown.StudyInstanceUID = generate_uid()
    row = fetching.wait_for_end(fetching.fetch(unknown), "failed")
    assert (row.error_code, row.attempts) == ("retrieve.no_such_study", 1)
    slices = ct_series(3)
    archive.add(*slices)
    row = fetching.wait_for_end(fetching.fetch(slices[0], series_instance_uid="1.2.3"), "failed")
    assert row.error_code == "retrieve.no_such_series"
    scout = ct_series(2, SeriesDescription="scout")
    archive.add(*scout)
    row = fetching.wait_for_end(fetching.fetch(scout[0]), "failed")
    assert row.error_code == "retrieve.nothing_to_segment"
    assert "intake.description" in str(row.error_message)
    row = fetching.wait_for_end(fetching.fetch(scout[0], node="NOBODY"), "failed")
    assert row.error_code == "retrieve.unknown_node"


def test_a_node_that_is_down_is_asked_again_until_it_answers(
    fetching: Fetching, archive: Archive, settings: Settings
) -> None:
    slices = ct_series(4)
    archive.add(*slices)
    settings.destinations.write_text(node_toml(free_port()))
    row = fetching.fetch(slices[0])
    wait_until(lambda: fetching.retrievals.get(row.id).attempts)
    waiting = fetching.retrievals.get(row.id)
    assert waiting.error_code == "retrieve.node_unavailable"
    settings.destinations.write_text(node_toml(archive.port))
    ended = fetching.wait_for_end(row, "completed")
    assert ended.error_code is None
    assert fetching.wait_for_state(slices[0], "queued")[0].instance_count == 4


def test_a_node_that_stays_down_fails_the_retrieval(fetching: Fetching, settings: Settings) -> None:
    settings.destinations.write_text(node_toml(free_port()))
    row = fetching.wait_for_end(fetching.fetch(ct_series(1)[0]), "failed")
    assert (row.error_code, row.attempts) == ("retrieve.node_unavailable", 3)
    assert "is it running?" in str(row.error_message)


@pytest.mark.parametrize("how", ["c-get", "c-move"])
def test_slices_that_the_archive_cannot_send_are_told_and_their_series_is_set_aside(
    fetching: Fetching, archive: Archive, settings: Settings, how: str
) -> None:
    settings.destinations.write_text(node_toml(archive.port, how))
    slices = ct_series(6)
    archive.add(*slices)
    archive.lose(slices[3])
    row = fetching.wait_for_end(fetching.fetch(slices[0]), "failed")
    (series,) = series_of(row)
    assert (series.instances, series.received, series.failed) == (6, 5, 1)
    assert (row.error_code, row.attempts) == ("retrieve.incomplete", 3)
    assert str(row.error_message).startswith("1 of 6 instances are missing")
    (job,) = fetching.wait_for_state(slices[0], "not_analysable")
    assert job.reasons[0] == {
        "code": "intake.incomplete",
        "text": "5 of the 6 instances that ORTHANC has were received",
    }


def test_a_retrieval_can_be_cancelled_while_it_runs(fetching: Fetching, long_series: list[Dataset]) -> None:
    slices = long_series
    row = fetching.fetch(slices[0])
    wait_until(lambda: any(series.received for series in series_of(fetching.retrievals.get(row.id))))
    fetching.retrievals.cancel(row.id)
    ended = fetching.wait_for_end(row, "cancelled")
    (series,) = series_of(ended)
    assert 0 < series.received < len(slices)
    (job,) = fetching.wait_for_state(slices[0], "not_analysable")
    assert job.reasons[0]["code"] == "intake.incomplete"


def test_a_listener_that_stops_gives_its_retrievals_back(fetching: Fetching, long_series: list[Dataset]) -> None:
    slices = long_series
    row = fetching.fetch(slices[0])
    wait_until(lambda: any(series.received for series in series_of(fetching.retrievals.get(row.id))))
    fetching.retriever.stop()
    given_back = fetching.retrievals.get(row.id)
    assert (given_back.state, given_back.attempts) == (RetrievalState.PENDING, 0)
    assert fetching.jobs_of(slices[0])[0].state == "receiving"


@pytest.mark.parametrize("how", ["c-get", "c-move"])
def test_a_listener_killed_in_the_middle_of_a_retrieval_takes_it_up_again(
    settings: Settings, archive: Archive, database: Database, tmp_path: Path, how: str
) -> None:
    settings.destinations.write_text(node_toml(archive.port, how))
    slices = ct_series(80, size=256)
    archive.add(*slices)
    retrievals, jobs = RetrievalStore(database), JobStore(database)
    url = {"EMBOLENS_DATABASE_URL": database.url, "EMBOLENS_DESTINATIONS": str(settings.destinations)}
    listener = ListenerProcess(settings, tmp_path, **url)
    archive.knows_as("EMBOLENS", listener.port)
    row = retrievals.request_study(node="ORTHANC", study_instance_uid=slices[0].StudyInstanceUID)
    received = settings.data_dir / "received"
    wait_until(lambda: len(list(received.rglob("*.dcm"))) > 5)
    listener.end(signal.SIGKILL)
    kept = len(list(received.rglob("*.dcm")))
    assert kept < len(slices)
    assert retrievals.get(row.id).state == RetrievalState.RUNNING

    listener = ListenerProcess(settings, tmp_path, **url)
    archive.knows_as("EMBOLENS", listener.port)
    wait_until(lambda: retrievals.get(row.id).state == RetrievalState.COMPLETED, timeout_s=30)
    wait_until(lambda: [job.state for job in jobs_of(jobs, slices[0])] == ["queued"])
    (job,) = jobs_of(jobs, slices[0])
    assert (job.instance_count, job.calling_ae_title) == (len(slices), "ORTHANC")
    assert listener.end(signal.SIGTERM) == 0
