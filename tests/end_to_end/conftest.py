"""A running Embolens, and the hospital around it: Orthanc, dcmtk. Everything on loopback, ended by process id."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from models.packages import default_package_directory
from services.accounts.key_store import FIRST_KEY_FILE
from services.embedded_redis import free_port
from services.secret_file import bearer_token
from tests.end_to_end.hospital import (
    DICOMWEB_PLUGIN,
    Orthanc,
    RunningEmbolens,
    answers,
    echoes,
    running_orthanc,
    wait_for,
)

REPOSITORY = Path(__file__).resolve().parents[2]
# Of the real series some candidates lie above this score, and none near it.
CANDIDATE_SCORE, CANDIDATE_VOXEL = 0.165, 0.05


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), Plugins=[DICOMWEB_PLUGIN]) as running:
        yield running


@pytest.fixture(scope="session")
def embolens(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc) -> Iterator[RunningEmbolens]:
    """As it is shipped, with an archive that has to commit to what it takes."""
    committing = "commitment = true\ncommitment_limit_s = 5\n"
    with running_embolens(tmp_path_factory.mktemp("embolens"), orthanc, committing) as running:
        # Where it reports to.
        us = {"AET": "EMBOLENS", "Host": "127.0.0.1", "Port": running.dicom_port}
        orthanc.http.put("/modalities/embolens", json=us).raise_for_status()
        yield running


@pytest.fixture(scope="module")
def embolens_of_candidates(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc) -> Iterator[RunningEmbolens]:
    """With a package that reports weak candidates too: on a scan without findings there would be nothing to compare."""
    directory = tmp_path_factory.mktemp("candidates")
    package = directory / "package"
    shutil.copytree(default_package_directory(), package)
    manifest = package / "package.toml"
    text = manifest.read_text("utf-8")
    for name, value in (("score", CANDIDATE_SCORE), ("voxel", CANDIDATE_VOXEL)):
        text, replaced = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
        assert replaced == 1
    manifest.write_text(text, encoding="utf-8")
    with running_embolens(directory, orthanc, EMBOLENS_PACKAGE_DIR=str(package)) as running:
        yield running


@contextmanager
def running_embolens(
    directory: Path, orthanc: Orthanc, of_the_node: str = "", **settings: str
) -> Iterator[RunningEmbolens]:
    """All processes, one embedded Redis, results go back to Orthanc."""
    (directory / "destinations.toml").write_text(
        f'[[nodes]]\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {orthanc.dicom_port}\n{of_the_node}'
    )
    gateway_port, dicom_port = free_port(), free_port()
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(directory / "data"),
        "EMBOLENS_GATEWAY_PORT": str(gateway_port),
        "EMBOLENS_DICOM_PORT": str(dicom_port),
        "EMBOLENS_DESTINATIONS": str(directory / "destinations.toml"),
        "EMBOLENS_SERIES_QUIET_S": "5",
        "EMBOLENS_LEASE_S": "6",
        "EMBOLENS_SWEEP_S": "1",
        "EMBOLENS_DELIVERY_FIRST_BACKOFF_S": "1",
        **settings,
    }
    environment.pop("EMBOLENS_REDIS_URL", None)
    log = directory / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.app", "serve"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=environment,
        )
    http = httpx.Client(base_url=f"http://127.0.0.1:{gateway_port}", timeout=60)
    try:
        wait_for("the gateway is ready", lambda: answers(http, "/health/ready"), 60)
        http.headers.update(bearer_token(directory / "data" / FIRST_KEY_FILE))
        wait_for("the listener is ready", lambda: echoes(dicom_port), 60)
        yield RunningEmbolens(process, http, dicom_port, directory / "data", log)
    finally:
        http.close()
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"`embolens serve` did not drain within 30 s:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def real_series(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks a series of the real data by the beginning of its archive's name."""

    def unpack(name: str) -> Path:
        archive = next((shared_data / "chest_ct").glob(f"{name}*.tar.xz"))
        directory = tmp_path_factory.mktemp(name)
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter="data")
        return directory

    return unpack
