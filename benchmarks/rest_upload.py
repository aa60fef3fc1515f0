"""Uploads by HTTP: a series as files, as a zip and by STOW-RS, one big NIfTI; and the memory that 5 GiB take."""

from __future__ import annotations

import http.client
import math
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from benchmarks import machine
from benchmarks.emptied_files import emptied_afterwards, empty_files
from benchmarks.gateway_process import GatewayProcess, running_gateway
from benchmarks.page import Figure, Floor, Goal, Page, Row
from benchmarks.peak_memory import peak_memory_of_process_mb
from benchmarks.side_by_side import side_by_side
from services.embedded_redis import free_port
from tests.end_to_end.hospital import DICOMWEB_PLUGIN, running_orthanc
from tests.services.ingest.peers import ct_series, save

SLICES = 400
_NIFTI_SHAPE = (512, 512, 800)
_GIB = 1024**3
_LARGE_BYTES = 5 * _GIB - 1024**2  # what is allowed, with room for the rest of a request
_MEMORY_GOAL_MB = 250.0
_OF_FLOOR, _OF_ORTHANC = 0.6, 3.0
_ORTHANC_INSTANCES = ("Orthanc /instances", "Orthanc /instances, 4 clients")
_CLIENTS = 4
_BOUNDARY = "embolens-boundary"

_HOW = f"""
{SLICES} CT slices of 0.53 MB and one NIfTI of 0.42 GB, sent from a file by `sendfile` over loopback by one client with
`TCP_NODELAY`; the time is from the first byte sent to the last of the answer, which says that the job is queued: our
figure has in it that every file is digested (SHA-256; not by STOW-RS), its header read and the job recorded. Our limit
of requests per second is off. The floor is a process that receives the same bytes over the same loopback and writes
them to the same disk, in as many files of the same size, each renamed when it is whole; it looks at nothing. Orthanc
gets every file by `POST /instances`, by one client on one kept connection and by four clients on one each (as a zip in
one request it takes longer), and STOW-RS by its plugin; it too reads headers, and writes an index. `KeepAlive` and
`TcpNoDelay` are on, `HttpThreadsCount` is as it comes. Durability `process`: nobody calls fsync. Since ext4 makes new
files slowly for a while after deleting others, what was stored is emptied and left, and Orthanc, which would not store
the same again, begins every turn anew with an empty folder and has had another slice before. The memory is that of
the gateway's process (VmHWM) after one upload of 5 GiB.
"""


@dataclass(frozen=True)
class _Request:
    """`head` is sent before the content of `body`."""

    head: bytes
    body: Path

    @classmethod
    def post(cls, path: str, content_type: str, body: Path, authorization: str = "") -> _Request:
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}"]
        lines += [f"Content-Length: {body.stat().st_size}"] + [f"Authorization: {authorization}"] * bool(authorization)
        return cls("\r\n".join([*lines, "", ""]).encode(), body)


def measure(rounds: int) -> Page:
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        bodies = _Bodies.made(scratch)
        (scratch / "gateway").mkdir()
        gateway = opened.enter_context(running_gateway(scratch / "gateway", REQUESTS_PER_SECOND="0"))
        (scratch / "floor").mkdir()
        raw_port = opened.enter_context(_raw_receiver(scratch / "floor"))
        ours = partial(_ours, gateway)
        theirs = partial(_theirs, scratch, bodies.warming)
        related, form = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}', "multipart/form-data"
        ways: dict[str, Callable[[], float]] = {
            "Orthanc /instances": lambda: theirs("/instances", "application/dicom", bodies.files),
            "files": lambda: ours("/segment", f"{form}; boundary={_BOUNDARY}", bodies.form),
            "zip": lambda: ours("/segment", "application/zip", bodies.zip),
            "Orthanc /instances, 4 clients": lambda: theirs("/instances", "application/dicom", bodies.files, _CLIENTS),
            "STOW-RS": lambda: ours("/dicom-web/studies", related, bodies.related),
            "NIfTI": lambda: ours("/segment", "application/octet-stream", bodies.nifti),
            "Orthanc STOW-RS": lambda: theirs("/dicom-web/studies", related, [bodies.related]),
            "floor": lambda: _floor(raw_port, scratch / "floor", bodies.zip, SLICES),
            "floor NIfTI": lambda: _floor(raw_port, scratch / "floor", bodies.nifti, 1),
        }
        found = side_by_side(ways, rounds=rounds, unit="MB/s")
        memory_mb = _memory_of_a_large_upload_mb(gateway, scratch / "large")
    return Page(
        title="Uploads by REST",
        how=f"{_HOW}Orthanc {machine.program_version('Orthanc')}, {machine.version('uvicorn')}, "
        f"{machine.version('python-multipart')}.",
        rows=(
            *(_row(what, found[what], found, _ORTHANC_INSTANCES) for what in ("files", "zip")),
            _row("STOW-RS", found["STOW-RS"], found, ("Orthanc STOW-RS",)),
            _row("NIfTI", found["NIfTI"], found, ()),
            Row(
                what="most memory of the gateway during an upload of 5 GiB",
                unit="MB",
                higher_is_better=False,
                ours=Figure(name="ours", samples=(memory_mb,)),
                goals=(Goal(says=f"under {_MEMORY_GOAL_MB:g} MB", met=memory_mb < _MEMORY_GOAL_MB),),
            ),
        ),
    )


