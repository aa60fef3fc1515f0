"""Taking studies in, stopping and retrying jobs."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import zipfile
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from services.store.jobs import JobStore
from services.store.rows import JobState
from services.task_queue import TaskQueue


def _zip(files: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(files):
            archive.writestr(f"folder/{number}.dcm", content)
    return packed.getvalue()


def _parts(files: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"../../etc/{number}.dcm", content)) for number, content in enumerate(files)]


def _wait_until(true, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_uploaded_nifti_is_queued_with_a_location_that_shows_it(gateway, nifti):
    response = gateway.client.post("/segment", files={"files": ("scan.nii.gz", nifti)})

    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/segment/{job['id']}"
    assert int(response.headers["retry-after"]) > 0
    assert gateway.client.get(response.headers["location"]).json() == job
    assert (job["state"], job["input_kind"], job["priority"]) == ("queued", "nifti", "routine")
    assert job["id"] in gateway.queue.waiting()
    [path] = gateway.store.read_inputs(job["id"])
    assert path.read_bytes() == nifti
    assert not list((gateway.settings.data_dir / "arriving").iterdir())


def test_uploaded_nrrd_is_queued_as_one(gateway):
    fields = "type: short\ndimension: 3\nsizes: 8 8 5\nspace: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)"
    nrrd = f"NRRD0004\n{fields}\nendian: little\nencoding: raw\n\n".encode() + bytes(8 * 8 * 5 * 2)
    response = gateway.client.post("/segment", files={"files": ("scan.nrrd", nrrd)})
    assert (response.status_code, response.json()["input_kind"]) == (202, "nrrd")
    assert response.json()["links"]["seg"] is None


def test_one_series_is_the_same_as_files_and_as_zip(gateway, make_series):
    series = make_series(6)
    as_files = gateway.client.post("/segment", files=_parts(series)).json()
    as_zip = gateway.client.post("/segment", files={"files": ("a.zip", _zip(series))}).json()
    as_raw_zip = gateway.client.post(
        "/segment", content=_zip(series), headers={"Content-Type": "application/zip"}
    ).json()

    for job in (as_files, as_zip, as_raw_zip):
        assert (job["state"], job["input_kind"], job["instance_count"]) == ("queued", "dicom", 6)
        assert job["series_instance_uid"] == as_files["series_instance_uid"]
        inputs = {path.read_bytes() for path in gateway.store.read_inputs(job["id"])}
        assert inputs == set(series)


def test_two_zips_of_equal_counts_and_sizes_are_two_inputs(gateway, make_series):
    """Their UIDs of "not analysed" follow from this digest: one patient's report must never stand for another's."""
    digests = set()
    for _ in range(2):
        job = gateway.client.post("/segment", files={"files": ("a.zip", _zip(make_series(6)))}).json()
        digests.add(gateway.jobs.get(job["id"]).inputs_digest)
    assert len(digests) == 2


def test_names_given_by_the_client_are_nowhere_on_disk(gateway, make_series):
    files = [("files", ("DOE^JOHN.dcm", content)) for content in make_series(4)]
    gateway.client.post("/segment", files=files).raise_for_status()
    assert not [path for path in gateway.kept_files() if "DOE" in path.name]


def test_priority_comes_from_the_form_and_the_query_wins(gateway, make_nifti):
    def priority(seed: int, **request) -> str:
        response = gateway.client.post("/segment", files={"files": ("x", make_nifti(seed=seed))}, **request)
        return response.json()["priority"]

    assert priority(1, data={"priority": "stat"}) == "stat"
    assert priority(2, data={"priority": "stat"}, params={"priority": "routine"}) == "routine"
    assert priority(3, params={"priority": "stat"}) == "stat"


@pytest.mark.parametrize("media_type", ["application/gzip", "application/octet-stream"])
def test_raw_body_is_taken_as_one_file(gateway, nifti, media_type):
    response = gateway.client.post("/segment", content=nifti, headers={"Content-Type": media_type})
    assert (response.status_code, response.json()["input_kind"]) == (202, "nifti")


def test_same_key_and_content_give_the_same_job(gateway, nifti):
    headers = {"Idempotency-Key": "k1"}
    first = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers=headers)
    again = gateway.client.post("/segment", content=nifti, headers=headers | {"Content-Type": "application/gzip"})

    assert again.status_code == 202
    assert again.headers["location"] == first.headers["location"]
    assert len(gateway.client.get("/segment").json()["jobs"]) == 1
    assert len(list((gateway.settings.data_dir / "jobs").iterdir())) == 1


def test_a_repetition_whose_job_has_ended_is_answered_with_its_result(gateway, nifti):
    headers = {"Idempotency-Key": "k1"}
    first = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers=headers)
    gateway.finish(first.json()["id"], lesions=2)
    again = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers=headers)

    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.json()["state"] == "completed"


def test_same_key_with_other_content_is_refused(gateway, make_nifti):
    headers = {"Idempotency-Key": "k1"}
    gateway.client.post("/segment", files={"files": ("a", make_nifti(seed=1))}, headers=headers).raise_for_status()
    other = gateway.client.post("/segment", files={"files": ("a", make_nifti(seed=2))}, headers=headers)

    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(list((gateway.settings.data_dir / "jobs").iterdir())) == 1


def _begin_upload(gateway, *, announced: int, sent: int, key: str = "") -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", gateway.settings.gateway_port))
    shown = gateway.client.headers["Authorization"]
    head = f"POST /segment HTTP/1.1\r\nHost: x\r\nAuthorization: {shown}\r\nContent-Type: application/gzip\r\n"
    head += f"Content-Length: {announced}\r\n"
    peer.sendall((head + (f"Idempotency-Key: {key}\r\n" if key else "") + "\r\n").encode() + b"\x1f\x8b" * (sent // 2))
    return peer


def test_key_of_an_upload_still_arriving_is_in_use(gateway, nifti):
    arriving = gateway.settings.data_dir / "arriving"
    peer = _begin_upload(gateway, announced=10_000_000, sent=2_000_000, key="k")
    _wait_until(lambda: any(arriving.iterdir()))

    meanwhile = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers={"Idempotency-Key": "k"})
    assert (meanwhile.status_code, meanwhile.json()["code"]) == (409, "idempotency_key_in_use")

    peer.close()
    _wait_until(lambda: not any(arriving.iterdir()))
    after = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers={"Idempotency-Key": "k"})
    assert after.status_code == 202


def test_client_that_goes_away_in_the_middle_leaves_nothing(gateway):
    arriving = gateway.settings.data_dir / "arriving"
    peer = _begin_upload(gateway, announced=50_000_000, sent=5_000_000)
    _wait_until(lambda: any(path.is_file() and path.stat().st_size > 0 for path in arriving.rglob("*")))
    peer.close()

    _wait_until(lambda: not gateway.kept_files())
    assert gateway.client.get("/segment").json()["jobs"] == []
    assert gateway.client.get("/health/ready").status_code == 200


def test_wait_answers_200_as_soon_as_the_job_ends(gateway, nifti):
    def work() -> None:
        _wait_until(lambda: gateway.jobs.queued())
        time.sleep(0.3)
        gateway.finish(gateway.jobs.queued()[0].id, lesions=2)

    worker = threading.Thread(target=work)
    worker.start()
    began = time.monotonic()
    response = gateway.client.post("/segment?wait=20", files={"files": ("a", nifti)})
    worker.join()

    assert (response.status_code, response.json()["state"]) == (200, "completed")
    assert response.json()["lesion_count"] == 2
    assert time.monotonic() - began < 10


def test_wait_answers_202_when_the_time_is_up(gateway, nifti):
    response = gateway.client.post("/segment?wait=0.5", files={"files": ("a", nifti)})
    assert (response.status_code, response.json()["state"]) == (202, "queued")


def test_study_is_taken_in_while_redis_is_away(start_gateway, nifti):
    gateway = start_gateway(redis_url="redis://127.0.0.1:1/0")
    began = time.monotonic()
    response = gateway.client.post("/segment", files={"files": ("a", nifti)})

    assert response.status_code == 202
    assert [job.id for job in gateway.jobs.queued()] == [response.json()["id"]]  # what the sweep will enqueue
    assert time.monotonic() - began < 3


def test_queued_job_is_cancelled_at_once_and_can_be_tried_again(gateway, nifti):
    job_id = gateway.submit(nifti)
    cancelled = gateway.client.delete(f"/segment/{job_id}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["error"]["code"] == "cancelled"

    TaskQueue(gateway.settings.redis_url)._redis.flushdb()
    retried = gateway.client.post(f"/segment/{job_id}/retry")
    assert (retried.status_code, retried.json()["state"]) == (202, "queued")
    assert job_id in gateway.queue.waiting()


def test_running_job_is_asked_to_stop(gateway, nifti):
    job_id = gateway.submit(nifti)
    gateway.jobs.claim(job_id, "w", lease_s=60)
    response = gateway.client.delete(f"/segment/{job_id}")
    assert (response.status_code, response.json()["state"]) == (202, "running")

    gateway.jobs.finish_cancelled(job_id, "w")
    assert gateway.client.get(f"/segment/{job_id}").json()["state"] == JobState.CANCELLED


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/retry")])
def test_finished_job_is_neither_cancelled_nor_tried_again(gateway, nifti, method, path):
    job_id = gateway.submit(nifti)
    gateway.finish(job_id)
    response = gateway.client.request(method, f"/segment/{job_id}{path}")
    assert (response.status_code, response.json()["code"]) == (409, "state_conflict")


def test_public_url_stands_in_location(start_gateway, nifti):
    gateway = start_gateway(gateway_url="https://ct.example.org/embolens/")
    response = gateway.client.post("/segment", files={"files": ("a", nifti)})
    assert response.headers["location"] == f"https://ct.example.org/embolens/segment/{response.json()['id']}"


@pytest.mark.parametrize("way", ["dicom", "zip"])
def test_real_series_is_taken_in(gateway, shared_data: Path, way):
    series = sorted((shared_data / "chest_ct").rglob("*.dcm"))
    if not series:
        pytest.skip("no real chest CT (../shared/data/chest_ct) is here")
    directory = series[0].parent
    contents = [path.read_bytes() for path in sorted(directory.glob("*.dcm"))]
    files = _parts(contents) if way == "dicom" else {"files": ("s.zip", _zip(contents))}
    response = gateway.client.post("/segment", files=files, timeout=60)
    assert response.status_code == 202, json.dumps(response.json())
    assert response.json()["instance_count"] == len(contents)


@pytest.mark.parametrize("committed", [True, False])
def test_files_stay_exactly_where_the_job_was_recorded_though_the_database_broke_off(
    gateway, nifti, monkeypatch, committed
):
    submit = JobStore.submit

    def breaking(*arguments, **named):
        if committed:
            submit(*arguments, **named)
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(JobStore, "submit", breaking)
    response = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    if committed:
        [job] = gateway.jobs.queued()
        [path] = gateway.store.read_inputs(job.id)
        assert path.read_bytes() == nifti
    else:
        assert gateway.kept_files() == []

    monkeypatch.undo()
    again = gateway.client.post("/segment", files={"files": ("a", nifti)}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202
    assert [job.id for job in gateway.jobs.queued()] == [again.json()["id"]]
