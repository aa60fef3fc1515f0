"""Studies fetched from a real archive by C-GET and C-MOVE."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from services.settings import Settings
from services.store.retrievals import series_of
from services.store.rows import Priority
from tests.services.ingest.peers import ct_series, jobs_of
from tests.services.retrieve.conftest import Archive, Fetching, node_toml


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
