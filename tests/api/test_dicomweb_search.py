"""QIDO-RS over HTTP: what came in any way, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from services.store.jobs import JobStore
from tests.api.conftest import RunningGateway, bearer
from tests.api.test_dicomweb_store import encoded, store
from tests.services.ingest.peers import ct_series


def finished(gateway: RunningGateway, source: Dataset, job_id: str, *, instance_uid: str) -> None:
    """What a worker leaves of a job that is done: a result object beside its source's study."""
    result = Dataset()
    result.update(source)
    result.file_meta = source.file_meta
    result.Modality, result.SeriesInstanceUID, result.SOPInstanceUID = "SEG", f"{instance_uid}.1", instance_uid
    written = BytesIO()
    result.save_as(written, enforce_file_format=True)
    gateway.finish(job_id, files=("seg.dcm",))
    (gateway.store.result_directory(job_id) / "seg.dcm").write_bytes(written.getvalue())


@pytest.fixture
def client(gateway: RunningGateway) -> DICOMwebClient:
    return DICOMwebClient(f"{gateway.url}/dicom-web", headers=bearer(gateway.settings.data_dir))


def complete(jobs: JobStore, job_id: str) -> None:
    arrivals = jobs.get(job_id).arrivals
    jobs.complete_intake(job_id, inputs_digest="d", instance_count=1, completion_reason="test", arrivals=arrivals)


def test_what_was_stored_is_found_at_once(gateway: RunningGateway, client: DICOMwebClient) -> None:
    slices = ct_series(3)
    store(gateway, map(encoded, slices))
    (study,) = client.search_for_studies(search_filters={"PatientID": "PHI-4711"})
    assert study["0020000D"]["Value"] == [slices[0].StudyInstanceUID]
    assert study["00201208"]["Value"] == [3]
    (series,) = client.search_for_series(study["0020000D"]["Value"][0])
    assert series["00201209"]["Value"] == [3]
    instances = client.search_for_instances(slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID)
    assert [one["00080018"]["Value"][0] for one in instances] == [one.SOPInstanceUID for one in slices]
    assert instances[0]["00083002"]["Value"] == ["1.2.840.10008.1.2.1"]


def test_an_upload_is_found(gateway: RunningGateway, client: DICOMwebClient, make_series: Callable[..., Any]) -> None:
    parts = [("files", (f"{n}", file)) for n, file in enumerate(make_series(6))]
    assert gateway.client.post("/segment", files=parts).status_code == 202
    (series,) = client.search_for_series(search_filters={"Modality": "CT"})
    assert series["00201209"]["Value"] == [6]


def test_results_are_found_while_they_are_the_jobs_result(gateway: RunningGateway, client: DICOMwebClient) -> None:
    (one,) = ct_series(1)
    store(gateway, [encoded(one)])
    (job,) = gateway.jobs.receiving()
    complete(gateway.jobs, job.id)
    finished(gateway, one, job.id, instance_uid="2.25.7")
    (study,) = client.search_for_studies(search_filters={"ModalitiesInStudy": "SEG"})
    assert study["00080061"]["Value"] == ["CT", "SEG"]
    (found,) = client.search_for_instances(search_filters={"Modality": "SEG"})
    assert found["00080018"]["Value"] == ["2.25.7"]


def test_no_match_is_no_content(gateway: RunningGateway, client: DICOMwebClient) -> None:
    response = gateway.client.get("/dicom-web/studies", params={"PatientID": "nobody"})
    assert (response.status_code, response.content) == (204, b"")
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


def test_more_than_is_asked_for_is_announced(gateway: RunningGateway) -> None:
    for _ in range(3):
        store(gateway, map(encoded, ct_series(1)))
    response = gateway.client.get("/dicom-web/studies?limit=2&fuzzymatching=true")
    assert len(response.json()) == 2
    assert response.headers["warning"].startswith(
        '299 embolens "There are 1 additional results that can be requested", 299 embolens "The fuzzymatching'
    )


@pytest.mark.parametrize("path", ["studies?Nonsense=x", "series?StudyDate=2026", "instances?limit=x"])
def test_what_is_not_understood_is_a_bad_request(gateway: RunningGateway, path: str) -> None:
    response = gateway.client.get(f"/dicom-web/{path}")
    assert (response.status_code, response.json()["code"]) == (400, "dicomweb.bad_request")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/dicom+json", 204),
        ("application/json", 204),
        ("application/*;q=0.1", 204),
        ("*/*", 204),
        ('multipart/related; type="application/dicom+xml"', 406),
        ("text/html", 406),
        ("application/dicom+json;q=0", 406),
    ],
)
def test_the_answer_is_dicom_json_or_none(gateway: RunningGateway, accept: str, status: int) -> None:
    assert gateway.client.get("/dicom-web/studies", headers={"Accept": accept}).status_code == status
    assert gateway.client.get("/dicom-web/studies", params={"accept": accept}).status_code == status


def test_a_search_while_the_index_is_being_made_says_so(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.dicomweb_search_routes._MOST_JOBS", 1)
    for _ in range(3):
        store(gateway, map(encoded, ct_series(1)))
    response = gateway.client.get("/dicom-web/studies?PatientID=nobody")
    assert (response.status_code, response.json()) == (200, [])
    assert "2 jobs are not in it yet" in response.headers["warning"]
