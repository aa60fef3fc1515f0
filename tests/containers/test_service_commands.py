"""Each service's command line, settings and health check exactly as the compose file gives them, run as a process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from services.embedded_redis import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRYPOINT = "#!{python}\nfrom cli.app import main\n\nmain()\n"  # as the Dockerfile writes it


@pytest.fixture
def environment(tmp_path: Path, redis_url: str) -> dict[str, str]:
    """What a container has: `embolens` on the path, the code where it lies, and this test's stores and ports."""
    program = tmp_path / "bin" / "embolens"
    program.parent.mkdir()
    program.write_text(ENTRYPOINT.format(python=sys.executable))
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMBOLENS_")}
    return kept | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "EMBOLENS_DATA_DIR": str(tmp_path / "data"),
        "EMBOLENS_DATABASE_URL": f"sqlite:///{tmp_path / 'data.sqlite'}",
        "EMBOLENS_REDIS_URL": redis_url,
        "EMBOLENS_GATEWAY_HOST": "127.0.0.1",
        "EMBOLENS_GATEWAY_PORT": str(free_port()),
        "EMBOLENS_DICOM_HOST": "127.0.0.1",
        "EMBOLENS_DICOM_PORT": str(free_port()),
    }


@pytest.fixture(params=["gateway", "listener", "relay", "worker"])
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    compose = YAML(typ="safe").load(REPOSITORY / "docker-compose.yml")
    described: dict[str, Any] = compose["services"][request.param]
    return described


@pytest.fixture
def running(service: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(
            ["embolens", *service["command"]],
            executable=shutil.which("embolens", path=environment["PATH"]),
            env=_as_given(service) | environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_a_service_becomes_healthy_and_ends_on_sigterm(
    service: dict[str, Any], running: subprocess.Popen[bytes], environment: dict[str, str], tmp_path: Path
) -> None:
    kind, *check = service["healthcheck"]["test"]
    assert kind == "CMD"
    executable = shutil.which(check[0], path=environment["PATH"])
    healthy = False
    deadline = time.monotonic() + 60
    while not healthy and time.monotonic() < deadline and running.poll() is None:
        checked = subprocess.run(check, executable=executable, env=environment, capture_output=True, check=False)
        healthy = checked.returncode == 0
    assert healthy, (tmp_path / "service.log").read_text()

    running.terminate()

    assert running.wait(timeout=15) == 0, (tmp_path / "service.log").read_text()


def test_a_service_that_is_not_there_is_not_healthy(
    service: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    _, *check = service["healthcheck"]["test"]
    executable = shutil.which(check[0], path=environment["PATH"])
    (tmp_path / "data").mkdir()
    checked = subprocess.run(
        check, executable=executable, env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=30
    )
    assert checked.returncode == 1


def _as_given(service: dict[str, Any]) -> dict[str, str]:
    """The service's environment, with compose's `${NAME:-default}` filled in."""
    return {name: re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", str(value)) for name, value in service["environment"].items()}
