"""What requests leave in the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO

from services.accounts.principal import Scope
from services.audit.codes import (
    EXPORT,
    IMPORT,
    INSTANCES_TRANSFERRED,
    PROCEDURE_RECORD,
    QUERY,
    RESTRICTED_FUNCTION,
    SECURITY_ALERT,
    USER_AUTHENTICATION,
)
from services.audit.message import AuditMessage, EventOutcome
from services.audit.written import written_messages
from tests.api.conftest import RunningGateway
from tests.api.test_dicomweb_store import MEDIA_TYPE, multipart
from tests.services.ingest.peers import wait_until


def audited(gateway: RunningGateway, study: str = "") -> list[AuditMessage]:
    """Without the login, which comes before everything that one client does within an hour."""
    found = written_messages(gateway.settings.data_dir / "audit", study)
    return [one for one in found if one.event != USER_AUTHENTICATION]


@pytest.fixture
def series(make_series: Callable[..., list[bytes]]) -> list[bytes]:
    return make_series(patient_id="PHI-4711")


def uid_of(series: list[bytes]) -> str:
    return str(dcmread(DicomBytesIO(series[0])).StudyInstanceUID)


def test_an_upload_its_results_and_its_cancellation_are_of_one_study(
    gateway: RunningGateway, series: list[bytes]
) -> None:
    files = [("files", (f"{number}.dcm", content)) for number, content in enumerate(series)]
    job_id = gateway.client.post("/segment", files=files).raise_for_status().json()["id"]
    gateway.finish(job_id, files=("seg.dcm", "preview.png"))
    for _ in range(3):
        gateway.client.get(f"/segment/{job_id}/seg.dcm").raise_for_status()
    gateway.client.get(f"/segment/{job_id}/findings").raise_for_status()
    gateway.client.get(f"/segment/{job_id}").raise_for_status()
    messages = audited(gateway, uid_of(series))
    assert [one.event for one in messages] == [IMPORT, EXPORT, EXPORT]  # three times the same within a minute is once
    for one in messages:
        assert one.objects[0].details == {"Job": job_id}
        assert one.objects[1].object_id == "PHI-4711"
        assert one.participants[0].address == "127.0.0.1"


def test_the_end_of_a_job_by_a_client_is_written_down(gateway: RunningGateway, series: list[bytes]) -> None:
    files = [("files", (f"{number}.dcm", content)) for number, content in enumerate(series)]
    job_id = gateway.client.post("/segment", files=files).raise_for_status().json()["id"]
    gateway.client.delete(f"/segment/{job_id}").raise_for_status()
    gateway.client.post(f"/segment/{job_id}/retry").raise_for_status()
    changes = [one for one in audited(gateway) if one.event == PROCEDURE_RECORD]
    assert [one.outcome_description for one in changes] == ["job cancelled", "job asked for again"]


def test_stored_queried_and_retrieved_over_dicomweb(gateway: RunningGateway, series: list[bytes]) -> None:
    study = uid_of(series)
    body = multipart(series)
    gateway.client.post("/dicom-web/studies", content=body, headers={"Content-Type": MEDIA_TYPE}).raise_for_status()
    gateway.client.get("/dicom-web/studies", params={"PatientID": "PHI-4711"}).raise_for_status()
    gateway.client.get(f"/dicom-web/studies/{study}").raise_for_status()
    gateway.client.get(f"/dicom-web/studies/{study}/metadata").raise_for_status()
    stored, query, retrieved = audited(gateway)
    assert (stored.event, stored.action) == (INSTANCES_TRANSFERRED, "C")
    assert sum(stored.objects[0].instances.values()) == len(series)
    assert (query.event, query.objects[0].query) == (QUERY, "PatientID=PHI-4711")
    assert (retrieved.event, retrieved.action) == (INSTANCES_TRANSFERRED, "R")
    assert retrieved.objects[1].object_id == "PHI-4711"


@pytest.mark.fault(
    "HTTP gateway",
    "a STOW-RS request that ends in an error after its first instances were kept",
    "these are in the audit trail",
)
@pytest.mark.parametrize("is_broken_off", [False, True])
def test_what_a_request_brought_before_it_failed_is_written_down(
    start_gateway: Callable[..., RunningGateway], series: list[bytes], is_broken_off: bool
) -> None:
    gateway = start_gateway(upload_max_files=4 if is_broken_off else 3)
    headers = {"Content-Type": MEDIA_TYPE}
    if is_broken_off:
        begun = multipart([*series[:3], bytes(1 << 16)])[:-100]

        def broken_off() -> Iterator[bytes]:
            yield begun
            wait_until(lambda: len(list(gateway.settings.data_dir.rglob("received/*/*/*.dcm"))) == 3)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            gateway.client.post("/dicom-web/studies", content=broken_off(), headers=headers)
    else:
        body = multipart([*series[:3], series[0]])
        assert gateway.client.post("/dicom-web/studies", content=body, headers=headers).status_code == 413
    wait_until(lambda: audited(gateway))
    (stored,) = audited(gateway, uid_of(series))
    assert stored.event == INSTANCES_TRANSFERRED
    assert sum(stored.objects[0].instances.values()) == 3


def test_an_upload_that_is_no_dicom_is_known_by_its_job(gateway: RunningGateway, nifti: bytes) -> None:
    job_id = gateway.submit(nifti)
    (imported,) = audited(gateway)
    assert imported.objects[0].object_id == f"urn:uuid:{job_id}"


def test_what_was_refused_and_what_names_no_patient_is_not_written_down(gateway: RunningGateway) -> None:
    gateway.client.post("/segment", files={"files": ("x", b"nothing")})
    gateway.client.get("/segment")
    gateway.client.get("/health")
    gateway.client.get("/dicom-web/studies/1.2.3")
    assert audited(gateway) == []


def test_a_known_caller_is_named_and_what_he_may_not_do_is_an_alert(gateway: RunningGateway) -> None:
    _, key = gateway.keys.create("viewer", scopes=[Scope.SUBMIT])
    shown = {"Authorization": f"Bearer {key.text()}"}
    for _ in range(3):
        assert gateway.client.get("/dicom-web/studies", headers=shown).status_code == 403
    messages = written_messages(gateway.settings.data_dir / "audit")
    login, alert = [one for one in messages if "viewer" in {who.user_id for who in one.participants}]
    assert (login.event, alert.event) == (USER_AUTHENTICATION, SECURITY_ALERT)
    assert alert.event_types == (RESTRICTED_FUNCTION,)
    for _ in range(3):
        gateway.client.get("/dicom-web/studies").raise_for_status()
    assert [one.event for one in audited(gateway)].count(QUERY) == 3


def test_a_caller_who_is_not_let_in_is_written_down_once_a_minute(gateway: RunningGateway) -> None:
    for _ in range(5):
        assert httpx.get(f"{gateway.url}/segment").status_code == 401
    (failed,) = written_messages(gateway.settings.data_dir / "audit")
    assert (failed.event, failed.outcome) == (USER_AUTHENTICATION, EventOutcome.MINOR_FAILURE)
