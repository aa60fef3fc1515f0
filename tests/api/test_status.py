"""Listing and looking."""

from __future__ import annotations

import base64
import uuid

import pytest
from sqlalchemy.exc import OperationalError, TimeoutError

from api.schemas import JobPageSchema, JobSchema
from imaging.errors import Reason
from imaging.findings import Findings, Outcome
from services.store.jobs import Delivery, JobStore, Notification
from services.store.outbox import Answer
from services.store.rows import Stage


def test_pages_hold_every_job_once_newest_first(gateway, make_nifti):
    submitted = [gateway.submit(make_nifti(seed=seed)) for seed in range(7)]
    listed, cursor = [], None
    while True:
        page = gateway.client.get("/segment", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        listed += [job["id"] for job in page["jobs"]]
        if (cursor := page["next"]) is None:
            break
    assert listed == submitted[::-1]


def test_filters_narrow_the_list(gateway, make_nifti, make_series):
    routine = gateway.submit(make_nifti(seed=1))
    stat = gateway.submit(make_nifti(seed=2), params={"priority": "stat"})
    files = [("files", ("x", content)) for content in make_series(4)]
    dicom = gateway.client.post("/segment", files=files).json()
    gateway.finish(routine)

    def listed(**query: str) -> set[str]:
        return {job["id"] for job in gateway.client.get("/segment", params=query).json()["jobs"]}

    assert listed() == {routine, stat, dicom["id"]}
    assert listed(state="completed") == {routine}
    assert listed(priority="stat") == {stat}
    assert listed(source="dicom") == set()
    assert listed(series_instance_uid=dicom["series_instance_uid"]) == {dicom["id"]}
    assert listed(study_instance_uid=dicom["study_instance_uid"], state="queued") == {dicom["id"]}


def test_stat_stands_before_routine_in_the_queue(gateway, make_nifti):
    first = gateway.submit(make_nifti(seed=1))
    second = gateway.submit(make_nifti(seed=2))
    urgent = gateway.submit(make_nifti(seed=3), params={"priority": "stat"})

    expected = {urgent: 0, first: 1, second: 2}
    alone = {job_id: gateway.client.get(f"/segment/{job_id}").json()["queue_position"] for job_id in expected}
    listed = {job["id"]: job["queue_position"] for job in gateway.client.get("/segment").json()["jobs"]}
    assert alone == listed == expected


def test_job_shows_stage_findings_and_deliveries_as_they_come(gateway, nifti):
    job_id = gateway.submit(nifti)
    gateway.jobs.claim(job_id, "worker-of-the-test", lease_s=60)
    gateway.jobs.renew_lease(job_id, "worker-of-the-test", lease_s=60, reached=(Stage.UNET, 0.4))
    running = gateway.client.get(f"/segment/{job_id}").json()
    assert (running["state"], running["stage"], running["progress"]) == ("running", "unet", 0.4)
    assert running["attempts"] == 1
    assert running["queue_position"] is None
    assert running["links"]["mask"] is None

    findings = gateway.finish(job_id, lesions=2, deliveries=(Delivery("PACS", "a.dcm", "1.2", "1.2.3"),))
    delivering = gateway.client.get(f"/segment/{job_id}").json()
    assert (delivering["state"], delivering["outcome"], delivering["lesion_count"]) == (
        "delivering",
        "embolus_found",
        2,
    )
    assert delivering["findings"] == findings
    assert delivering["stage_seconds"] == {"unet": 1.5}
    assert delivering["links"]["seg"] is None  # NIfTI
    assert delivering["links"]["mask"] == f"/segment/{job_id}/mask.nii.gz"

    [row] = gateway.outbox.claim_due(limit=5, lease_s=30)
    gateway.outbox.postpone(row, "association rejected", wait_s=60)
    [delivery] = gateway.client.get(f"/segment/{job_id}").json()["deliveries"]
    assert (delivery["destination"], delivery["state"], delivery["attempts"]) == ("PACS", "pending", 1)
    assert delivery["last_error"] == "association rejected"

    gateway.outbox.delivered(row)
    completed = gateway.client.get(f"/segment/{job_id}").json()
    assert completed["state"] == "completed"
    assert completed["deliveries"][0]["delivered_at"]


def test_a_stored_object_a_committed_one_and_a_notification_are_told_apart(gateway, nifti):
    job_id = gateway.submit(nifti)
    gateway.jobs.claim(job_id, "worker-of-the-test", lease_s=60)
    sent = [Delivery("node:PACS", f"{uid}.dcm", "1.2", uid) for uid in ("1.2.1", "1.2.2")]
    gateway.finish(job_id, lesions=1, deliveries=(*sent, Notification("webhook:ris", "6f1f7a52", "{}")))
    stored, committed, _ = gateway.outbox.of_job(job_id)
    gateway.outbox.stored(stored)
    gateway.outbox.committed([committed])
    shown = gateway.client.get(f"/segment/{job_id}").json()
    assert shown["state"] == "delivering"
    told = [
        (one["destination"], one["state"], one["sop_instance_uid"], one["message_id"], one["committed_at"] is not None)
        for one in shown["deliveries"]
    ]
    assert told == [
        ("node:PACS", "stored", "1.2.1", None, False),
        ("node:PACS", "delivered", "1.2.2", None, True),
        ("webhook:ris", "pending", None, "6f1f7a52", False),
    ]
    assert [one["next_attempt_at"] is None for one in shown["deliveries"]] == [False, True, False]


def test_series_that_came_by_c_store_appears_like_the_others(gateway):
    job = gateway.jobs.open_receiving(
        study_instance_uid="1.2.3", series_instance_uid="1.2.3.4", calling_ae_title="CT_1"
    )
    shown = gateway.client.get(f"/segment/{job.id}").json()
    assert (shown["state"], shown["source"], shown["calling_ae_title"]) == ("receiving", "dicom", "CT_1")

    gateway.jobs.set_aside(
        job.id, [Reason("intake.too_few_slices", "3 slices")], instance_count=3, completion_reason="quiet for 20 s"
    )
    [listed] = gateway.client.get("/segment", params={"source": "dicom"}).json()["jobs"]
    assert (listed["state"], listed["outcome"]) == ("not_analysable", "not_analysable")
    assert listed["reasons"] == [{"code": "intake.too_few_slices", "text": "3 slices"}]


def test_failed_job_says_why(gateway, nifti):
    job_id = gateway.submit(nifti)
    gateway.jobs.claim(job_id, "w", lease_s=60)
    gateway.jobs.fail(job_id, "w", code="internal", message="unexpected RuntimeError", max_attempts=1)
    failed = gateway.client.get(f"/segment/{job_id}").json()
    assert (failed["state"], failed["error"]) == ("failed", {"code": "internal", "message": "unexpected RuntimeError"})


def test_what_is_shown_is_what_its_schema_would_write(gateway, make_nifti):
    """Jobs are written without their schemas. This one has been through every state, and what can be empty was full."""

    def check() -> None:
        bodies = [(gateway.client.get("/segment").content, JobPageSchema)]
        bodies += [(gateway.client.get(f"/segment/{job.id}").content, JobSchema) for job in gateway.jobs.queued()]
        bodies.append((gateway.client.get(f"/segment/{job_id}").content, JobSchema))
        for body, schema in bodies:
            assert schema.model_validate_json(body).model_dump_json(by_alias=True).encode() == body

    job_id, *_ = (gateway.submit(make_nifti(seed=seed)) for seed in range(3))
    check()
    gateway.jobs.claim(job_id, "w", lease_s=60)
    gateway.jobs.renew_lease(job_id, "w", lease_s=60, reached=(Stage.UNET, 1 / 3))
    check()
    gateway.jobs.fail(job_id, "w", code="internal", message='said "\u2028é"', max_attempts=1)
    check()
    gateway.jobs.retry(job_id)
    gateway.client.delete(f"/segment/{job_id}")
    check()
    gateway.jobs.retry(job_id)
    gateway.jobs.claim(job_id, "w", lease_s=60)
    refused = Findings(Outcome.NOT_ANALYSABLE, (Reason("geometry.missing_slices", "3 of 240"),)).to_dict()
    gateway.jobs.finish_not_analysable(job_id, "w", refused)
    check()
    gateway.jobs.retry(job_id)
    sent = [Delivery("node:PACS", f"{uid}.dcm", "1.2", uid) for uid in ("1.2.1", "1.2.2", "1.2.3")]
    gateway.finish(job_id, lesions=2, deliveries=(*sent, Notification("webhook:ris", "6f1f7a52", "{}")))
    stored, committed, parked, _ = gateway.outbox.of_job(job_id)
    gateway.outbox.stored(stored, Answer(0xB000, "coerced"))
    gateway.outbox.committed([committed])
    gateway.outbox.park(parked, "refused", Answer(0xA700, "no room"))
    check()
    assert gateway.client.get("/segment").json()["jobs"][-1]["deliveries_parked"] == 1

    series = {"study_instance_uid": "1.2.3", "series_instance_uid": "1.2.3.4", "calling_ae_title": "CT_1"}
    job_id = gateway.jobs.open_receiving(**series).id
    check()
    gateway.jobs.set_aside(
        job_id, [Reason("x", "y")], instance_count=3, completion_reason="quiet", inputs_digest="0" * 64
    )
    check()


@pytest.mark.parametrize(
    "said",
    [
        f"0001-01-01T00:00:00+14:00 {uuid.UUID(int=1)}",
        f"9999-12-31T23:59:59-14:00 {uuid.UUID(int=1)}",
        "2026-01-01T00:00:00+00:00 \0",
        "yesterday",
    ],
)
def test_cursor_that_no_page_gave_is_refused(gateway, said):
    cursor = base64.urlsafe_b64encode(said.encode()).decode()
    response = gateway.client.get("/segment", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (422, "request.invalid_cursor")


@pytest.mark.parametrize("path", ["", "/events", "/findings", "/mask.nii.gz", "/retry"])
@pytest.mark.parametrize("job_id", ["%00", "1", "a" * 5000, "%F0%9F%AB%81"])
def test_what_is_no_job_id_is_not_found_without_asking_the_database(gateway, monkeypatch, job_id, path):
    monkeypatch.setattr(JobStore, "get", None)
    monkeypatch.setattr(JobStore, "retry", None)
    response = gateway.client.request("POST" if path == "/retry" else "GET", f"/segment/{job_id}{path}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_job_id_is_found_however_it_is_written(gateway, nifti):
    job_id = gateway.submit(nifti)
    assert gateway.client.get(f"/segment/{job_id.upper()}").json()["id"] == job_id


@pytest.mark.parametrize("error", [OperationalError("SELECT", {"uid": "1.2.3"}, Exception("gone")), TimeoutError()])
def test_database_that_does_not_answer_is_503(gateway, monkeypatch, error):
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(JobStore, "shown_page", broken)
    response = gateway.client.get("/segment")
    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
    assert "1.2.3" not in response.text


def test_job_says_whether_it_can_be_tried_again(gateway, make_nifti):
    def can_retry(job_id: str) -> bool:
        return gateway.client.get(f"/segment/{job_id}").json()["can_retry"]

    uploaded = gateway.submit(make_nifti(seed=1))
    assert not can_retry(uploaded)
    gateway.client.delete(f"/segment/{uploaded}")
    assert can_retry(uploaded)

    refused = gateway.submit(make_nifti(seed=2))
    gateway.jobs.claim(refused, "w", lease_s=60)
    gateway.jobs.finish_not_analysable(refused, "w", Findings(Outcome.NOT_ANALYSABLE, (Reason("x", "y"),)).to_dict())
    assert can_retry(refused)

    arriving = gateway.jobs.open_receiving(
        study_instance_uid="1.2.3", series_instance_uid="1.2.3.4", calling_ae_title="CT_1"
    )
    gateway.client.delete(f"/segment/{arriving.id}")
    assert not can_retry(arriving.id)

    series = {"study_instance_uid": "1.2.4", "series_instance_uid": "1.2.4.5", "calling_ae_title": "CT_1"}
    partial = gateway.jobs.open_receiving(**series)
    quiet = {"inputs_digest": "0" * 64, "instance_count": 3, "completion_reason": "quiet"}
    gateway.jobs.set_aside(partial.id, [Reason("x", "y")], **quiet)
    assert can_retry(partial.id)
    gateway.jobs.open_receiving(**series)  # late slices
    assert not can_retry(partial.id)

    for job_id, status in ((uploaded, 202), (refused, 202), (arriving.id, 409), (partial.id, 409)):
        assert gateway.client.post(f"/segment/{job_id}/retry").status_code == status
