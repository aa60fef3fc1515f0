"""STOW-RS: what is answered, what lies on disk then, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian, MRImageStorage, generate_uid

from services.delivery.storage_commitment import CommitmentReports
from services.ingest.intake_rules import IntakeRules
from services.ingest.store_scp import Listener
from services.store.database import Database
from services.store.jobs import JobFilter
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from tests.api.conftest import RunningGateway, bearer
from tests.services.ingest.peers import EVERYBODY, ct_series, push, wait_until

STORED, FAILED, OTHER = "00081199", "00081198", "0008119A"
REASON, INSTANCE = "00081197", "00081155"
MEDIA_TYPE = 'multipart/related; type="application/dicom"; boundary=limit'


def encoded(instance: Dataset) -> bytes:
    written = BytesIO()
    instance.save_as(written, enforce_file_format=True)
    return written.getvalue()


def multipart(files: Iterable[bytes], boundary: str = "limit") -> bytes:
    parts = [b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (boundary.encode(), file) for file in files]
    return b"".join(parts) + b"--%s--\r\n" % boundary.encode()


def store(gateway: RunningGateway, files: Iterable[bytes], study: str = "", **headers: str) -> httpx.Response:
    return gateway.client.post(
        f"/dicom-web/studies{'/' if study else ''}{study}",
        content=multipart(files),
        headers={"Content-Type": MEDIA_TYPE, **headers},
    )


def values(answer: Any, sequence: str, tag: str) -> list[Any]:
    return [item[tag]["Value"][0] for item in answer.get(sequence, {}).get("Value", [])]


def path_of(gateway: RunningGateway, one: Dataset) -> Path:
    return gateway.store.instance_path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)


def states(gateway: RunningGateway, one: Dataset) -> list[str]:
    """Of the jobs of a series, oldest first."""
    wanted = JobFilter(series_instance_uid=str(one.SeriesInstanceUID))
    return [job.state for job in reversed(gateway.jobs.page(wanted, limit=50))]


def test_a_stored_series_lies_on_disk_and_a_job_receives_it(gateway: RunningGateway) -> None:
    slices = ct_series(3)
    response = store(gateway, map(encoded, slices), slices[0].StudyInstanceUID)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/dicom+json"
    answer = response.json()
    assert values(answer, STORED, INSTANCE) == [one.SOPInstanceUID for one in slices]
    assert answer["00081190"]["Value"] == [f"{gateway.url}/dicom-web/studies/{slices[0].StudyInstanceUID}"]
    assert [path_of(gateway, one).read_bytes() for one in slices] == [encoded(one) for one in slices]
    (job,) = gateway.jobs.receiving()
    assert (job.source, job.arrivals, job.calling_ae_title) == ("dicomweb", 3, None)
    assert not list((gateway.settings.data_dir / "arriving").iterdir())


def test_dicomweb_client_stores_a_series(gateway: RunningGateway) -> None:
    slices = ct_series(4)
    answer = DICOMwebClient(f"{gateway.url}/dicom-web", headers=bearer(gateway.settings.data_dir)).store_instances(
        slices
    )
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
        one.SOPInstanceUID for one in slices
    ]
    assert dcmread(path_of(gateway, slices[0])).PixelData == slices[0].PixelData  # though it was sent without preamble


def test_what_is_no_ct_is_refused_and_the_rest_stored(gateway: RunningGateway) -> None:
    good, bad = ct_series(2)
    bad.SOPClassUID = bad.file_meta.MediaStorageSOPClassUID = MRImageStorage
    response = store(gateway, [encoded(good), encoded(bad), b"no DICOM"])
    assert response.status_code == 202
    answer = response.json()
    assert values(answer, STORED, INSTANCE) == [good.SOPInstanceUID]
    assert values(answer, FAILED, INSTANCE) == [bad.SOPInstanceUID]
    assert values(answer, FAILED, REASON) == [0x0122]
    assert values(answer, OTHER, REASON) == [0xC000]


def of_another_study(one: Dataset) -> bytes:
    one.StudyInstanceUID = generate_uid()
    return encoded(one)


def of_another_name(one: Dataset) -> bytes:
    content = encoded(one)
    return content.replace(one.SOPInstanceUID.encode(), b"1.2.3" + b"." + b"4" * (len(one.SOPInstanceUID) - 6), 1)


def of_another_syntax(one: Dataset) -> bytes:
    one.file_meta.TransferSyntaxUID = MPEG2MPML
    del one.PixelData
    return encoded(one)


def without_study(one: Dataset) -> bytes:
    del one.StudyInstanceUID
    return encoded(one)


@pytest.mark.parametrize(
    ("spoil", "sequence", "reason"),
    [
        (of_another_study, FAILED, 0xA900),
        (of_another_name, FAILED, 0xA900),
        (of_another_syntax, FAILED, 0xC122),
        (without_study, OTHER, 0xC000),
        (lambda one: encoded(one)[:200], OTHER, 0xC000),
        (lambda one: encoded(one)[400:], OTHER, 0xC000),
        (lambda one: b"", OTHER, 0xC000),
    ],
)
def test_a_refused_instance_leaves_nothing(
    gateway: RunningGateway, spoil: Callable[[Dataset], bytes], sequence: str, reason: int
) -> None:
    (one,) = ct_series(1)
    study = str(one.StudyInstanceUID)
    response = store(gateway, [spoil(one)], study)
    assert response.status_code == 409, response.text
    assert values(response.json(), sequence, REASON) == [reason]
    assert not (gateway.settings.data_dir / "received").exists()
    assert not gateway.jobs.receiving()


def test_the_same_instance_again_changes_nothing(gateway: RunningGateway) -> None:
    (one,) = ct_series(1)
    first = encoded(one)
    assert store(gateway, [first]).status_code == 200
    one.PatientName = "Another^Name"
    response = store(gateway, [encoded(one)])
    assert response.status_code == 200
    assert path_of(gateway, one).read_bytes() == first
    assert states(gateway, one) == ["receiving"]


def test_a_torn_file_is_replaced(gateway: RunningGateway) -> None:
    (one,) = ct_series(1)
    path = path_of(gateway, one)
    path.parent.mkdir(parents=True)
    for length in (200, 700):
        path.write_bytes(encoded(one)[:length])
        assert store(gateway, [encoded(one)]).status_code == 200
        assert path.read_bytes() == encoded(one)


def test_a_deflated_data_set_is_identified(gateway: RunningGateway) -> None:
    (one,) = ct_series(1)
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert store(gateway, [encoded(one)]).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/dicom", 415),
        ("multipart/form-data; boundary=limit", 415),
        ('multipart/related; type="application/dicom+json"; boundary=limit', 415),
        ('multipart/related; type="application/dicom"', 400),
        (f'multipart/related; type="application/dicom"; boundary={"x" * 500}', 400),
        ('multipart/related; type="application/dicom"; boundary=another', 400),
        ("", 415),
    ],
)
def test_a_request_of_another_kind_is_refused(gateway: RunningGateway, content_type: str, status: int) -> None:
    body = multipart([encoded(ct_series(1)[0])])
    response = gateway.client.post("/dicom-web/studies", content=body, headers={"Content-Type": content_type})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_without_parts_or_an_end_is_refused(gateway: RunningGateway) -> None:
    for body in (b"--limit--\r\n", b"", multipart([encoded(ct_series(1)[0])])[:-20]):
        response = gateway.client.post("/dicom-web/studies", content=body, headers={"Content-Type": MEDIA_TYPE})
        assert response.status_code == 400


def test_an_answer_that_cannot_be_given_is_said_before_the_body_is_read(gateway: RunningGateway) -> None:
    (one,) = ct_series(1)
    assert store(gateway, [encoded(one)], Accept="application/dicom+xml").status_code == 406
    assert not gateway.jobs.receiving()


def test_limits_of_bytes_and_of_instances(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(upload_max_bytes=3000, upload_max_files=2)
    files = [encoded(one) for one in ct_series(3, size=32)]
    response = store(gateway, files)
    assert (response.status_code, response.json()["code"]) == (413, "input.too_large")
    response = store(gateway, [file[:300] for file in files])
    assert (response.status_code, response.json()["code"]) == (413, "input.too_many_files")
    assert not list((gateway.settings.data_dir / "arriving").iterdir())


@pytest.fixture
def listening(gateway: RunningGateway) -> Iterable[Listener]:
    """A listener beside the gateway, on the same data."""
    settings = gateway.settings.model_copy(update={"dicom_port": 0, "series_quiet_s": 0.6})
    database = Database(settings.resolved_database_url)
    retrievals, reports = RetrievalStore(database), CommitmentReports(Outbox(database), settings)
    rules = IntakeRules(min_slices=2, associations=EVERYBODY)
    listener = Listener(settings, gateway.store, gateway.jobs, gateway.queue, rules, retrievals, reports)
    listener.start()
    yield listener
    listener.stop()
    database.close()


def test_the_listener_completes_what_the_gateway_stored(gateway: RunningGateway, listening: Listener) -> None:
    slices = ct_series(4)
    for one in slices:
        assert store(gateway, [encoded(one)]).status_code == 200
    wait_until(lambda: states(gateway, slices[0]) == ["queued"])
    (job,) = gateway.jobs.queued()
    assert (job.instance_count, job.source) == (4, "dicomweb")
    assert job.completion_reason == "associations released, quiet for 0.6 s"
    assert len(gateway.store.read_inputs(job.id)) == 4
    wait_until(lambda: job.id in gateway.queue.waiting())


def test_an_announced_number_completes_at_once(gateway: RunningGateway, listening: Listener) -> None:
    slices = ct_series(3, NumberOfSeriesRelatedInstances=3)
    store(gateway, map(encoded, slices))
    wait_until(lambda: states(gateway, slices[0]) == ["queued"])
    assert gateway.jobs.queued()[0].completion_reason == "announced 3 instances received"


def test_late_slices_supersede_whichever_way_they_come(gateway: RunningGateway, listening: Listener) -> None:
    slices = ct_series(6)
    store(gateway, map(encoded, slices[:2]))
    wait_until(lambda: states(gateway, slices[0]) == ["queued"])
    push(listening.port, slices[2:4])
    wait_until(lambda: states(gateway, slices[0]) == ["cancelled", "queued"])
    store(gateway, map(encoded, slices))
    wait_until(lambda: states(gateway, slices[0]) == ["cancelled", "cancelled", "queued"])
    assert gateway.jobs.queued()[0].instance_count == 6
    store(gateway, map(encoded, slices))
    assert states(gateway, slices[0]) == ["cancelled", "cancelled", "queued"], "nothing new, nothing changes"


def test_an_instance_stored_while_the_completion_is_decided_is_in_a_job(
    gateway: RunningGateway, listening: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = ct_series(3)
    write_inputs, late = gateway.store.write_inputs, [slices[2]]

    def write_and_be_overtaken(job_id: str, files: list[Path]) -> str:
        digest = write_inputs(job_id, files)
        if late:
            assert store(gateway, [encoded(late.pop())]).status_code == 200
        return digest

    monkeypatch.setattr(gateway.store, "write_inputs", write_and_be_overtaken)
    store(gateway, map(encoded, slices[:2]))
    wait_until(lambda: states(gateway, slices[0]) == ["queued"])
    (job,) = gateway.jobs.queued()
    assert len(gateway.store.read_inputs(job.id)) == 3
    assert job.instance_count == 3
