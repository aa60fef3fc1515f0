"""What one tenant sends, another's clients never see: asked of every route there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import update

from services.accounts.principal import Scope
from services.dicom.result_files import write_results
from services.dicom.series_reader import read_series
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobFilter, utc_now
from services.store.retrievals import RetrievalStore
from services.store.rows import JobRow
from tests.api.conftest import RunningGateway, serving
from tests.api.test_authentication import GUARDED
from tests.api.test_dicomweb_search import complete
from tests.api.test_dicomweb_store import MEDIA_TYPE, encoded, multipart
from tests.services.dicom.made_series import IDENTITY, made_result, written_series
from tests.services.ingest.peers import ct_series

OURS, OTHERS = "cardiology", "emergency"
DESTINATIONS = """
[[nodes]]
ae_title = "OURPACS"
host = "127.0.0.1"
port = 104
retrieve = "c-move"

[[retrieve]]
name = "night"
node = "OURPACS"
study_date = "yesterday"
"""
TENANTS = '\n[tenants.named]\nOURPACS = "cardiology"\n'
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
UNKNOWN_UID = "1.2.3.4.5.6.7"

# What a route without an object in its path answers to another tenant is looked at in a test of its own, below.
WITHOUT_OBJECT = {
    ("GET", "/segment"),
    ("GET", "/retrieve"),
    ("GET", "/dicom-web/studies"),
    ("GET", "/dicom-web/series"),
    ("GET", "/dicom-web/instances"),
    ("POST", "/segment"),
    ("POST", "/retrieve"),
    ("POST", "/convert"),  # nothing is kept of it
    ("POST", "/dicom-web/studies"),
    ("GET", "/metrics"),  # figures of all, for a scope of its own: looked at with the scopes
}
# These take an object in, whoever holds one of the same name: looked at below, too.
TAKES_IN = {("POST", "/dicom-web/studies/{study}")}


def guarded_routes() -> list[tuple[str, str]]:
    return [route for route in GUARDED if route != ("GET", "/openapi.json")]


WITH_OBJECT = [route for route in guarded_routes() if route not in WITHOUT_OBJECT | TAKES_IN]


@dataclass
class Hospital:
    """A gateway, what the tenant OURS holds there, and the keys of three clients."""

    gateway: RunningGateway
    job: str
    upload: str
    retrieval: str
    instance: Dataset
    ours: dict[str, str]
    others: dict[str, str]
    admin: dict[str, str]

    def path(self, template: str, *, known: bool) -> str:
        """A new kind of parameter has to be given a value here."""
        one = self.instance
        values = {
            "job_id": self.job if known else UNKNOWN_ID,
            "delivery_id": "1",
            "retrieval_id": self.retrieval if known else UNKNOWN_ID,
            "study": str(one.StudyInstanceUID) if known else UNKNOWN_UID,
            "series": str(one.SeriesInstanceUID) if known else UNKNOWN_UID,
            "instance": str(one.SOPInstanceUID) if known else UNKNOWN_UID,
            "frames": "1",
            "frame": "1",
            "tag": "7FE00010",
        }
        return template.format(**values)

    def ask(self, who: dict[str, str], method: str, path: str, **request: Any) -> httpx.Response:
        return httpx.request(method, self.gateway.url + path, headers=who | request.pop("headers", {}), **request)

    def names(self) -> list[str]:
        """What says that something is held."""
        one = self.instance
        uids = [str(uid) for uid in (one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)]
        return [self.job, self.upload, self.retrieval, *uids]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, redis_url: str, nifti: bytes) -> Iterator[Hospital]:
    directory = tmp_path_factory.mktemp("hospital")
    (directory / "destinations.toml").write_text(DESTINATIONS)
    (directory / "intake.toml").write_text(TENANTS)
    settings = Settings(
        gateway_port=free_port(),
        data_dir=directory / "data",
        redis_url=redis_url,
        destinations=directory / "destinations.toml",
        intake_rules=directory / "intake.toml",
    )
    with serving(settings) as gateway:
        ours, others = gateway.key_for(OURS), gateway.key_for(OTHERS)
        paths = written_series(directory / "series")
        body = multipart(path.read_bytes() for path in paths)
        stored = httpx.post(
            f"{gateway.url}/dicom-web/studies", content=body, headers={"Content-Type": MEDIA_TYPE} | ours
        )
        assert stored.status_code == 200
        (job,) = gateway.jobs.receiving()
        complete(gateway.jobs, job.id)
        source = read_series(paths)
        made = made_result(source.volume)
        write_results(source, made, gateway.store.result_directory(job.id), IDENTITY)
        gateway.jobs.claim(job.id, "worker", lease_s=60)
        findings = made.findings.to_dict()
        gateway.jobs.finish(job.id, "worker", findings=findings, stage_seconds={}, deliveries=())
        upload = httpx.post(f"{gateway.url}/segment", files={"files": ("x", nifti)}, headers=ours).json()["id"]
        asked = httpx.post(
            f"{gateway.url}/retrieve", json={"node": "OURPACS", "study_instance_uid": UNKNOWN_UID + ".1"}, headers=ours
        )
        assert asked.status_code == 202
        admin = gateway.key_for("default", Scope.ADMIN)
        yield Hospital(gateway, job.id, upload, asked.json()["id"], dcmread(paths[0]), ours, others, admin)


def test_every_route_is_looked_at() -> None:
    assert set(guarded_routes()) >= WITHOUT_OBJECT | TAKES_IN
    assert all("{" in path for _, path in WITH_OBJECT)


@pytest.mark.parametrize(("method", "path"), WITH_OBJECT)
def test_anothers_object_is_answered_as_one_that_is_not_there(hospital: Hospital, method: str, path: str) -> None:
    known, unknown = hospital.path(path, known=True), hospital.path(path, known=False)
    held, absent = (hospital.ask(hospital.others, method, where) for where in (known, unknown))
    assert held.status_code == absent.status_code
    assert held.status_code in (404, 204)  # 204: a search that finds nothing
    told = held.text
    for ours, nobodys in zip(hospital.names(), [UNKNOWN_ID] * 3 + [UNKNOWN_UID] * 3, strict=True):
        told = told.replace(ours, nobodys)
    assert told == absent.text
    same = {name: value for name, value in held.headers.items() if name not in ("date", "content-length")}
    assert same == {name: value for name, value in absent.headers.items() if name in same}


@pytest.mark.parametrize(("method", "path"), [route for route in WITH_OBJECT if route[0] == "GET"])
def test_ones_own_object_is_there_and_an_admins_view_has_all(hospital: Hospital, method: str, path: str) -> None:
    where = hospital.path(path, known=True)
    for who in (hospital.ours, hospital.admin):
        answer = hospital.ask(who, method, where, headers={"Accept": "*/*"})
        missing = answer.status_code == 404 and "has no" in answer.json()["detail"]  # this result has no such file
        assert answer.status_code == 200 or missing, answer.text


def test_lists_name_nothing_of_others(hospital: Hospital) -> None:
    for method, path in WITHOUT_OBJECT:
        if method == "GET" and path != "/metrics":
            ours, others, admin = (
                hospital.ask(who, method, path) for who in (hospital.ours, hospital.others, hospital.admin)
            )
            assert any(name in ours.text for name in hospital.names()), path
            assert not any(name in others.text for name in hospital.names()), path
            assert any(name in admin.text for name in hospital.names()), path


@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_no_filter_tells_of_others(hospital: Hospital, level: str) -> None:
    """What is asked for is theirs alone where both tenants hold the study: SEG is a modality of ours only."""
    body = multipart([encoded(hospital.instance)])
    sent = hospital.ask(
        hospital.others, "POST", "/dicom-web/studies", content=body, headers={"Content-Type": MEDIA_TYPE}
    )
    assert sent.status_code == 200
    mine = hospital.ask(hospital.others, "GET", f"/dicom-web/{level}?ModalitiesInStudy=CT")
    assert mine.status_code == 200
    assert len(mine.json()) == 1
    assert hospital.ask(hospital.others, "GET", f"/dicom-web/{level}?ModalitiesInStudy=SEG").status_code == 204
    if level == "studies":
        assert mine.json()[0]["00201208"]["Value"] == [1]
        assert mine.json()[0]["00080061"]["Value"] == ["CT"]


@pytest.fixture
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    return start_gateway()


class TestTheSameSeries:
    """Two tenants send it; neither learns of the other's."""

    def send(self, gateway: RunningGateway, who: dict[str, str], slices: list[Dataset]) -> httpx.Response:
        headers = {"Content-Type": MEDIA_TYPE} | who
        body = multipart(map(encoded, slices))
        study = slices[0].StudyInstanceUID
        return httpx.post(f"{gateway.url}/dicom-web/studies/{study}", content=body, headers=headers)

    def test_by_stow_it_is_there_twice(self, gateway: RunningGateway) -> None:
        ours, others, slices = gateway.key_for(OURS), gateway.key_for(OTHERS), ct_series(3)
        assert self.send(gateway, ours, slices).status_code == 200
        changed = ct_series(3)
        for one, same in zip(changed, slices, strict=True):  # the same UIDs, other content
            one.StudyInstanceUID, one.SeriesInstanceUID = same.StudyInstanceUID, same.SeriesInstanceUID
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = same.SOPInstanceUID
            one.PatientID = "THEIRS"
        assert self.send(gateway, others, changed[:2]).status_code == 200
        jobs = {job.tenant: job for job in gateway.jobs.receiving()}
        assert (jobs[OURS].arrivals, jobs[OTHERS].arrivals) == (3, 2)
        assert jobs[OTHERS].supersedes is None
        for who, count, patient in ((ours, 3, "PHI-4711"), (others, 2, "THEIRS")):
            [study] = httpx.get(f"{gateway.url}/dicom-web/studies", headers=who).json()
            assert (study["00201208"]["Value"], study["00100020"]["Value"]) == ([count], [patient])
            series = f"{gateway.url}/dicom-web/studies/{slices[0].StudyInstanceUID}/metadata"
            assert {one["00100020"]["Value"][0] for one in httpx.get(series, headers=who).json()} == {patient}

    def test_purged_of_one_tenant_is_not_there_for_another(self, gateway: RunningGateway) -> None:
        ours, others, slices = gateway.key_for(OURS), gateway.key_for(OTHERS), ct_series(2)
        assert self.send(gateway, ours, slices).status_code == 200
        studies = f"{gateway.url}/dicom-web/studies"
        study = f"{studies}/{slices[0].StudyInstanceUID}"
        assert httpx.get(f"{study}/metadata", headers=ours).status_code == 200
        database = Database(gateway.settings.resolved_database_url)
        with database.write() as session:
            ended = {"state": "cancelled", "inputs_purged_at": utc_now(), "updated_at": utc_now()}
            session.execute(update(JobRow).values(**ended))
        database.close()

        absent = httpx.get(f"{studies}/{UNKNOWN_UID}/metadata", headers=others)
        for level in ("", f"/series/{slices[0].SeriesInstanceUID}"):
            gone, hidden = (httpx.get(f"{study}{level}/metadata", headers=who) for who in (ours, others))
            assert (gone.status_code, hidden.status_code) == (410, 404)
            assert hidden.json()["code"] == absent.json()["code"]
        admin = gateway.key_for("default", Scope.ADMIN)
        assert httpx.get(f"{study}/metadata", headers=admin).status_code == 410
        # Then the others hold it, and ours is as purged as before.
        assert self.send(gateway, others, slices).status_code == 200
        statuses = [httpx.get(f"{study}/metadata", headers=who).status_code for who in (ours, others)]
        assert statuses == [410, 200]

    def test_an_idempotency_key_belongs_to_its_tenant(
        self, gateway: RunningGateway, make_nifti: Callable[..., bytes]
    ) -> None:
        ours, others = gateway.key_for(OURS), gateway.key_for(OTHERS)
        sent = [
            httpx.post(
                f"{gateway.url}/segment",
                files={"files": ("x", make_nifti(seed=seed))},
                headers=who | {"Idempotency-Key": "one"},
            )
            for who, seed in ((ours, 0), (others, 1), (ours, 0), (gateway.key_for("default"), 2))
        ]
        assert [answer.status_code for answer in sent] == [202] * 4
        ids = [answer.json()["id"] for answer in sent]
        assert ids[2] == ids[0]
        assert len(set(ids)) == 3


