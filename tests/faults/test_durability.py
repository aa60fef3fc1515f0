"""What is written through to the disk before somebody hears Success: the system calls of real processes, by strace."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset

from services.accounts.key_store import FIRST_KEY_FILE
from services.embedded_redis import free_port
from services.secret_file import bearer_token
from tests.services.ingest.peers import ROOT, ct_series, push, wait_until

SENT = r"(?:sendto|sendmsg|send|write|writev)\(\d+<(?:TCP|socket)"


@contextmanager
def traced(directory: Path, process: str, port: int, redis_url: str, **settings: str) -> Iterator[Path]:
    """A process of Embolens under strace; yields the file in which its calls appear, one a line, in their order."""
    calls = directory / "calls"
    # fmt: off
    command = [
        "strace", "--follow-forks", "--seccomp-bpf", "--decode-fds=all", "--string-limit=64", f"--output={calls}",
        "--trace=fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write,writev",
        sys.executable, "-m", "cli.app", "serve", "--only", process,
    ]
    # fmt: on
    (directory / "intake.toml").write_text("min_slices = 2\n[associations]\npromiscuous = true\n")
    environment = os.environ | settings | {
        "EMBOLENS_DATA_DIR": str(directory / "new" / "data"),
        "EMBOLENS_REDIS_URL": redis_url,
        "EMBOLENS_INTAKE_RULES": str(directory / "intake.toml"),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with (directory / "log").open("wb") as log:
        running = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_until(lambda: accepts(running, port), timeout_s=60)
        yield calls
    finally:
        for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        running.wait(timeout=60)


def accepts(running: subprocess.Popen[bytes], port: int) -> bool:
    assert running.poll() is None, "it ended by itself"
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def place_of(calls: list[str], pattern: str, after: int = 0) -> int:
    for number, call in enumerate(calls[after:], start=after):
        if re.search(pattern, call):
            return number
    raise AssertionError(f"no {pattern} after call {after}:\n" + "\n".join(calls[after:]))


def push_traced(directory: Path, redis_url: str, durability: str, slices: list[Dataset]) -> list[str]:
    port = free_port()
    settings = {"EMBOLENS_DICOM_PORT": str(port), "EMBOLENS_DURABILITY": durability}
    with traced(directory, "listener", port, redis_url, **settings) as calls:
        push(port, slices)
    return calls_in(calls)


def calls_in(trace: Path) -> list[str]:
    """One line a call where it ended, but what was sent where it began; others' calls may come between the two."""
    begun: dict[str, str] = {}
    found = []
    for line in trace.read_text().splitlines():
        pid, call = line.split(maxsplit=1)
        if call.endswith("<unfinished ...>"):
            begun[pid] = f"{pid} {call.removesuffix('<unfinished ...>').rstrip()}"
            if re.match(SENT, call):
                found.append(begun.pop(pid))
        elif call.startswith("<... "):
            if pid in begun:
                found.append(begun.pop(pid) + call.partition("resumed>")[2])
        else:
            found.append(line)
    return found


def file_of(one: Dataset) -> bytes:
    written = BytesIO()
    one.save_as(written, enforce_file_format=True)
    return written.getvalue()


@pytest.mark.fault(
    "power",
    "the power goes the moment after Success to a C-STORE (the order of system calls, by strace)",
    "with EMBOLENS_DURABILITY=power the job's row, the instance and every folder on its way are fsynced before Success",
)
def test_an_instance_is_on_the_disk_before_its_sender_hears_success(tmp_path: Path, redis_url: str) -> None:
    slices = ct_series(2)
    calls = push_traced(tmp_path, redis_url, "power", slices)
    data = tmp_path / "new" / "data"
    for folder in (tmp_path, tmp_path / "new", data):  # new ones of which the listener began
        place_of(calls, rf"fsync\(\d+<{folder}>\)")
    answered = 0
    for number, one in enumerate(slices):
        series = data / "received" / one.StudyInstanceUID / one.SeriesInstanceUID
        written = place_of(calls, rf"fsync\(\d+<{data}/arriving/[\w/-]+>\)", answered)
        renamed = place_of(calls, rf'rename.*"{data}/arriving/[\w/-]+.*{one.SOPInstanceUID}\.dcm"', written)
        renamed = place_of(calls, rf"fsync\(\d+<{series}>\)", renamed) if number == 0 else renamed
        for folder in (series, series.parent, data / "received", data):
            renamed = place_of(calls, rf"fsync\(\d+<{folder}>\)", renamed)
        answered = place_of(calls, SENT, written)
        assert answered > renamed
        if number == 0:  # its job came before it
            place_of(calls[:answered], r"sync\(\d+<[^>]*embolens\.sqlite-wal>\)")


