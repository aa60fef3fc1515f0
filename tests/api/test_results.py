"""The files of a result."""

from __future__ import annotations

import io
import zipfile

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from imaging.errors import Reason
from imaging.findings import Findings, Outcome

FILES = ("mask.nii.gz", "artery.nii.gz", "preview.png")


@pytest.fixture
def dicom_job(gateway, make_series) -> str:
    files = [("files", ("x", content)) for content in make_series(4)]
    return gateway.client.post("/segment", files=files).json()["id"]


@pytest.mark.parametrize("name", ["findings", "seg.dcm", "sr.dcm", "report.pdf", "key-images.zip", *FILES])
def test_result_of_an_unfinished_job_is_not_there_yet(gateway, dicom_job, name):
    response = gateway.client.get(f"/segment/{dicom_job}/{name}")
    assert (response.status_code, response.json()["code"]) == (409, "not_finished")


@pytest.mark.parametrize(
    ("name", "media_type", "shown"),
    [
        ("seg.dcm", "application/dicom", "attachment"),
        ("sr.dcm", "application/dicom", "attachment"),
        ("mask.nii.gz", "application/gzip", "attachment"),
        ("artery.nii.gz", "application/gzip", "attachment"),
        ("preview.png", "image/png", "inline"),
    ],
)
def test_files_come_as_they_lie_and_once_per_version(gateway, dicom_job, name, media_type, shown):
    gateway.finish(dicom_job, files=("seg.dcm", "sr.dcm", *FILES))
    response = gateway.client.get(f"/segment/{dicom_job}/{name}")
    assert response.content == f"content of {name}".encode()
    assert response.headers["content-type"] == media_type
    assert response.headers["content-disposition"] == f'{shown}; filename="{dicom_job}_{name}"'

    again = gateway.client.get(f"/segment/{dicom_job}/{name}", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_report_and_key_images_come_out_of_their_dicom_objects(gateway, dicom_job):
    gateway.finish(dicom_job, files=("key-image-1.dcm", "key-image-2.dcm"))
    document = Dataset()
    document.SOPClassUID = EncapsulatedPDFStorage
    document.EncapsulatedDocumentLength = 9
    document.EncapsulatedDocument = b"%PDF-1.7\n\0"
    result = gateway.store.result_directory(dicom_job)
    document.save_as(result / "report.dcm", implicit_vr=True, little_endian=True)

    links = gateway.client.get(f"/segment/{dicom_job}").json()["links"]
    page = gateway.client.get(links["report"])
    assert (page.content, page.headers["content-type"]) == (b"%PDF-1.7\n", "application/pdf")
    packed = gateway.client.get(links["key_images"])
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.namelist() == ["key-image-1.dcm", "key-image-2.dcm"]
        assert archive.read("key-image-2.dcm") == b"content of key-image-2.dcm"
    for answer in (page, packed):
        again = gateway.client.get(answer.request.url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_findings_are_what_the_worker_said(gateway, dicom_job):
    findings = gateway.finish(dicom_job, lesions=0)
    response = gateway.client.get(f"/segment/{dicom_job}/findings")
    assert response.json() == findings
    again = gateway.client.get(f"/segment/{dicom_job}/findings", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


def test_nifti_input_has_no_dicom_seg_and_is_told_why(gateway, nifti):
    job_id = gateway.submit(nifti)
    gateway.finish(job_id, files=FILES)
    response = gateway.client.get(f"/segment/{job_id}/seg.dcm")
    assert (response.status_code, response.json()["remedy"]) == (404, "take mask.nii.gz and findings")
    assert "DICOM series" in response.json()["detail"]
    assert gateway.client.get(f"/segment/{job_id}/mask.nii.gz").status_code == 200


def test_not_analysable_job_has_findings_with_reasons_a_report_and_no_other_file(gateway, dicom_job):
    gateway.jobs.claim(dicom_job, "w", lease_s=60)
    reasons = (Reason("contrast.too_low", "112 HU in the pulmonary artery"),)
    said = Findings(Outcome.NOT_ANALYSABLE, reasons=reasons).to_dict()
    gateway.jobs.finish_not_analysable(dicom_job, "w", said)

    assert gateway.client.get(f"/segment/{dicom_job}/findings").json() == said
    links = gateway.client.get(f"/segment/{dicom_job}").json()["links"]
    assert (links["sr"], links["seg"]) == (f"/segment/{dicom_job}/sr.dcm", None)
    assert gateway.client.get(links["sr"]).status_code == 404  # images of several patients have none
    (gateway.store.result_directory(dicom_job)).mkdir(parents=True)
    (gateway.store.result_directory(dicom_job) / "sr.dcm").write_bytes(b"report")
    assert gateway.client.get(links["sr"]).content == b"report"
    missing = gateway.client.get(f"/segment/{dicom_job}/seg.dcm")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "findings" in missing.json()["remedy"]


def test_series_set_aside_before_any_worker_saw_it_has_findings_too(gateway):
    job = gateway.jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT")
    reason = Reason("intake.too_few_slices", "3 slices")
    gateway.jobs.set_aside(job.id, [reason], instance_count=3, completion_reason="quiet for 20 s")
    findings = gateway.client.get(f"/segment/{job.id}/findings").json()
    assert (findings["outcome"], findings["reasons"]) == ("not_analysable", [reason.to_dict()])
    assert findings["scan_probability"] is None


def test_failed_job_has_what_was_reported_of_it(gateway, dicom_job):
    gateway.jobs.claim(dicom_job, "w", lease_s=60)
    gateway.jobs.fail(dicom_job, "w", code="worker_killed", message="killed", max_attempts=1)
    said = Findings(Outcome.FAILED, reasons=(Reason("worker_killed", "killed"),)).to_dict()
    (failed,) = gateway.jobs.unreported_failures()
    directory = gateway.store.arriving_directory()
    (directory / "sr.dcm").write_bytes(b"report")
    final = gateway.store.result_directory(dicom_job)
    gateway.jobs.report_failure(failed, said, [], lambda: gateway.store.replace_directory(directory, final))

    job = gateway.client.get(f"/segment/{dicom_job}").json()
    assert (job["state"], job["outcome"], job["error"]["code"]) == ("failed", "failed", "worker_killed")
    assert (job["can_retry"], job["links"]["seg"], job["scan_probability"]) == (True, None, None)
    assert gateway.client.get(job["links"]["findings"]).json() == said
    assert gateway.client.get(job["links"]["sr"]).content == b"report"
    retried = gateway.client.post(f"/segment/{dicom_job}/retry").json()
    assert (retried["state"], retried["outcome"], retried["links"]["sr"]) == ("queued", None, None)


def test_job_that_has_just_failed_has_no_findings_yet(gateway, dicom_job):
    gateway.jobs.claim(dicom_job, "w", lease_s=60)
    gateway.jobs.fail(dicom_job, "w", code="internal", message="unexpected", max_attempts=1)
    response = gateway.client.get(f"/segment/{dicom_job}/findings")
    assert response.status_code == 404
    assert "retry" in response.json()["remedy"]
