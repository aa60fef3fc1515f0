"""Marked studies through every way in and out: what is emitted holds none of the marks."""

from __future__ import annotations

import gzip
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from redis import Redis

from imaging.phantom import make_phantom
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.uids import derive_uid
from tests.api.test_dicomweb_store import MEDIA_TYPE, multipart
from tests.end_to_end.conftest import running_embolens
from tests.end_to_end.hospital import RunningEmbolens, running_orthanc, storescu, wait_for

pytestmark = pytest.mark.timeout(400)

MARK = "QZXWVKJ"  # of seven letters: three come about in a compressed picture by chance
BIRTH_DATE = "19630215"
_MARKED = {
    "PatientName": "QZXWVKJNAME^ANNA",
    "PatientID": "QZXWVKJPATIENT",
    "PatientBirthDate": BIRTH_DATE,
    "OtherPatientIDs": "QZXWVKJOTHER",
    "PatientAddress": "QZXWVKJSTREET",
    "AccessionNumber": "QZXWVKJACC",
    "InstitutionName": "QZXWVKJCLINIC",
    "ReferringPhysicianName": "QZXWVKJDOCTOR^B",
    "OperatorsName": "QZXWVKJOPERATOR",
    "StudyID": "QZXWVKJSTUDYID",
    "StudyDescription": "QZXWVKJ study",
    "SeriesDescription": "QZXWVKJ series",
    "ProtocolName": "QZXWVKJ protocol",
    "PatientComments": "QZXWVKJ comment",
}
_FOUND = re.compile(rf"(?i){MARK}|(?<!\d){BIRTH_DATE}(?!\d)".encode())
# Where patients' data may be: the objects, their copies in the database that QIDO searches, and the audit trail.
_ALLOWED = re.compile(r"received/.*|jobs/[^/]+/(input/.*|result/.*\.dcm)|embolens\.sqlite.*|audit/.*")


def marked_series(
    directory: Path, number: int, size: int, change: Callable[[FileDataset], object] = lambda one: None
) -> Path:
    """A phantom of 40 slices, all of its headers marked; below 240 pixels it is too coarse to be analysed."""
    phantom = make_phantom(number, shape_zyx=(40, size, size), spacing_zyx_mm=(4.0, 360 / size, 360 / size), emboli=2)
    study, series = (derive_uid("privacy", str(number), what) for what in ("study", "series"))
    files = write_ct_series(
        phantom.volume,
        directory,
        patient_id="QZXWVKJPATIENT",
        patient_name="QZXWVKJNAME^ANNA",
        study_instance_uid=study,
        series_instance_uid=series,
    )
    for path in files:
        one = dcmread(path)
        for keyword, value in _MARKED.items():
            setattr(one, keyword, value)
        one.private_block(0x0009, "QZXWVKJ CREATOR", create=True).add_new(1, "LO", "QZXWVKJ private")
        change(one)
        one.save_as(path)
    return directory


@dataclass
class Emitted:
    """What left the processes, by where it was seen."""

    pieces: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, where: str, content: bytes) -> None:
        self.pieces.append((where, content))

    def response(self, answer: httpx.Response) -> httpx.Response:
        """Headers always; the body unless it is DICOM or asked for patients' data (QIDO, WADO, a report)."""
        where = f"{answer.request.method} {answer.request.url.path} {answer.status_code}"
        self.add(f"headers of {where}", b"\n".join(b"%s: %s" % pair for pair in answer.headers.raw))
        is_asked_for = answer.is_success and "/dicom-web/" in answer.request.url.path
        if not is_asked_for and not answer.request.url.path.endswith((".dcm", ".pdf", ".zip")):
            self.add(f"body of {where}", answer.content)
        return answer

    def found(self) -> list[str]:
        return [
            f"{where}: {content[max(0, hit.start() - 60) : hit.end() + 20]!r}"
            for where, content in self.pieces
            for hit in [_FOUND.search(content)]
            if hit is not None
        ]


@pytest.fixture
def embolens(tmp_path: Path) -> Iterator[RunningEmbolens]:
    """At log level DEBUG; its archive refuses what it sends."""
    (tmp_path / "orthanc").mkdir()
    (tmp_path / "tmp").mkdir()
    with (
        running_orthanc(tmp_path / "orthanc", DicomAlwaysAllowStore=False, DicomAlwaysAllowEcho=False) as orthanc,
        running_embolens(
            tmp_path, orthanc, EMBOLENS_LOG_LEVEL="DEBUG", EMBOLENS_SERIES_QUIET_S="2", TMPDIR=str(tmp_path / "tmp")
        ) as running,
    ):
        yield running