@pytest.mark.fault(
    "power",
    "the power goes the moment after 202 to an upload or 200 to STOW-RS (the order of system calls, by strace)",
    "with EMBOLENS_DURABILITY=power the files, inputs.json, every folder and the job's row are fsynced before 2xx",
)
def test_an_upload_is_on_the_disk_before_it_is_answered(
    tmp_path: Path, redis_url: str, make_nifti: Callable[..., bytes]
) -> None:
    port, one = free_port(), ct_series(1)[0]
    settings = {"EMBOLENS_GATEWAY_PORT": str(port), "EMBOLENS_DURABILITY": "power"}
    with (
        traced(tmp_path, "gateway", port, redis_url, **settings) as trace,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        wait_until((tmp_path / "new" / "data" / FIRST_KEY_FILE).exists, timeout_s=60)  # it listens before it is ready
        client.headers.update(bearer_token(tmp_path / "new" / "data" / FIRST_KEY_FILE))
        job_id = client.post("/segment", files={"files": ("x", make_nifti())}).raise_for_status().json()["id"]
        body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file_of(one) + b"\r\n--b--\r\n"
        content_type = 'multipart/related; type="application/dicom"; boundary=b'
        headers = {"Content-Type": content_type}
        assert client.post("/dicom-web/studies", content=body, headers=headers).status_code == 200
    calls, data = calls_in(trace), tmp_path / "new" / "data"
    job = data / "jobs" / job_id

    accepted = place_of(calls, rf'{SENT}.*"HTTP/1\.1 202')
    before = calls[:accepted]
    file = place_of(before, rf"fsync\(\d+<{data}/arriving/\w+/\w+>\)")
    folder = place_of(before, rf"fsync\(\d+<{data}/arriving/[\w-]+>\)", file)
    moved = place_of(before, rf'rename.*"{data}/arriving/\w+".*"{job}/input"', folder)
    for one_folder in (job, data / "jobs", data):
        place_of(before, rf"fsync\(\d+<{one_folder}>\)", moved)
    recorded = place_of(before, rf'rename.*"{job}/inputs\.json"', moved)
    recorded = place_of(before, rf"fsync\(\d+<{job}>\)", recorded)
    place_of(before, r"sync\(\d+<[^>]*embolens\.sqlite-wal>\)", recorded)

    stored = place_of(calls, rf'{SENT}.*"HTTP/1\.1 200', accepted)
    part = place_of(calls[:stored], rf"fsync\(\d+<{data}/arriving/\w+/part>\)", accepted)
    moved = place_of(calls[:stored], rf'rename.*"{data}/received/.*{one.SOPInstanceUID}\.dcm"', part)
    place_of(calls[:stored], rf"fsync\(\d+<{data / 'received'}>\)", moved)
    place_of(calls[:stored], r"sync\(\d+<[^>]*embolens\.sqlite-wal>\)", moved)


def test_a_file_put_there_by_one_that_died_is_written_through_before_it_is_acknowledged_again(
    tmp_path: Path, redis_url: str
) -> None:
    one = ct_series(1)[0]
    calls = push_traced(tmp_path, redis_url, "power", [one, one])
    series = tmp_path / "new" / "data" / "received" / one.StudyInstanceUID / one.SeriesInstanceUID
    renamed = place_of(calls, rf'rename.*{one.SOPInstanceUID}\.dcm"')
    first_answer = place_of(calls, SENT, renamed)
    again = place_of(calls, rf"fsync\(\d+<{series}/{one.SOPInstanceUID}\.dcm>\)", first_answer)
    place_of(calls, SENT, place_of(calls, rf"fsync\(\d+<{series}>\)", again))


def test_process_durability_waits_for_no_disk(tmp_path: Path, redis_url: str) -> None:
    slices = ct_series(3)
    calls = push_traced(tmp_path, redis_url, "process", slices)
    place_of(calls, rf'rename.*{slices[2].SOPInstanceUID}\.dcm"')
    assert not [call for call in calls if " fsync(" in call]  # SQLite makes its own files with fdatasync
