"""The gateway as a process: what it loads, how fast it starts, how it ends, how much memory an upload takes."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from api.server import _bind
from services.embedded_redis import free_port
from tests.api.conftest import bearer

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1024**2


@dataclass
class GatewayProcess:
    process: subprocess.Popen[bytes]
    url: str
    started_in_s: float
    data_dir: Path
    log: Path

    @property
    def bearer(self) -> dict[str, str]:
        return bearer(self.data_dir)

    def peak_memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024


@pytest.fixture
def gateway_process(tmp_path: Path, redis_url: str) -> Iterator[GatewayProcess]:
    port = free_port()
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(tmp_path / "data"),
        "EMBOLENS_REDIS_URL": redis_url,
        "EMBOLENS_GATEWAY_PORT": str(port),
    }
    began = time.monotonic()
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "api.server"], cwd=REPOSITORY, env=environment, stderr=stderr)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{url}/health/live", timeout=1)
            break
        except httpx.TransportError:
            assert process.poll() is None, "the gateway ended"
            assert time.monotonic() - began < 30, "the gateway did not start"
            time.sleep(0.02)
    yield GatewayProcess(process, url, time.monotonic() - began, tmp_path / "data", log)
    process.kill()
    process.wait()


def test_gateway_loads_neither_networks_nor_what_writes_results():
    program = (
        "import sys, api.app; print([n for n in ('torch', 'highdicom', 'SimpleITK', 'worker') if n in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=True, timeout=60
    )
    assert printed.stdout.decode().strip() == "[]"


def test_sigterm_ends_it_cleanly_even_while_somebody_listens(gateway_process, nifti):
    print(f"started in {gateway_process.started_in_s:.2f} s")
    url = gateway_process.url
    job = httpx.post(f"{url}/segment", files={"files": ("a", nifti)}, headers=gateway_process.bearer).json()
    with httpx.stream("GET", f"{url}{job['links']['events']}", headers=gateway_process.bearer, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        gateway_process.process.send_signal(signal.SIGTERM)
        for _ in lines:
            pass
    assert gateway_process.process.wait(timeout=20) == 0


def test_memory_does_not_grow_with_the_upload(gateway_process):
    piece = os.urandom(MIB)

    def body() -> Iterator[bytes]:
        yield b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(300):
            yield piece
        yield b"\r\n--xyz--\r\n"

    before = gateway_process.peak_memory_bytes()
    began = time.monotonic()
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"} | gateway_process.bearer
    response = httpx.post(f"{gateway_process.url}/segment", content=body(), headers=headers, timeout=90)
    seconds = time.monotonic() - began

    assert response.json()["code"] == "input.not_dicom"  # it was read to its end and judged
    peak = gateway_process.peak_memory_bytes()
    print(
        f"300 MiB in {seconds:.1f} s ({300 / seconds:.0f} MiB/s), peak {peak / MIB:.0f} MiB, before {before / MIB:.0f}"
    )
    assert peak < 250 * MIB
    assert peak - before < 40 * MIB


def test_error_inside_is_logged_with_its_place_and_without_its_text(gateway_process, nifti):
    url, data_dir = gateway_process.url, gateway_process.data_dir
    (data_dir / "arriving").rmdir()
    assert (
        httpx.post(f"{url}/segment", files={"files": ("a", nifti)}, headers=gateway_process.bearer).status_code == 500
    )
    with sqlite3.connect(data_dir / "embolens.sqlite") as database:
        database.execute("DROP TABLE outbox")
        database.execute("DROP TABLE jobs")
    database.close()
    assert (
        httpx.get(
            f"{url}/segment", params={"study_instance_uid": "1.22.333"}, headers=gateway_process.bearer
        ).status_code
        == 503
    )

    said = gateway_process.log.read_text()
    assert "in arriving_directory" in said
    assert "FileNotFoundError" in said
    assert str(data_dir) not in said
    assert "1.22.333" not in said


def test_no_answer_waits_for_an_acknowledgement():
    """An answer is written in two pieces: by Nagle's algorithm the second waits until the client has said it has the
    first, which a client delays by 40 ms. asyncio turns it off where the listening socket names its protocol."""
    with _bind("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
