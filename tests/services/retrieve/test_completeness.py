"""Series that are pushed: complete by what their node has, or by their geometry."""

from __future__ import annotations

import time

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from services.embedded_redis import free_port
from services.settings import Settings
from tests.services.ingest.peers import ct_series, push
from tests.services.retrieve.conftest import Archive, Fetching, node_toml


@pytest.fixture
def counted(settings: Settings, archive: Archive) -> None:
    settings.destinations.write_text(node_toml(archive.port, more="count_instances = true"))


def stays_receiving(fetching: Fetching, one: Dataset, *, for_s: float) -> bool:
    """Far beyond the quiet time."""
    time.sleep(for_s)
    return [job.state for job in fetching.jobs_of(one)] == ["receiving"]


@pytest.mark.usefixtures("counted")
def test_a_series_is_complete_when_all_that_its_node_has_is_here(fetching: Fetching, archive: Archive) -> None:
    slices = ct_series(8)
    archive.add(*slices)
    push(fetching.port, slices[:5], calling_ae_title="ORTHANC")
    assert stays_receiving(fetching, slices[0], for_s=1.0)
    push(fetching.port, slices[5:], calling_ae_title="ORTHANC")
    (job,) = fetching.wait_for_state(slices[0], "queued")
    assert job.completion_reason == "queried 8 instances received"


@pytest.mark.usefixtures("counted")
def test_a_series_that_stays_incomplete_is_set_aside_and_late_slices_supersede_it(
    fetching: Fetching, archive: Archive
) -> None:
    slices = ct_series(8)
    archive.add(*slices)
    push(fetching.port, slices[:5], calling_ae_title="ORTHANC")
    (job,) = fetching.wait_for_state(slices[0], "not_analysable")
    assert job.reasons[0] == {
        "code": "intake.incomplete",
        "text": "5 of the 8 instances that ORTHANC has were received",
    }
    assert fetching.jobs.can_retry(job), "a person may decide otherwise"
    push(fetching.port, slices[5:], calling_ae_title="ORTHANC")
    first, second = fetching.wait_for_state(slices[0], "not_analysable", "queued")
    assert (second.supersedes, second.instance_count) == (first.id, 8)


@pytest.mark.usefixtures("counted")
def test_objects_of_the_series_that_are_no_images_are_not_waited_for(fetching: Fetching, archive: Archive) -> None:
    slices = ct_series(4)
    one = ct_series(1, StudyInstanceUID=slices[0].StudyInstanceUID, SeriesInstanceUID=slices[0].SeriesInstanceUID)[0]
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    archive.add(*slices, one)
    push(fetching.port, slices, calling_ae_title="ORTHANC")
    (job,) = fetching.wait_for_state(slices[0], "queued")
    assert job.completion_reason == "queried 4 instances received"


def test_objects_of_the_series_that_are_no_images_are_not_fetched(fetching: Fetching, archive: Archive) -> None:
    slices = ct_series(4)
    one = ct_series(1, StudyInstanceUID=slices[0].StudyInstanceUID, SeriesInstanceUID=slices[0].SeriesInstanceUID)[0]
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    archive.add(*slices, one)
    fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    assert fetching.wait_for_state(slices[0], "queued")[0].instance_count == 4


@pytest.mark.parametrize("is_down", [True, False])
def test_without_an_answer_the_quiet_time_decides(
    fetching: Fetching, settings: Settings, archive: Archive, is_down: bool
) -> None:
    port = free_port() if is_down else archive.port  # one that is up does not know the series
    settings.destinations.write_text(node_toml(port, more="count_instances = true"))
    slices = ct_series(4)
    push(fetching.port, slices, calling_ae_title="ORTHANC")
    (job,) = fetching.wait_for_state(slices[0], "queued")
    assert str(job.completion_reason).startswith("associations released")


def test_a_series_with_a_gap_waits_for_the_slices_in_it(fetching: Fetching) -> None:
    slices = ct_series(8)
    push(fetching.port, slices[:3] + slices[4:])
    assert stays_receiving(fetching, slices[0], for_s=1.0)
    push(fetching.port, [slices[3]])
    assert fetching.wait_for_state(slices[0], "queued")[0].instance_count == 8


def test_a_gap_that_stays_does_not_hold_the_series_for_ever(fetching: Fetching) -> None:
    slices = ct_series(8)
    push(fetching.port, slices[:3] + slices[4:])
    assert fetching.wait_for_state(slices[0], "queued")[0].instance_count == 7
