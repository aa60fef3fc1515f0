"""Whatever is sent: a problem document with a 4xx status, and nothing of it left behind."""

from __future__ import annotations

import io
import zipfile

import pydicom
import pytest

GIB = 1024**3


def _zip(members: dict[str, bytes], *, claimed_size: int | None = None) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if claimed_size is not None:
            for member in archive.filelist:
                member.file_size = claimed_size  # written to the central directory on closing
    return packed.getvalue()


def _assert_refused(gateway, response, status: int, code: str) -> dict:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:embolens:problem:{code}"
    assert problem["status"] == status
    assert problem["instance"] == "/segment"
    assert problem["title"]
    assert problem["detail"]
    assert gateway.kept_files() == []
    assert gateway.client.get("/segment").json()["jobs"] == []
    return problem


def _post(gateway, *contents: bytes, **request):
    return gateway.client.post("/segment", files=[("files", ("x.dcm", content)) for content in contents], **request)


def test_empty_zip(gateway):
    _assert_refused(gateway, _post(gateway, _zip({})), 422, "input.empty_archive")


def test_pdf_named_dcm(gateway):
    _assert_refused(gateway, _post(gateway, b"%PDF-1.7\n" + b"x" * 5000), 422, "input.not_dicom")


def test_truncated_gzip(gateway, nifti):
    _assert_refused(gateway, _post(gateway, nifti[: len(nifti) // 2]), 422, "input.damaged_gzip")


def test_nifti_of_one_slice(gateway, make_nifti):
    problem = _assert_refused(gateway, _post(gateway, make_nifti(1)), 422, "geometry.too_few_slices")
    assert [reason["code"] for reason in problem["reasons"]] == ["geometry.too_few_slices"]


def test_mr_series(gateway, make_series):
    _assert_refused(gateway, _post(gateway, *make_series(5, modality="MR")), 422, "input.modality_not_ct")


def test_two_patients(gateway, make_series):
    files = make_series(4, patient_id="P1") + make_series(4, patient_id="P2")
    problem = _assert_refused(gateway, _post(gateway, *files), 422, "input.multiple_patients")
    assert "P1" not in problem["detail"]


def test_two_patients_in_a_zip(gateway, make_series):
    files = make_series(4, patient_id="P1") + make_series(4, patient_id="P2")
    packed = _zip({str(number): content for number, content in enumerate(files)})
    _assert_refused(gateway, _post(gateway, packed), 422, "input.multiple_patients")


def test_zip_that_claims_100_gigabytes(start_gateway):
    gateway = start_gateway(unpacked_max_bytes=GIB)
    packed = _zip({"a.dcm": b"\0" * 100_000}, claimed_size=100 * GIB)
    _assert_refused(gateway, _post(gateway, packed), 413, "input.too_large")


def test_zip_that_unpacks_beyond_the_limit(start_gateway):
    gateway = start_gateway(unpacked_max_bytes=1_000_000)
    _assert_refused(gateway, _post(gateway, _zip({"a.dcm": b"\0" * 20_000_000})), 413, "input.too_large")


def test_zip_that_says_it_is_small_and_is_not(start_gateway):
    gateway = start_gateway(unpacked_max_bytes=1_000_000)
    response = _post(gateway, _zip({"a.dcm": b"\0" * 20_000_000}, claimed_size=10))
    assert response.status_code in (413, 422)
    _assert_refused(gateway, response, response.status_code, response.json()["code"])


def test_garbage_multipart(gateway):
    response = gateway.client.post(
        "/segment", content=b"\x00\xff garbage" * 1000, headers={"Content-Type": "multipart/form-data; boundary=xyz"}
    )
    _assert_refused(gateway, response, 400, "input.malformed_multipart")


def test_multipart_that_ends_too_early(gateway):
    body = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhalf a file'
    response = gateway.client.post(
        "/segment", content=body, headers={"Content-Type": "multipart/form-data; boundary=xyz"}
    )
    _assert_refused(gateway, response, 400, "input.malformed_multipart")


def test_multipart_without_boundary(gateway):
    response = gateway.client.post("/segment", content=b"x", headers={"Content-Type": "multipart/form-data"})
    _assert_refused(gateway, response, 400, "input.malformed_multipart")


def test_no_files(gateway):
    body = b'--xyz\r\nContent-Disposition: form-data; name="priority"\r\n\r\nstat\r\n--xyz--\r\n'
    response = gateway.client.post(
        "/segment", content=body, headers={"Content-Type": "multipart/form-data; boundary=xyz"}
    )
    _assert_refused(gateway, response, 422, "input.no_files")


def test_empty_body(gateway):
    response = gateway.client.post("/segment", content=b"", headers={"Content-Type": "application/dicom"})
    _assert_refused(gateway, response, 422, "input.no_files")


def test_empty_file(gateway):
    response = _post(gateway, b"")
    _assert_refused(gateway, response, 422, response.json()["code"])


def test_files_in_another_field(gateway, nifti):
    response = gateway.client.post("/segment", files={"image": ("x", nifti)})
    _assert_refused(gateway, response, 422, "input.unknown_field")


def test_json(gateway):
    response = gateway.client.post("/segment", json={"path": "/etc/passwd"})
    _assert_refused(gateway, response, 415, "input.unsupported_media_type")


def test_too_many_files(start_gateway, make_series):
    gateway = start_gateway(upload_max_files=3)
    _assert_refused(gateway, _post(gateway, *make_series(5)), 413, "input.too_many_files")


def test_too_many_files_in_a_zip(start_gateway, make_series):
    gateway = start_gateway(upload_max_files=3)
    packed = _zip({str(number): content for number, content in enumerate(make_series(5))})
    _assert_refused(gateway, _post(gateway, packed), 413, "input.too_large")


@pytest.mark.parametrize("announced", [True, False])
def test_too_many_bytes(start_gateway, announced):
    gateway = start_gateway(upload_max_bytes=100_000)

    def pieces():
        for _ in range(20):
            yield b"\x1f\x8b" * 5000

    content = b"".join(pieces()) if announced else pieces()
    response = gateway.client.post("/segment", content=content, headers={"Content-Type": "application/gzip"})
    _assert_refused(gateway, response, 413, "input.too_large")


def test_wrong_priority_in_the_form(gateway, nifti):
    _assert_refused(gateway, _post(gateway, nifti, data={"priority": "asap"}), 422, "input.invalid_priority")


@pytest.mark.parametrize("query", ["priority=asap", "wait=601", "wait=-1", "wait=nan", "wait=soon"])
def test_wrong_parameters(gateway, nifti, query):
    _assert_refused(gateway, gateway.client.post(f"/segment?{query}", content=nifti), 422, "request.invalid")


def test_overlong_idempotency_key(gateway, nifti):
    _assert_refused(gateway, _post(gateway, nifti, headers={"Idempotency-Key": "k" * 256}), 422, "request.invalid")


@pytest.mark.parametrize(
    "uid", ["../../../../etc", "1.2/../../3", "1.2.3\x00", "1" * 65], ids=["dots", "slash", "zero", "long"]
)
def test_uid_that_is_none_never_becomes_a_path(gateway, make_series, uid):
    """pydicom reads such files; whether taken in or refused, only the directory of the job is written."""
    real = make_series(4, study_uid="1.2.3.4.5.6.7.8.9.10.11.12.13.14.15.16.17.18.19.20.21.22.23.24")
    placeholder = b"1.2.3.4.5.6.7.8.9.10.11.12.13.14.15.16.17.18.19.20.21.22.23.24"
    forged = [content.replace(placeholder, uid.encode()[:62].ljust(len(placeholder), b"\0")) for content in real]
    response = _post(gateway, *forged)
    assert response.status_code in (202, 422), response.text
    below = gateway.settings.data_dir.resolve()
    for path in gateway.kept_files():
        assert path.resolve().is_relative_to(below / "jobs")
    if response.status_code == 422:
        _assert_refused(gateway, response, 422, response.json()["code"])


def test_unknown_paths_and_methods_are_problems_too(gateway):
    for method, path, status in [
        ("GET", "/nowhere", 404),
        ("PUT", "/segment", 405),
        ("GET", "/segment/unknown", 404),
        ("GET", "/segment/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/segment/unknown/events", 404),
        ("GET", "/segment/unknown/findings", 404),
        ("GET", "/segment/unknown/seg.dcm", 404),
        ("DELETE", "/segment/unknown", 404),
        ("POST", "/segment/unknown/retry", 404),
        ("GET", "/pages/..%2fapp.py", 404),
        ("GET", "/segment?state=lost", 422),
        ("GET", "/segment?study_instance_uid=../etc", 422),
        ("GET", "/segment?cursor=!!!", 422),
        ("GET", "/segment?limit=0", 422),
    ]:
        response = gateway.client.request(method, path)
        assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), path


def test_archives_share_the_limit_of_bytes(start_gateway):
    gateway = start_gateway(unpacked_max_bytes=1_000_000)
    archives = [_zip({"a.dcm": bytes([number]) * 400_000}) for number in range(3)]
    _assert_refused(gateway, _post(gateway, *archives), 413, "input.too_large")


def test_archives_share_the_limit_of_files(start_gateway, make_series):
    gateway = start_gateway(upload_max_files=5)
    series = make_series(6)
    archives = [
        _zip({str(number): content for number, content in enumerate(half)}) for half in (series[:3], series[3:])
    ]
    _assert_refused(gateway, _post(gateway, *archives), 413, "input.too_large")


def _changed(content: bytes, **attributes: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    with pydicom.config.disable_value_validation():
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        written = io.BytesIO()
        dataset.save_as(written)
    return written.getvalue()


@pytest.mark.parametrize("frames", [10**19, 2**31, 100_001])
def test_impossible_number_of_frames(gateway, make_series, frames):
    [content] = make_series(1)
    _assert_refused(gateway, _post(gateway, _changed(content, NumberOfFrames=frames)), 422, "input.too_many_frames")


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("uid", ["1." + "2" * 80, "1.2\x003", "DOE"])
def test_uid_that_is_none(gateway, make_series, keyword, uid):
    files = [_changed(content, **{keyword: uid}) for content in make_series(3)]
    _assert_refused(gateway, _post(gateway, *files), 422, "input.invalid_uid")


@pytest.mark.fault(
    "Uploads", "100,000 parts in one multipart body", "refused at the limit of files or fields; nothing is left"
)
@pytest.mark.parametrize(
    ("path", "content_type", "disposition", "status"),
    [
        ("/segment", "multipart/form-data", b'Content-Disposition: form-data; name="files"; filename="a"', 413),
        ("/segment", "multipart/form-data", b'Content-Disposition: form-data; name="f%d"', 422),
        ("/dicom-web/studies", 'multipart/related; type="application/dicom"', b"Content-Type: application/dicom", 413),
    ],
)
def test_a_hundred_thousand_parts(start_gateway, path, content_type, disposition, status):
    gateway = start_gateway(upload_max_files=100)
    parts = (b"--x\r\n" + disposition.replace(b"%d", b"%d" % number) + b"\r\n\r\na\r\n" for number in range(100_000))
    response = gateway.client.post(
        path, content=b"".join(parts) + b"--x--\r\n", headers={"Content-Type": f"{content_type}; boundary=x"}
    )
    assert response.status_code == status
    assert gateway.kept_files() == []


@pytest.mark.fault("Uploads", "a part whose headers have no end", "400 after 4 KiB of a header")
def test_a_part_with_huge_headers(gateway):
    body = b"--x\r\nContent-Disposition: " + b"a" * 1_000_000
    response = gateway.client.post(
        "/segment", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    _assert_refused(gateway, response, 400, "input.malformed_multipart")


@pytest.mark.fault(
    "HTTP gateway", "JSON a hundred thousand deep, and JSON of more than 1 MiB", "4xx; it is not read further"
)
@pytest.mark.parametrize(
    ("content", "status"), [(b"[" * 100_000, (400, 422)), (b'{"node": "' + b"x" * 2_000_000 + b'"}', (413,))]
)
@pytest.mark.parametrize("announced", [True, False])
def test_json_without_measure(gateway, content, status, announced):
    headers = {"Content-Type": "application/json"}
    response = gateway.client.post("/retrieve", content=content if announced else iter([content]), headers=headers)
    assert response.status_code in status
    assert response.headers["content-type"] == "application/problem+json"
