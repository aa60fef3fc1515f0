"""Result objects to DICOMweb services, and what their answers mean."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from services.delivery.destinations import DicomWeb
from services.delivery.relay import Relay
from services.delivery.stow_rs import store_at
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.rows import JobRow
from services.store.study_store import StudyStore
from tests.end_to_end.hospital import Orthanc
from tests.services.delivery.orthanc import PASSWORD, USER
from tests.services.delivery.peers import only_row, result_object, wait_until, write_destinations

MakeJob = Callable[..., JobRow]


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD)
    return path


def table(orthanc: Orthanc, password_file: Path) -> str:
    return (
        f'[[dicomweb]]\nname = "archive"\nurl = "{orthanc.http.base_url}/dicom-web"\n'
        f'username = "{USER}"\npassword_file = "{password_file}"\n'
    )


def test_an_archive_takes_objects_and_takes_them_again(
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    jobs: JobStore,
    store: StudyStore,
    finished_job: MakeJob,
    orthanc: Orthanc,
    password_file: Path,
) -> None:
    write_destinations(settings, table(orthanc, password_file))
    made = [finished_job("dicomweb:archive") for _ in range(2)]
    relay.deliver_due()
    for job in made:
        row = only_row(outbox, job)
        assert (row.state, row.attempts, row.last_error) == ("delivered", 1, None)
        assert jobs.get(job.id).state == "completed"
        (held,) = orthanc.http.post("/tools/lookup", content=row.sop_instance_uid or "").json()
        sent = dcmread(store.data_dir / (row.object_path or ""))
        assert dcmread(BytesIO(orthanc.file(held["ID"]))).PixelData == sent.PixelData
    service = DicomWeb.model_validate(
        {"name": "a", "url": f"{orthanc.http.base_url}/dicom-web", "username": USER, "password_file": password_file}
    )
    row = only_row(outbox, made[0])
    (again,) = store_at(service, {store.data_dir / (row.object_path or ""): row.sop_instance_uid or ""}, settings)
    assert again.error is None


def test_a_file_that_the_archive_does_not_take_leaves_the_others(
    settings: Settings, tmp_path: Path, orthanc: Orthanc, password_file: Path
) -> None:
    good, bad, gone = tmp_path / "good.dcm", tmp_path / "bad.dcm", tmp_path / "gone.dcm"
    one = result_object(good)
    bad.write_bytes(b"not DICOM")
    service = DicomWeb.model_validate(
        {"name": "a", "url": f"{orthanc.http.base_url}/dicom-web", "username": USER, "password_file": password_file}
    )
    told = {
        sent.path: sent.error
        for sent in store_at(service, {bad: "1.2", good: one.SOPInstanceUID, gone: "1.3"}, settings)
    }
    assert set(told) == {good, bad, gone}
    assert told[good] is None
    assert "HTTP 400" in str(told[bad])
    assert "gone.dcm" in str(told[gone])


def test_a_wrong_password_and_a_service_that_is_down_are_tried_again(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, orthanc: Orthanc, password_file: Path
) -> None:
    password_file.write_text("wrong")
    write_destinations(
        settings,
        table(orthanc, password_file)
        + f'[[dicomweb]]\nname = "down"\nurl = "http://127.0.0.1:{free_port()}/dicom-web"\n'
        + f'[[dicomweb]]\nname = "shut"\nurl = "{orthanc.http.base_url}"\ntoken_file = "{password_file}.gone"\n',
    )
    job = finished_job("dicomweb:archive", "dicomweb:down", "dicomweb:shut", "dicomweb:unlisted")
    relay.deliver_due()
    errors = {row.destination: row.last_error or "" for row in outbox.of_job(job.id)}
    assert "does not let us in (HTTP 401)" in errors["dicomweb:archive"]
    assert "ConnectError" in errors["dicomweb:down"]
    assert "cannot read the secret" in errors["dicomweb:shut"]
    assert errors["dicomweb:unlisted"] == "no dicomweb unlisted in destinations.toml"
    password_file.write_text(PASSWORD)

    def archived() -> bool:
        relay.deliver_due()
        return {row.destination: row.state for row in outbox.of_job(job.id)}["dicomweb:archive"] == "delivered"

    wait_until(archived)


Answer = Callable[[list[str]], tuple[int, str, bytes]]


@contextmanager
def server_that_answers(answer: Answer) -> Iterator[tuple[DicomWeb, list[list[str]]]]:
    """What Orthanc cannot be brought to say. Also lists the SOP Instance UIDs of every request."""
    requests: list[list[str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is http.server's
            body = self.rfile.read(int(self.headers["Content-Length"]))
            boundary = re.search(r"boundary=(\w+)", self.headers["Content-Type"])
            assert boundary is not None
            parts = body.split(f"--{boundary[1]}".encode())[1:-1]
            uids = [str(dcmread(BytesIO(part.split(b"\r\n\r\n", 1)[1])).SOPInstanceUID) for part in parts]
            requests.append(uids)
            status, content_type, said = answer(uids)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield DicomWeb.model_validate({"name": "a", "url": f"http://127.0.0.1:{server.server_port}/"}), requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def store_response(stored: list[str], failed: dict[str, int], warned: int | None = None) -> bytes:
    response = Dataset()
    for keyword, uids in (("ReferencedSOPSequence", stored), ("FailedSOPSequence", list(failed))):
        items = []
        for uid in uids:
            item = Dataset()
            item.ReferencedSOPInstanceUID = uid
            if uid in failed:
                item.FailureReason = failed[uid]
            elif warned is not None:
                item.WarningReason = warned
            items.append(item)
        setattr(response, keyword, items)
    return json.dumps([response.to_json_dict()]).encode()


JSON = "application/dicom+json"


def sent_two(tmp_path: Path, settings: Settings, answer: Answer) -> tuple[list[str], list[list[str]]]:
    objects = {path: str(result_object(path).SOPInstanceUID) for path in (tmp_path / "a.dcm", tmp_path / "b.dcm")}
    with server_that_answers(answer) as (service, requests):
        told = list(store_at(service, objects, settings))
    assert [sent.path for sent in told] == list(objects)
    return [str(sent.error or sent.note) for sent in told], requests


def test_every_instance_is_told_of_as_the_response_says(tmp_path: Path, settings: Settings) -> None:
    told, requests = sent_two(
        tmp_path, settings, lambda uids: (202, JSON, store_response(uids[:1], {uids[1]: 0xA700}, warned=0xB000))
    )
    assert told == ["stored with warning 0xB000", "a refused the object (0xA700)"]
    assert [len(uids) for uids in requests] == [2]
    told, _ = sent_two(
        tmp_path, settings, lambda uids: (409, JSON, store_response([], {uids[0]: 0x0111, uids[1]: 0xC000}))
    )
    assert told == ["which it had already (0x0111)", "a refused the object (0xC000)"]


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (200, b"<html>Please log in</html>", "answered 200 with nothing that could be read"),
        (200, b"{}", "answered 200 and says nothing of the object"),
        (200, b'{"00081199": {"vr": "SQ", "Value": 7}}', "answered 200 with nothing that could be read"),
        (302, b"", "refused the request (HTTP 302)"),
        (415, b"", "refused the request (HTTP 415)"),
        (503, b"", "cannot take objects now (HTTP 503)"),
    ],
)
def test_what_is_no_store_response_stores_nothing(
    tmp_path: Path, settings: Settings, status: int, said: bytes, told: str
) -> None:
    for answer in sent_two(tmp_path, settings, lambda uids: (status, JSON, said))[0]:
        assert told in answer


def test_what_is_too_much_for_one_request_is_sent_one_by_one(tmp_path: Path, settings: Settings) -> None:
    told, requests = sent_two(
        tmp_path,
        settings,
        lambda uids: (413, "text/plain", b"") if len(uids) > 1 else (200, JSON, store_response(uids, {})),
    )
    assert told == ["", ""]
    assert [len(uids) for uids in requests] == [2, 1, 1]
