"""A real archive with DICOMweb and storage commitment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from services.embedded_redis import free_port
from tests.end_to_end.hospital import Orthanc, answers
from tests.services.delivery.peers import wait_until

USER, PASSWORD = "embolens", "opensesame"
_DICOMWEB_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


@contextmanager
def running_orthanc(directory: Path, *, listener_port: int) -> Iterator[Orthanc]:
    """Lets in whoever knows the password, and knows EMBOLENS as a modality at `listener_port`."""
    if {name for _, name in socket.if_nameindex()} != {"lo"}:
        pytest.fail("Orthanc cannot bind to loopback alone: run `make test`, which gives the tests their own network")
    dicom_port, http_port = free_port(), free_port()
    configuration = {
        "Name": "test archive",
        "StorageDirectory": str(directory),
        "IndexDirectory": str(directory),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAlwaysAllowStore": True,
        "DicomModalities": {"embolens": ["EMBOLENS", "127.0.0.1", listener_port]},
        "Plugins": [_DICOMWEB_PLUGIN],
        "OverwriteInstances": True,
    }
    (directory / "orthanc.json").write_text(json.dumps(configuration))
    with (directory / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", "--verbose", str(directory / "orthanc.json")],
            stdout=log,
            stderr=log,
            env=os.environ | {"TCP_NODELAY": "1"},
        )
    http = httpx.Client(base_url=f"http://127.0.0.1:{http_port}", auth=(USER, PASSWORD), timeout=30)
    try:
        wait_until(lambda: answers(http, "/system"), timeout_s=30)
        yield Orthanc(process, dicom_port, http)
    finally:
        http.close()
        process.terminate()
        process.wait(timeout=20)
