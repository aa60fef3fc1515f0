"""WADO-RS: a made study and its real result objects, retrieved by dicomweb-client and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from services.dicom.result_files import write_results
from services.dicom.series_reader import read_series
from services.embedded_redis import free_port
from services.multipart import MultipartReader
from services.settings import Settings
from tests.api.conftest import RunningGateway, bearer, serving
from tests.api.test_dicomweb_search import complete
from tests.api.test_dicomweb_store import encoded, store
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import IDENTITY, counting_volume, made_result, written_series
from tests.services.ingest.peers import ct_series

DICOM = 'multipart/related; type="application/dicom"'
OCTETS = 'multipart/related; type="application/octet-stream"'


class Gathered:
    """The parts of an answer: (Content-Type, content)."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []

    def begin(self, headers: Mapping[str, str]) -> None:
        self.parts.append((headers["content-type"], b""))

    def write(self, piece: memoryview) -> None:
        kind, content = self.parts[-1]
        self.parts[-1] = kind, content + piece

    def end(self) -> None:
        pass


def parts_of(response: httpx.Response) -> list[tuple[str, bytes]]:
    assert response.status_code == 200, response.text
    gathered = Gathered()
    boundary = response.headers["content-type"].partition("boundary=")[2]
    reader = MultipartReader(boundary.encode(), gathered)
    reader.feed(response.content)
    reader.end()
    return gathered.parts


def url_of(one: Dataset, level: str = "instance") -> str:
    url = f"/dicom-web/studies/{one.StudyInstanceUID}"
    if level != "study":
        url += f"/series/{one.SeriesInstanceUID}"
    return url + (f"/instances/{one.SOPInstanceUID}" if level == "instance" else "")


def get(gateway: RunningGateway, url: str, accept: str = "*/*", **parameters: str) -> httpx.Response:
    return gateway.client.get(url, headers={"Accept": accept}, params=parameters)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[RunningGateway]:
    """One for all, since nothing is taken away by reading it."""
    data_dir = tmp_path_factory.mktemp("data")
    with serving(Settings(gateway_port=free_port(), data_dir=data_dir, redis_url=redis_url)) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> DICOMwebClient:
    return DICOMwebClient(f"{gateway.url}/dicom-web", headers=bearer(gateway.settings.data_dir))


@pytest.fixture(scope="module")
def stored(gateway: RunningGateway) -> list[Dataset]:
    """Three slices with a window of their own."""
    slices = ct_series(3, WindowCenter=40, WindowWidth=400)
    assert store(gateway, map(encoded, slices)).status_code == 200
    return slices


