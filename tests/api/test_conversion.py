"""`POST /convert`: what is sent decides what comes back, and nothing of it is left behind."""

from __future__ import annotations

import gzip
import io
import threading
import time
import zipfile
from pathlib import Path

import highdicom
import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from services.dicom.label_nifti import nifti_of, save_nifti
from tests.api.conftest import bearer
from tests.services.dicom.made_series import counting_volume, edit, written_series


@pytest.fixture
def series(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in written_series(tmp_path / "made")]


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.zeros(counting_volume().shape_zyx, dtype=np.uint16)
    labels[2:4, 3:6, 5:11], labels[4, 9:12, 2:5] = 1, 2
    return labels


@pytest.fixture
def label_map(labels: np.ndarray, tmp_path: Path) -> bytes:
    save_nifti(nifti_of(labels, counting_volume().affine_lps), tmp_path / "labels.nii.gz")
    return (tmp_path / "labels.nii.gz").read_bytes()


def convert(gateway, *contents: bytes, **request) -> httpx.Response:
    files = [("files", ("x", content)) for content in contents]
    response = gateway.client.post("/convert", files=files, **request)
    assert gateway.kept_files() == []
    return response


def loaded(content: bytes) -> np.ndarray:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    return np.asarray(image.dataobj).transpose(2, 1, 0)


def test_a_series_becomes_a_nifti_and_comes_back_as_a_zip(gateway, series):
    made = convert(gateway, *series)
    assert (made.status_code, made.headers["content-type"]) == (200, "application/gzip")
    assert made.headers["content-disposition"] == 'attachment; filename="ct.nii.gz"'
    assert int(made.headers["content-length"]) == len(made.content)
    np.testing.assert_array_equal(loaded(made.content), counting_volume().hu)

    back = convert(gateway, made.content, data={"patient_id": "P-7", "patient_name": "Doe^Jane"})
    assert (back.status_code, back.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(back.content)) as archive:
        images = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    assert len(images) == 6
    assert (images[0].PatientID, images[0].PatientName) == ("P-7", "Doe^Jane")


def test_a_label_map_with_its_series_becomes_a_seg_and_comes_back(gateway, series, label_map, labels):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, content in enumerate(series):
            archive.writestr(f"{number}.dcm", content)
    made = convert(gateway, label_map, packed.getvalue(), params={"drawn": "embolus"})
    assert (made.status_code, made.headers["content-type"]) == (200, "application/dicom")
    seg = highdicom.seg.segread(io.BytesIO(made.content))
    assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Embolus"
    np.testing.assert_array_equal(loaded(convert(gateway, made.content, *series).content), labels)
    alone = convert(gateway, made.content, params={"segment": 2})
    assert np.count_nonzero(loaded(alone.content)) == np.count_nonzero(labels == 2)


def test_warnings_come_by_their_codes(gateway, series, label_map, labels, tmp_path):
    save_nifti(nifti_of(labels * 5, counting_volume().affine_lps), tmp_path / "gaps.nii.gz")
    made = convert(gateway, (tmp_path / "gaps.nii.gz").read_bytes(), *series)
    assert made.headers["embolens-warnings"] == "segments.renumbered"


def test_refusals_are_problem_documents_with_the_codes_of_the_readers(gateway, series, label_map, labels, tmp_path):
    other_grid = tmp_path / "other.nii.gz"
    save_nifti(nifti_of(labels[1:], counting_volume().affine_lps), other_grid)
    refused = {
        "geometry.grid_differs": convert(gateway, other_grid.read_bytes(), *series),
        "geometry.too_few_slices": convert(gateway, *series[:2]),
        "input.not_dicom": convert(gateway, b"%PDF-1.7\n" + b"x" * 500),
        "input.several_volumes": convert(gateway, label_map, other_grid.read_bytes()),
    }
    assert {code: (answer.status_code, answer.json()["code"]) for code, answer in refused.items()} == {
        code: (422, code) for code in refused
    }
    assert refused["geometry.too_few_slices"].json()["reasons"]
    assert convert(gateway, *series, params={"seg_type": "wax"}).json()["code"] == "request.invalid"


def test_limits_are_those_of_segment(start_gateway, series):
    gateway = start_gateway(upload_max_bytes=1000, upload_max_files=3)
    assert convert(gateway, *series).status_code == 413
    assert gateway.client.post("/convert", content=b"x", headers={"Content-Type": "text/html"}).status_code == 415


def test_a_conversion_that_takes_too_much_memory_or_time_is_ended(start_gateway, series):
    small = start_gateway(convert_memory_bytes=1 << 26)
    assert convert(small, *series).json()["code"] in ("input.too_large", "input.decoder_crashed")
    short = start_gateway(convert_timeout_s=0.01)
    answer = convert(short, *series)
    assert (answer.status_code, answer.json()["code"]) == (413, "input.conversion_too_long")


def test_the_gateway_answers_others_while_it_converts(gateway, series):
    answered = []
    conversion = threading.Thread(target=lambda: answered.append(convert(gateway, *series)))
    conversion.start()
    while conversion.is_alive():
        started = time.monotonic()
        with httpx.Client(base_url=gateway.url, timeout=30, headers=bearer(gateway.settings.data_dir)) as client:
            assert client.get("/health/live").status_code == 200
        assert time.monotonic() - started < 5
    assert answered[0].status_code == 200


def test_a_client_that_goes_away_leaves_nothing(gateway, series):
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post("/convert", files=[("files", ("x", content)) for content in series], timeout=0.2)
    deadline = time.monotonic() + 30
    while gateway.kept_files():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_compressed_images_are_decoded(gateway, tmp_path):
    paths = written_series(tmp_path / "made", counting_volume((3, 64, 64)))
    for path in paths:
        edit(path, lambda dataset: dataset.compress(JPEG2000Lossless, generate_instance_uid=False))
    made = convert(gateway, *(path.read_bytes() for path in paths))
    np.testing.assert_array_equal(loaded(made.content), counting_volume((3, 64, 64)).hu)
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "PixelData", encapsulate([b"\xff\x4f\xff\x51 no image"])))
    refused = convert(gateway, *(path.read_bytes() for path in paths))
    assert refused.json()["code"] == "pixels.unreadable"