@pytest.mark.fault(
    "privacy",
    "studies with marked names by C-STORE, REST and STOW-RS; refused, unreadable, delivered to an archive that refuses",
    "at level DEBUG no mark in logs, problem documents, headers, file names, Redis, process titles or temporary files",
)
def test_no_mark_of_the_patient_is_in_anything_that_is_emitted(embolens: RunningEmbolens, tmp_path: Path) -> None:
    emitted = Emitted()
    pushed = marked_series(tmp_path / "pushed", 1, 240)
    uploaded = marked_series(tmp_path / "uploaded", 2, 160)
    stored = marked_series(tmp_path / "stored", 3, 64, lambda one: setattr(one, "PixelData", b"QZXWVKJ" * 100))
    study = str(dcmread(next(pushed.rglob("*.dcm"))).StudyInstanceUID)

    storescu(embolens.dicom_port, pushed)
    upload = _zip_of(uploaded)
    job_id = emitted.response(
        embolens.http.post("/segment", files={"files": ("QZXWVKJNAME_ANNA.zip", upload, "application/zip")})
    ).json()["id"]
    odd = [
        {"files": ("QZXWVKJNAME.txt", b"QZXWVKJNAME has no images")},
        {"files": ("QZXWVKJNAME.dcm", _bytes_of(uploaded, lambda one: setattr(one, "Modality", "MR")))},
        {"files": ("QZXWVKJNAME.dcm", _bytes_of(uploaded, lambda one: one.__delattr__("PixelData")))},
        {"files": ("QZXWVKJNAME.zip", b"PK\x03\x04QZXWVKJNAME")},
    ]
    answers = [emitted.response(embolens.http.post("/segment", files=files)) for files in odd]
    assert [answer.status_code for answer in answers] == [422, 422, 202, 422]
    files = [path.read_bytes() for path in sorted(stored.rglob("*.dcm"))]
    headers = {"Content-Type": MEDIA_TYPE}
    emitted.response(embolens.http.post("/dicom-web/studies", content=multipart(files), headers=headers))
    emitted.response(embolens.http.post("/dicom-web/studies", content=multipart([b"QZXWVKJNAME"]), headers=headers))
    emitted.response(embolens.http.post("/dicom-web/studies/1.2.3", content=multipart(files[:1]), headers=headers))

    redis = Redis.from_url(_redis_url(embolens))

    def all_ended() -> bool:
        _look_at_processes(embolens, emitted)
        _dump(redis, emitted)
        jobs = embolens.jobs()
        return len(jobs) == 4 and all(
            job["state"] in ("completed", "not_analysable", "failed", "delivering") for job in jobs
        )

    wait_for("the four jobs have a result", all_ended, 200)
    states = {job["state"] for job in embolens.jobs()}
    assert "delivering" in states, states  # the archive refuses

    def refused_delivery() -> bool:
        return any(one["last_error"] for job in embolens.jobs() for one in embolens.job(job["id"])["deliveries"])

    wait_for("a delivery was refused", refused_delivery, 60)
    for job in embolens.jobs():
        for path in ("", "/findings", "/preview.png", "/mask.nii.gz", "/seg.dcm", "/report.pdf", "/key-images.zip"):
            emitted.response(embolens.http.get(f"/segment/{job['id']}{path}"))
    for path in ("/", "/segment", "/health", "/health/ready", "/metrics", "/openapi.json", "/retrieve"):
        emitted.response(embolens.http.get(path))
    emitted.response(embolens.http.get("/dicom-web/studies", params={"PatientID": "QZXWVKJPATIENT"}))
    emitted.response(embolens.http.get("/dicom-web/studies", params={"PatientName": "QZXWVKJ*", "limit": "none"}))
    emitted.response(embolens.http.get(f"/dicom-web/studies/{study}/metadata"))
    emitted.response(embolens.http.delete(f"/segment/{job_id}"))

    _look_at_processes(embolens, emitted)
    _dump(redis, emitted)
    _look_at_files(embolens.data_dir, emitted)
    _look_at_files(tmp_path / "tmp", emitted)
    emitted.add("log", embolens.log.read_bytes())
    assert len(emitted.pieces) > 100
    audit = b"".join(path.read_bytes() for path in (embolens.data_dir / "audit").rglob("*.jsonl"))
    assert b"QZXWVKJPATIENT" in audit
    assert b"QZXWVKJNAME" not in audit.replace(b"PatientName=QZXWVKJ", b"")
    assert emitted.found() == []


def _zip_of(directory: Path) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, path in enumerate(sorted(directory.rglob("*.dcm"))):
            archive.writestr(f"QZXWVKJNAME_ANNA/QZXWVKJ{number}.dcm", path.read_bytes())
    return packed.getvalue()


def _bytes_of(directory: Path, change: Callable[[FileDataset], object]) -> bytes:
    one = dcmread(next(directory.rglob("*.dcm")))
    change(one)
    written = BytesIO()
    one.save_as(written)
    return written.getvalue()


def _redis_url(embolens: RunningEmbolens) -> str:
    environment = Path(f"/proc/{embolens.pid_of('gateway')}/environ").read_bytes().split(b"\0")
    return next(one for one in environment if one.startswith(b"EMBOLENS_REDIS_URL=")).split(b"=", 1)[1].decode()


def _look_at_processes(embolens: RunningEmbolens, emitted: Emitted) -> None:
    pids = [embolens.process.pid, *embolens.children_of(embolens.process.pid)]
    for child in pids[1:]:
        pids += embolens.children_of(child)
    for pid in pids:
        for name in ("cmdline", "comm"):
            try:
                emitted.add(f"title of {pid}", Path(f"/proc/{pid}/{name}").read_bytes())
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue


def _dump(redis: Redis, emitted: Emitted) -> None:
    for key in redis.scan_iter():
        emitted.add("Redis key", key)
        kind = redis.type(key)
        if kind == b"list":
            emitted.pieces += [(f"Redis {key!r}", value) for value in redis.lrange(key, 0, -1)]
        elif kind == b"hash":
            emitted.pieces += [(f"Redis {key!r}", b"%s %s" % pair) for pair in redis.hgetall(key).items()]
        elif kind == b"set":
            emitted.pieces += [(f"Redis {key!r}", value) for value in redis.smembers(key)]
        elif kind == b"zset":
            emitted.pieces += [(f"Redis {key!r}", value) for value in redis.zrange(key, 0, -1)]
        elif kind == b"string":
            emitted.add(f"Redis {key!r}", redis.get(key) or b"")


def _look_at_files(directory: Path, emitted: Emitted) -> None:
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        emitted.add("file name", name.encode())
        if path.is_file() and not _ALLOWED.fullmatch(name):
            content = path.read_bytes()
            emitted.add(f"content of {name}", gzip.decompress(content) if path.suffix == ".gz" else content)