class TestRetrieving:
    def test_a_node_is_known_to_its_tenant_alone(self, hospital: Hospital) -> None:
        body = {"node": "OURPACS", "study_instance_uid": generate_uid()}
        refused = hospital.ask(hospital.others, "POST", "/retrieve", json=body)
        nowhere = hospital.ask(hospital.others, "POST", "/retrieve", json=body | {"node": "NOWHERE"})
        assert refused.status_code == nowhere.status_code == 404
        assert refused.text.replace("OURPACS", "NOWHERE") == nowhere.text

    def test_so_is_a_rule(self, hospital: Hospital) -> None:
        refused = hospital.ask(hospital.others, "POST", "/retrieve", json={"rule": "night"})
        nothing = hospital.ask(hospital.others, "POST", "/retrieve", json={"rule": "noon"})
        assert refused.status_code == nothing.status_code == 404
        assert refused.text.replace("night", "noon") == nothing.text

    def test_what_an_admin_fetches_is_its_nodes_tenants(self, hospital: Hospital) -> None:
        body = {"node": "OURPACS", "study_instance_uid": generate_uid()}
        asked = hospital.ask(hospital.admin, "POST", "/retrieve", json=body)
        assert asked.status_code == 202
        assert hospital.ask(hospital.ours, "GET", f"/retrieve/{asked.json()['id']}").status_code == 200
        database = Database(hospital.gateway.settings.resolved_database_url)
        assert RetrievalStore(database).get(asked.json()["id"]).tenant == OURS
        database.close()


def test_an_upload_is_of_its_keys_tenant(gateway: RunningGateway, nifti: bytes, tmp_path: Path) -> None:
    httpx.post(f"{gateway.url}/segment", files={"files": ("x", nifti)}, headers=gateway.key_for(OURS))
    assert [job.tenant for job in gateway.jobs.page(JobFilter(tenant=OURS), limit=5)] == [OURS]
    assert not gateway.jobs.page(JobFilter(tenant="default"), limit=5)
