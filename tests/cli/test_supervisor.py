"""`embolens serve`: real processes on a bare data directory, crashes, and an end in order."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cli.gateway_client import GatewayClient
from services.accounts.key_store import FIRST_KEY_FILE
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.rows import Priority
from services.task_queue import TaskQueue
from tests.cli.conftest import Embolens


@pytest.fixture
def settings() -> dict[str, str]:
    """Where the processes listen."""
    return {
        "EMBOLENS_GATEWAY_PORT": str(free_port()),
        "EMBOLENS_DICOM_PORT": str(free_port()),
        "EMBOLENS_SWEEP_S": "0.5",
    }


@pytest.fixture
def gateway(settings: dict[str, str]) -> GatewayClient:
    return GatewayClient(f"http://127.0.0.1:{settings['EMBOLENS_GATEWAY_PORT']}/")


@pytest.fixture
def serving(
    environment: dict[str, str], settings: dict[str, str], gateway: GatewayClient, tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """All but the worker, whose processes have tests of their own."""
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.app", "serve", "--only", "gateway,listener,relay"],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=environment | settings,
        )
    try:
        _wait_for(lambda: "embolens is ready: http://" in (tmp_path / "serve.log").read_text())
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_one_command_brings_everything_up_and_sigterm_takes_everything_down(
    serving: subprocess.Popen[bytes],
    gateway: GatewayClient,
    embolens: Embolens,
    settings: dict[str, str],
    tmp_path: Path,
) -> None:
    children = psutil.Process(serving.pid).children(recursive=True)
    assert len(children) == 4 + Settings().dicom_receivers  # three processes and a Redis, and the listener's receivers
    assert gateway.is_ready()
    for process in ("gateway", "listener", "relay"):
        assert embolens("health", process, **settings).returncode == 0

    serving.terminate()

    assert serving.wait(timeout=30) == 0
    assert not any(child.is_running() for child in children)
    log = (tmp_path / "serve.log").read_text()
    assert "gateway  | " in log
    key = (tmp_path / "data" / FIRST_KEY_FILE).read_text().strip()
    assert FIRST_KEY_FILE in log
    assert key not in log
    assert "Traceback" not in log
    for process in ("gateway", "listener"):
        assert embolens("health", process, **settings).returncode == 1


def test_a_crashed_process_is_started_again(serving: subprocess.Popen[bytes], gateway: GatewayClient) -> None:
    before = _child(serving, "gateway")
    before.kill()

    _wait_for(lambda: not gateway.is_ready())
    _wait_for(gateway.is_ready)

    assert _child(serving, "gateway").pid != before.pid


def test_a_redis_that_died_is_started_again_where_its_clients_look_for_it(serving: subprocess.Popen[bytes]) -> None:
    redis = next(child for child in psutil.Process(serving.pid).children() if "redis-server" in child.name())
    port = re.search(r"127\.0\.0\.1:(\d+)", " ".join(redis.cmdline()))  # in its process title
    assert port is not None
    queue = TaskQueue(f"redis://127.0.0.1:{port[1]}/0")

    redis.kill()

    _wait_for(lambda: queue.enqueue("a job", Priority.ROUTINE))
    assert queue.waiting() == {"a job"}
    queue.close()


@pytest.mark.fault("processes", "kill -9 of `embolens serve`", "none of its processes outlives it, Redis included")
def test_nothing_outlives_a_supervisor_that_is_killed(serving: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(serving.pid).children(recursive=True)

    serving.kill()
    serving.wait()

    _wait_for(lambda: all(_has_ended(child) for child in children))


def test_a_second_server_on_the_same_data_is_refused(
    serving: subprocess.Popen[bytes], embolens: Embolens, settings: dict[str, str]
) -> None:
    refused = embolens("serve", "--only", "gateway,relay", **settings)

    assert refused.returncode == 1
    assert "another `embolens serve`" in refused.stderr


def test_ctrl_c_ends_it_as_sigterm_does(serving: subprocess.Popen[bytes]) -> None:
    serving.send_signal(signal.SIGINT)

    assert serving.wait(timeout=30) == 0


def _child(serving: subprocess.Popen[bytes], process: str) -> psutil.Process:
    return next(child for child in psutil.Process(serving.pid).children() if child.cmdline()[-1] == process)


def _has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _wait_for(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
