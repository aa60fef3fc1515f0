"""Studies fetched by QIDO-RS and WADO-RS from Orthanc, and multipart bodies as services write them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from imaging.errors import NodeUnavailable
from services.delivery.destinations import DicomWeb
from services.dicom.headers import read_header, text
from services.retrieve.dicomweb_archive import DicomWebArchive
from services.retrieve.multipart_related import parts_of
from services.settings import Settings
from services.store.retrievals import series_of
from tests.end_to_end.hospital import DICOMWEB_PLUGIN, running_orthanc
from tests.services.ingest.peers import ct_series
from tests.services.retrieve.conftest import Archive, Fetching

RELATED = 'multipart/related; type="application/dicom"; boundary=xyz'


@pytest.fixture(scope="module")
def web_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    if not Path(DICOMWEB_PLUGIN).exists():
        pytest.fail("Orthanc's DICOMweb plugin is not installed (Debian: orthanc-dicomweb)")
    directory = tmp_path_factory.mktemp("web")
    with running_orthanc(directory, Plugins=[DICOMWEB_PLUGIN]) as orthanc:
        yield Archive(orthanc, directory)


@pytest.fixture
def from_web(settings: Settings, web_archive: Archive) -> None:
    settings.destinations.write_text(
        f'[[dicomweb]]\nname = "WEB"\nurl = "{web_archive.orthanc.http.base_url}/dicom-web"\nretrieve = true\n'
    )


@pytest.mark.usefixtures("from_web")
def test_a_study_is_fetched_byte_for_byte(fetching: Fetching, web_archive: Archive) -> None:
    slices = ct_series(7)
    other = ct_series(2, StudyInstanceUID=slices[0].StudyInstanceUID, Modality="MR")
    web_archive.add(*slices[:4], *other)
    row = fetching.wait_for_end(fetching.fetch(slices[0], node="dicomweb:WEB"), "completed")
    assert sorted((one.instances, one.received, one.skipped) for one in series_of(row)) == [
        (2, 0, "intake.modality"),
        (4, 4, None),
    ]
    (job,) = fetching.wait_for_state(slices[0], "queued")
    assert (job.calling_ae_title, job.completion_reason) == ("dicomweb:WEB", "queried 4 instances received")
    (first, *_) = fetching.store.read_inputs(job.id)
    assert text(read_header(first), "PatientID") == "PHI-4711"

    web_archive.add(*slices[4:])
    row = fetching.wait_for_end(fetching.fetch(slices[0], node="dicomweb:WEB"), "completed")
    _, second = fetching.wait_for_state(slices[0], "cancelled", "queued")
    assert second.instance_count == 7


@pytest.mark.usefixtures("from_web")
def test_what_the_service_does_not_have_is_said(fetching: Fetching) -> None:
    unknown = Dataset()
    unknown.StudyInstanceUID = "1.2.3.99"
    row = fetching.wait_for_end(fetching.fetch(unknown, node="dicomweb:WEB"), "failed")
    assert row.error_code == "retrieve.no_such_study"


def test_a_wrong_address_is_no_empty_answer(fetching: Fetching, settings: Settings, web_archive: Archive) -> None:
    settings.destinations.write_text(
        f'[[dicomweb]]\nname = "WEB"\nurl = "{web_archive.orthanc.http.base_url}/nowhere"\nretrieve = true\n'
    )
    row = fetching.wait_for_end(fetching.fetch(ct_series(1)[0], node="dicomweb:WEB"), "failed")
    assert (row.error_code, row.attempts) == ("retrieve.node_unavailable", 3)
    assert row.error_message == "WEB answered 404 (see its log)"


BODY = b"--xyz\r\nContent-Type: application/dicom\r\n\r\none\r\n--xyz\r\nContent-Type: x\r\n\r\n\r\ntwo\r\n--xyz--\r\n"


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("before", [b"", b"\r\n"])
def test_parts_are_whole_however_the_body_is_cut(size: int, before: bytes) -> None:
    body = before + BODY
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert list(parts_of(RELATED, pieces)) == [b"one", b"\r\ntwo"]


def test_a_body_that_breaks_off_is_an_error_after_the_parts_that_are_whole() -> None:
    parts = parts_of(RELATED, [BODY[:60]])
    assert next(parts) == b"one"
    with pytest.raises(NodeUnavailable, match="ends before its last boundary"):
        next(parts)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/related", ""])
def test_another_content_type_is_an_error(content_type: str) -> None:
    with pytest.raises(NodeUnavailable, match="malformed"):
        list(parts_of(content_type, [BODY]))


class Service(BaseHTTPRequestHandler):
    """What Orthanc does not do: it lists instances whatever `offset` says, and has lost the second of them."""

    uids: tuple[str, ...] = ()
    one: bytes = b""
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path.endswith(f"/instances/{self.uids[1]}"):
            self.send_error(404)
            return
        is_search = self.path.split("?")[0].endswith("/instances")
        listed = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in self.uids]
        whole = b"--xyz\r\nContent-Type: application/dicom\r\n\r\n" + self.one + b"\r\n--xyz--\r\n"
        body = json.dumps(listed).encode() if is_search else whole
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json" if is_search else RELATED)
        self.send_header("Warning", '299 - "there are more"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def odd_archive(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[DicomWebArchive]:
    slices = ct_series(3)
    written = BytesIO()
    slices[0].save_as(written, enforce_file_format=True)
    monkeypatch.setattr(Service, "uids", tuple(str(one.SOPInstanceUID) for one in slices))
    monkeypatch.setattr(Service, "one", written.getvalue())
    monkeypatch.setattr(Service, "requests", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    service = DicomWeb.model_validate(
        {"name": "ODD", "url": f"http://127.0.0.1:{server.server_port}", "retrieve": True}
    )
    yield DicomWebArchive(service, settings)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_that_ignores_the_offset_is_asked_twice(odd_archive: DicomWebArchive) -> None:
    assert odd_archive.instances("1.2", "1.2.3") == frozenset(Service.uids)
    assert Service.requests == 2


def test_one_lost_instance_does_not_keep_the_others_back(odd_archive: DicomWebArchive) -> None:
    failed: list[int] = []
    taken: list[bytes] = []

    class Receiver:
        def take_in(self, encoded: BytesIO, *_: object) -> None:
            taken.append(encoded.getvalue())

    def on_progress(count: int) -> bool:
        failed.append(count)
        return True

    odd_archive.fetch("1.2", "1.2.3", Service.uids, receiver=Receiver(), on_progress=on_progress)  # type: ignore[arg-type]
    assert len(taken) == 2
    assert failed == [0, 1, 1]
