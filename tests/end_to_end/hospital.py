"""The hospital around a running Embolens: Orthanc as its PACS, dcmtk as what pushes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from services.embedded_redis import free_port

T = TypeVar("T")
END_STATES = {"completed", "not_analysable", "cancelled", "failed"}


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float) -> T:
    """The first answer that is not None or False; fails with `what` when time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.1)
    pytest.fail(f"not within {timeout_s:g} s: {what}")


@dataclass
class Orthanc:
    """A real PACS."""

    process: subprocess.Popen[bytes]
    dicom_port: int
    http: httpx.Client
    ae_title: str = "ORTHANC"

    def instances(self, series_instance_uid: str | None = None, modality: str = "SEG") -> list[dict[str, Any]]:
        query: dict[str, str] = {"Modality": modality}
        if series_instance_uid:
            query["SeriesInstanceUID"] = series_instance_uid
        found = self.http.post("/tools/find", json={"Level": "Instance", "Query": query, "Expand": True})
        found.raise_for_status()
        answer: list[dict[str, Any]] = found.json()
        return answer

    def file(self, instance_id: str) -> bytes:
        return self.http.get(f"/instances/{instance_id}/file").raise_for_status().content


DICOMWEB_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


@contextmanager
def running_orthanc(directory: Path, *, user: tuple[str, str] | None = None, **configuration: Any) -> Iterator[Orthanc]:
    """Orthanc on free ports, with these settings beside ours; ended by its process id. With a `user`, and that one's
    password, it lets in nobody else."""
    if {name for _, name in socket.if_nameindex()} != {"lo"}:
        pytest.fail("Orthanc cannot bind to loopback alone: run `make test`, which gives the tests their own network")
    dicom_port, http_port = free_port(), free_port()
    merged: dict[str, Any] = {
        "Name": "test PACS",
        "StorageDirectory": str(directory),
        "IndexDirectory": str(directory),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": user is not None,
        "RegisteredUsers": dict([user] if user else []),
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
        "OverwriteInstances": True,
        **configuration,
    }
    (directory / "orthanc.json").write_text(json.dumps(merged))
    with (directory / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", str(directory / "orthanc.json")],
            stdout=log,
            stderr=log,
            env=os.environ | {"TCP_NODELAY": "1"},
        )
    http = httpx.Client(base_url=f"http://127.0.0.1:{http_port}", auth=user, timeout=30)
    try:
        wait_for("Orthanc answers", lambda: answers(http, "/system"), 30)
        yield Orthanc(process, dicom_port, http)
    finally:
        http.close()
        process.terminate()
        process.wait(timeout=20)


@dataclass
class RunningEmbolens:
    """`embolens serve` as an operator runs it."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    dicom_port: int
    data_dir: Path
    log: Path

    def jobs(self, **query: str) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self.http.get("/segment", params=query).raise_for_status().json()["jobs"]
        return answer

    def job(self, job_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/segment/{job_id}").raise_for_status().json()
        return answer

    def wait_for_end(self, job_id: str, timeout_s: float = 150) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["state"] in END_STATES else None

        return wait_for(f"job {job_id} ends", ended, timeout_s)

    def wait_for_series(self, series_instance_uid: str, timeout_s: float = 150) -> dict[str, Any]:
        def newest() -> str | None:
            jobs = self.jobs(series_instance_uid=series_instance_uid, source="dicom")
            return jobs[0]["id"] if jobs else None

        return self.wait_for_end(wait_for("the pushed series appears", newest, 20), timeout_s)

    def submit(self, *files: Path, **form: str) -> dict[str, Any]:
        parts = [("files", (path.name, path.read_bytes())) for path in files]
        answer: dict[str, Any] = self.http.post("/segment", files=parts, data=form).raise_for_status().json()
        return answer

    def pid_of(self, process: str) -> int:
        """The process that `serve --only <process>` runs in, found below the supervisor."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.process.pid and "--only" in command and command[command.index("--only") + 1] == process:
                return int(entry.name)
        raise LookupError(process)

    def children_of(self, pid: int) -> list[int]:
        tasks = (Path(f"/proc/{pid}/task/{pid}/children")).read_text().split()
        return [int(child) for child in tasks]

    def kill(self, process: str) -> None:
        """kill -9 of a process and of what it forked, as the kernel would when memory runs out."""
        pid = self.pid_of(process)
        for victim in (*self.children_of(pid), pid):
            os.kill(victim, signal.SIGKILL)


def answers(http: httpx.Client, path: str) -> bool:
    try:
        return http.get(path).status_code == 200
    except httpx.TransportError:
        return False


def echoes(port: int) -> bool:
    """Asked as the node that these tests list."""
    command = ["echoscu", "-aet", "ORTHANC", "-aec", "EMBOLENS", "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def storescu(
    port: int, directory: Path, *, calling_ae_title: str = "ORTHANC", called_ae_title: str = "EMBOLENS"
) -> None:
    """Push a folder with dcmtk."""
    command = ["storescu", "-aet", calling_ae_title, "-aec", called_ae_title, "127.0.0.1", str(port), "+sd", "+r"]
    subprocess.run(
        [*command, str(directory)], check=True, capture_output=True, env=os.environ | {"TCP_NODELAY": "1"}, timeout=120
    )