def _row(what: str, ours: Figure, found: dict[str, Figure], others: Sequence[str]) -> Row:
    floor = found["floor NIfTI" if what == "NIfTI" else "floor"].median
    goals = [Goal(says=f"{_OF_FLOOR:.0%} of the floor", met=ours.median >= _OF_FLOOR * floor)]
    compared = tuple(found[name] for name in others)
    if compared:
        best = max(one.median for one in compared)
        goals.append(Goal(says=f"{_OF_ORTHANC:g} x Orthanc", met=ours.median >= _OF_ORTHANC * best))
    said = {"files": "as multipart files", "zip": "as a stored zip", "STOW-RS": "by STOW-RS"}
    return Row(
        what="one NIfTI" if what == "NIfTI" else f"{SLICES} slices {said[what]}",
        unit="MB/s",
        higher_is_better=True,
        ours=ours,
        others=compared,
        floor=Floor(value=floor, why="socket to files"),
        goals=tuple(goals),
    )


@dataclass(frozen=True)
class _Bodies:
    files: list[Path]
    warming: Path
    form: Path
    related: Path
    zip: Path
    nifti: Path

    @classmethod
    def made(cls, scratch: Path) -> _Bodies:
        files = save(ct_series(SLICES, size=512), scratch / "series")
        (warming,) = save(ct_series(1, size=512), scratch / "other")
        form, related, archive, nifti = (scratch / name for name in ("form", "related", "zip", "volume.nii"))
        _write_multipart(form, files, 'Content-Disposition: form-data; name="files"; filename="a"')
        _write_multipart(related, files, "Content-Type: application/dicom")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
            for file in files:
                opened.write(file, file.name)
        voxels = np.random.default_rng(0).integers(-1000, 1000, _NIFTI_SHAPE, dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.7, 0.7, 0.5, 1.0])), nifti)
        return cls(files, warming, form, related, archive, nifti)


def _write_multipart(body: Path, files: Sequence[Path], header: str) -> None:
    with body.open("wb") as whole:
        for file in files:
            whole.write(f"--{_BOUNDARY}\r\n{header}\r\n\r\n".encode() + file.read_bytes() + b"\r\n")
        whole.write(f"--{_BOUNDARY}--\r\n".encode())


def _ours(gateway: GatewayProcess, path: str, content_type: str, body: Path) -> float:
    """MB/s."""
    request = _Request.post(path, content_type, body, gateway.authorization)
    rate = _sent_mb_per_s(gateway.port, [request], {200, 202})
    for stored in ("jobs", "received"):
        with suppress(FileNotFoundError):
            empty_files((gateway.data_dir / stored).rename(gateway.data_dir / uuid.uuid4().hex))
    return rate


def _theirs(
    scratch: Path, warming: Path, path: str, content_type: str, bodies: Sequence[Path], clients: int = 1
) -> float:
    """MB/s."""
    requests = [_Request.post(path, content_type, body) for body in bodies]
    folder = Path(tempfile.mkdtemp(dir=scratch))
    with (
        emptied_afterwards(folder),
        running_orthanc(folder, Plugins=[DICOMWEB_PLUGIN], KeepAlive=True, TcpNoDelay=True) as orthanc,
    ):
        port = orthanc.http.base_url.port
        assert port is not None
        _send(port, [_Request.post("/instances", "application/dicom", warming)], {200})
        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(lambda client: _send(port, requests[client::clients], {200}), range(clients)))
        seconds = time.perf_counter() - begun
    return sum(body.stat().st_size for body in bodies) / 1e6 / seconds


def _sent_mb_per_s(port: int, requests: Sequence[_Request], expected: set[int]) -> float:
    begun = time.perf_counter()
    _send(port, requests, expected)
    return sum(request.body.stat().st_size for request in requests) / 1e6 / (time.perf_counter() - begun)


def _send(port: int, requests: Sequence[_Request], expected: set[int]) -> None:
    """One after the other on one connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            with request.body.open("rb") as content:
                connection.sendall(request.head)
                connection.sendfile(content)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            said = answer.read()
            assert answer.status in expected, said[:1000]


def _floor(port: int, folder: Path, body: Path, files: int) -> float:
    """MB/s."""
    length = body.stat().st_size
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection, body.open("rb") as content:
        connection.sendall(length.to_bytes(8, "little") + math.ceil(length / files).to_bytes(8, "little"))
        connection.sendfile(content)
        assert connection.recv(1) == b"!"
    seconds = time.perf_counter() - begun
    empty_files(folder)
    return length / 1e6 / seconds


def _memory_of_a_large_upload_mb(gateway: GatewayProcess, body: Path) -> float:
    with body.open("wb") as file:  # sparse: it is what is received that counts
        file.truncate(_LARGE_BYTES)
    request = _Request.post("/segment", "application/octet-stream", body, gateway.authorization)
    _sent_mb_per_s(gateway.port, [request], {422})  # it is read to its end, and is no image
    return peak_memory_of_process_mb(gateway.pid)


@contextmanager
def _raw_receiver(folder: Path) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.raw_receiver", str(port), str(folder)])
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)