@pytest.fixture(scope="module")
def results(gateway: RunningGateway, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """The objects of a job that is done, by file name."""
    paths = written_series(tmp_path_factory.mktemp("series"))
    assert store(gateway, [path.read_bytes() for path in paths]).status_code == 200
    (job,) = [job for job in gateway.jobs.receiving() if job.arrivals == len(paths)]
    complete(gateway.jobs, job.id)
    source = read_series(paths)
    write_results(source, made_result(source.volume), gateway.store.result_directory(job.id), IDENTITY)
    written = {path.name: dcmread(path) for path in gateway.store.result_directory(job.id).glob("*.dcm")}
    findings = made_result(source.volume).findings.to_dict()
    gateway.jobs.claim(job.id, "worker", lease_s=60)
    gateway.jobs.finish(job.id, "worker", findings=findings, stage_seconds={}, deliveries=())
    return written


def stored_as(gateway: RunningGateway, syntax: str, **attributes: Any) -> tuple[Dataset, Dataset]:
    """(as it was, as it was stored in a compressed transfer syntax)"""
    (plain,) = ct_series(1, size=64, **attributes)
    compressed = dcmread(BytesIO(encoded(plain)))
    compressed.compress(syntax, generate_instance_uid=False)
    assert store(gateway, [encoded(compressed)]).status_code == 200
    return plain, compressed


class TestInstances:
    def test_a_series_comes_back_as_it_was_stored(self, client: DICOMwebClient, stored: list[Dataset]) -> None:
        one = stored[0]
        found = client.retrieve_series(one.StudyInstanceUID, one.SeriesInstanceUID, media_types=((
            "application/dicom", "*"),))  # fmt: skip
        assert [instance.SOPInstanceUID for instance in found] == [one.SOPInstanceUID for one in stored]
        assert found[0].PixelData == one.PixelData

    def test_an_instance_is_given_byte_for_byte(self, gateway: RunningGateway, stored: list[Dataset]) -> None:
        for accept in (DICOM, f"{DICOM}; transfer-syntax=*", "*/*", ""):
            ((kind, content),) = parts_of(get(gateway, url_of(stored[1]), accept))
            assert kind == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
            assert content == encoded(stored[1])

    def test_a_study_has_what_came_in_and_the_results(
        self, client: DICOMwebClient, results: dict[str, Dataset]
    ) -> None:
        found = client.retrieve_study(results["seg.dcm"].StudyInstanceUID)
        assert sorted(one.Modality for one in found) == ["CT"] * 6 + ["DOC", "OT", "OT", "OT", "SEG", "SR"]

    @pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
    def test_a_compressed_instance_is_decoded_unless_it_may_stay(self, gateway: RunningGateway, syntax: str) -> None:
        plain, compressed = stored_as(gateway, syntax)
        ((kind, content),) = parts_of(get(gateway, url_of(plain), DICOM))
        assert kind == "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
        assert dcmread(BytesIO(content)).PixelData == plain.PixelData
        assert dcmread(BytesIO(content)).PatientName == plain.PatientName
        for accepted in ("*", syntax):
            ((kind, content),) = parts_of(get(gateway, url_of(plain), f"{DICOM}; transfer-syntax={accepted}"))
            assert kind == f"application/dicom; transfer-syntax={syntax}"
            assert content == encoded(compressed)

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_other_encodings_are_written_anew(self, gateway: RunningGateway, syntax: str) -> None:
        (one,) = ct_series(1)
        plain = dcmread(BytesIO(encoded(one)))
        pixels = plain.pixel_array
        if syntax == ExplicitVRBigEndian:
            one.PixelData = pixels.astype(">i2").tobytes()
        one.file_meta.TransferSyntaxUID = syntax
        written = BytesIO()
        one.save_as(written, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian,
                    enforce_file_format=True)  # fmt: skip
        assert store(gateway, [written.getvalue()]).status_code == 200
        ((_, content),) = parts_of(get(gateway, url_of(one), DICOM))
        given = dcmread(BytesIO(content))
        assert given.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        np.testing.assert_array_equal(given.pixel_array, pixels)
        assert [float(x) for x in given.ImagePositionPatient] == [0.0, 0.0, 1.0]
        ((_, frame),) = parts_of(get(gateway, f"{url_of(one)}/frames/1", OCTETS))
        assert frame == pixels.tobytes()

    @pytest.mark.parametrize(
        "accept",
        [
            f"{DICOM}; transfer-syntax={JPEGLSLossless}",
            "application/dicom",
            'multipart/related; type="application/dicom+xml"',
            "application/zip",
            "garbage",
        ],
    )
    def test_what_cannot_be_given_is_not_acceptable(
        self, gateway: RunningGateway, stored: list[Dataset], accept: str
    ) -> None:
        response = get(gateway, url_of(stored[0], "series"), accept)
        assert (response.status_code, response.json()["code"]) == (406, "dicomweb.not_acceptable")

    def test_the_better_liked_of_two_transfer_syntaxes_is_given(self, gateway: RunningGateway) -> None:
        plain, _ = stored_as(gateway, RLELossless)
        accept = f"{DICOM}; transfer-syntax={RLELossless}; q=0.5, {DICOM}; transfer-syntax={ExplicitVRLittleEndian}"
        ((kind, _),) = parts_of(get(gateway, url_of(plain), accept))
        assert kind.endswith(ExplicitVRLittleEndian)

    @pytest.mark.parametrize("level", ["study", "series", "instance"])
    def test_what_is_not_held_is_not_found(self, gateway: RunningGateway, level: str) -> None:
        response = get(gateway, url_of(ct_series(1)[0], level))
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
        assert get(gateway, "/dicom-web/studies/..%2F..%2Fetc").status_code in (404, 422)


class TestMetadata:
    def test_everything_but_big_values_is_there(self, client: DICOMwebClient, stored: list[Dataset]) -> None:
        found = client.retrieve_series_metadata(stored[0].StudyInstanceUID, stored[0].SeriesInstanceUID)
        read = [Dataset.from_json(one, bulk_data_uri_handler=lambda _: b"") for one in found]
        assert [one.SOPInstanceUID for one in read] == [one.SOPInstanceUID for one in stored]
        assert read[0].PatientName == stored[0].PatientName
        assert [element.tag for element in read[0] if element.tag != 0x00083002] == [one.tag for one in stored[0]]

    def test_the_bulk_data_is_the_pixels(self, gateway: RunningGateway, stored: list[Dataset]) -> None:
        (model,) = get(gateway, f"{url_of(stored[0])}/metadata").json()
        url = model["7FE00010"]["BulkDataURI"]
        assert url.startswith(gateway.url)
        ((_, content),) = parts_of(get(gateway, url, OCTETS))
        assert content == stored[0].PixelData
        assert get(gateway, url, "application/octet-stream").content == stored[0].PixelData
        assert get(gateway, url, "text/html").status_code == 406
        assert get(gateway, url.replace("7FE00010", "00100010")).status_code == 404

    def test_a_report_is_bulk_data(self, gateway: RunningGateway, results: dict[str, Dataset]) -> None:
        report = results["report.dcm"]
        (model,) = get(gateway, f"{url_of(report)}/metadata").json()
        assert "7FE00010" not in model
        content = get(gateway, model["00420011"]["BulkDataURI"], "application/octet-stream").content
        assert content == report.EncapsulatedDocument
        assert content.startswith(b"%PDF")

    def test_values_that_json_does_not_know_are_strings(self, gateway: RunningGateway) -> None:
        (one,) = ct_series(1, ExposureTimeInms=float("nan"), RealWorldValueSlope=float("-inf"))
        store(gateway, [encoded(one)])
        (model,) = get(gateway, f"{url_of(one)}/metadata").json()
        assert model["00409225"]["Value"] == ["-inf"]
        assert model["00189328"]["Value"] == ["NaN"]

    def test_xml_is_not_acceptable(self, gateway: RunningGateway, stored: list[Dataset]) -> None:
        accept = 'multipart/related; type="application/dicom+xml"'
        assert get(gateway, f"{url_of(stored[0])}/metadata", accept).status_code == 406


class TestFrames:
    def test_a_frame_is_decoded(self, client: DICOMwebClient, stored: list[Dataset]) -> None:
        one = stored[0]
        (frame,) = client.retrieve_instance_frames(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID, [1])
        assert frame == one.PixelData

    @pytest.mark.parametrize(
        ("syntax", "media_type"),
        [(RLELossless, "image/dicom-rle"), (JPEGLSLossless, "image/jls"), (JPEG2000Lossless, "image/jp2")],
    )
    def test_a_compressed_frame_comes_decoded_or_as_it_is(
        self, gateway: RunningGateway, syntax: str, media_type: str
    ) -> None:
        plain, compressed = stored_as(gateway, syntax)
        url = f"{url_of(plain)}/frames/1"
        ((kind, content),) = parts_of(get(gateway, url, OCTETS))
        assert (kind, content) == (
            f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}",
            plain.PixelData,
        )
        for accept in (
            f"{OCTETS}; transfer-syntax=*",
            f'multipart/related; type="{media_type}"',
            f'multipart/related; type="{media_type}"; transfer-syntax={syntax}',
            'multipart/related; type="image/*"; transfer-syntax=*',
        ):
            ((kind, content),) = parts_of(get(gateway, url, accept))
            assert kind == f"{media_type}; transfer-syntax={syntax}"
            assert content in compressed.PixelData
            assert len(content) > 100
        assert get(gateway, url, 'multipart/related; type="image/jpeg"').status_code == 406
        assert get(gateway, url, "image/png").status_code == 406

    def test_frames_of_a_segmentation_are_packed_bits(
        self, client: DICOMwebClient, results: dict[str, Dataset]
    ) -> None:
        seg = results["seg.dcm"]
        uids = seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.SOPInstanceUID
        numbers = list(range(1, seg.NumberOfFrames + 1))
        frames = client.retrieve_instance_frames(*uids, numbers)
        unpacked = [np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little") for frame in frames]
        np.testing.assert_array_equal(np.stack(unpacked).reshape(seg.pixel_array.shape), seg.pixel_array)

    def test_frames_of_an_enhanced_image(self, gateway: RunningGateway, tmp_path: Path) -> None:
        path = written_multi_frame(counting_volume(), tmp_path / "enhanced.dcm", frame_order=range(6))
        assert store(gateway, [path.read_bytes()]).status_code == 200
        enhanced = dcmread(path)
        contents = [content for _, content in parts_of(get(gateway, f"{url_of(enhanced)}/frames/4,2", OCTETS))]
        assert contents == [enhanced.pixel_array[3].tobytes(), enhanced.pixel_array[1].tobytes()]
        shown = get(gateway, f"{url_of(enhanced)}/frames/4/rendered", "image/png", window="-600,200,linear-exact")
        expected = np.clip((counting_volume().hu[3] + 600) / 200 + 0.5, 0, 1) * 255  # rescaled by a shared group
        np.testing.assert_allclose(np.asarray(Image.open(BytesIO(shown.content))), expected, atol=0.51)

    def test_what_the_gateway_cannot_decode_is_given_as_it_is_or_not(
        self, gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, _ = stored_as(gateway, JPEGLSLossless)

        def without_decoder(*_: object, **__: object) -> None:
            raise RuntimeError("Unable to decompress 'JPEG-LS Lossless' pixel data because all plugins are missing")

        monkeypatch.setattr("services.dicomweb.frames.decoded", without_decoder)
        for url in (f"{url_of(plain)}/frames/1", url_of(plain), f"{url_of(plain)}/rendered"):
            accept = "image/png" if "rendered" in url else f"{DICOM}, {OCTETS}"
            response = get(gateway, url, accept)
            assert response.status_code == 406
            assert "JPEG-LS" in response.json()["detail"]
            assert response.json()["remedy"] == "accept it as it is stored: transfer-syntax=*"
        ((kind, _),) = parts_of(get(gateway, f"{url_of(plain)}/frames/1"))
        assert kind.startswith("image/jls"), "who takes anything gets what there is"

    @pytest.mark.parametrize(
        ("frames", "status"), [("2", 404), ("1,2", 404), ("0", 400), ("x", 400), ("1,", 400), ("-1", 400), ("1.5", 400)]
    )
    def test_frames_that_are_not_there(
        self, gateway: RunningGateway, stored: list[Dataset], frames: str, status: int
    ) -> None:
        assert get(gateway, f"{url_of(stored[0])}/frames/{frames}").status_code == status


class TestRendered:
    def picture(self, response: httpx.Response) -> np.ndarray:
        assert response.status_code == 200, response.text
        return np.asarray(Image.open(BytesIO(response.content)))

    def test_a_slice_in_its_own_window_and_in_another(self, gateway: RunningGateway, stored: list[Dataset]) -> None:
        url = f"{url_of(stored[0])}/rendered"
        hu = np.frombuffer(stored[0].PixelData, dtype=np.int16).reshape(16, 16)
        own = self.picture(get(gateway, url, "image/png"))
        expected = np.clip((hu - 39.5) / 399 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
        np.testing.assert_allclose(own, expected, atol=0.51)
        step = self.picture(get(gateway, url, "image/png", window="0,1,linear-exact"))
        np.testing.assert_array_equal(step[hu >= 1], 255)
        np.testing.assert_array_equal(step[hu <= -1], 0)
        sigmoid = self.picture(get(gateway, url, "image/png", window="100,50,sigmoid"))
        np.testing.assert_allclose(sigmoid, 255 / (1 + np.exp(-4 * (hu - 100.0) / 50)), atol=0.51)

    @pytest.mark.parametrize(
        ("accept", "media_type"), [("*/*", "image/jpeg"), ("image/png", "image/png"), ("image/*", "image/jpeg")]
    )
    def test_formats(
        self, gateway: RunningGateway, stored: list[Dataset], client: DICOMwebClient, accept: str, media_type: str
    ) -> None:
        response = get(gateway, f"{url_of(stored[0])}/rendered", accept)
        assert response.headers["content-type"] == media_type
        assert self.picture(response).shape == (16, 16)
        one = stored[0]
        picture = client.retrieve_instance_rendered(
            one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID, media_types=("image/png",)
        )
        assert Image.open(BytesIO(picture)).size == (16, 16)

    def test_the_viewport_is_filled_keeping_the_shape(
        self, gateway: RunningGateway, results: dict[str, Dataset]
    ) -> None:
        response = get(gateway, f"{url_of(results['seg.dcm'])}/rendered", viewport="100,100")
        assert self.picture(response).shape == (67, 100)  # of 16 x 24

    def test_a_compressed_slice_is_shown(self, gateway: RunningGateway) -> None:
        plain, _ = stored_as(gateway, JPEGLSLossless, WindowCenter=0, WindowWidth=2000)
        shown = self.picture(get(gateway, f"{url_of(plain)}/frames/1/rendered", "image/png"))
        assert shown.min() < 10 < 245 < shown.max()

    def test_a_segmentation_is_white_where_it_is(self, gateway: RunningGateway, results: dict[str, Dataset]) -> None:
        seg = results["seg.dcm"]
        shown = self.picture(get(gateway, f"{url_of(seg)}/frames/2/rendered", "image/png"))
        np.testing.assert_array_equal(shown, seg.pixel_array[1] * 255)

    def test_a_key_image_is_in_colour(self, gateway: RunningGateway, results: dict[str, Dataset]) -> None:
        shown = self.picture(get(gateway, f"{url_of(results['key-image-1.dcm'])}/rendered", "image/png"))
        np.testing.assert_array_equal(shown, results["key-image-1.dcm"].pixel_array)

    @pytest.mark.parametrize("name", ["report.dcm", "sr.dcm"])
    def test_what_has_no_pixels_has_no_picture(
        self, gateway: RunningGateway, results: dict[str, Dataset], name: str
    ) -> None:
        response = get(gateway, f"{url_of(results[name])}/rendered")
        assert (response.status_code, response.json()["code"]) == (406, "dicomweb.not_acceptable")

    @pytest.mark.parametrize(
        ("parameters", "status"),
        [
            ({"window": "1"}, 400),
            ({"window": "1,0,linear"}, 400),
            ({"window": "nan,1,linear"}, 400),
            ({"window": "1,2,cubic"}, 400),
            ({"viewport": "0,1"}, 400),
            ({"viewport": "5000,1"}, 400),
            ({"viewport": "1,2,3,4"}, 400),
            ({"quality": "0"}, 422),
            ({"accept": "image/gif"}, 406),
        ],
    )
    def test_what_is_not_understood(
        self, gateway: RunningGateway, stored: list[Dataset], parameters: dict[str, str], status: int
    ) -> None:
        assert get(gateway, f"{url_of(stored[0])}/rendered", **parameters).status_code == status


def test_a_file_that_an_upload_had_without_preamble_is_given_one(
    gateway: RunningGateway, make_series: Callable[..., list[bytes]]
) -> None:
    files = [("files", (str(number), file[132:])) for number, file in enumerate(make_series(6, patient_id="P-bare"))]
    assert gateway.client.post("/segment", files=files).status_code == 202
    (found, *_) = gateway.client.get("/dicom-web/instances", params={"PatientID": "P-bare"}).json()
    ((_, content),) = parts_of(get(gateway, found["00081190"]["Value"][0], DICOM))
    assert content[128:132] == b"DICM"
    assert dcmread(BytesIO(content)).SOPInstanceUID == found["00080018"]["Value"][0]
