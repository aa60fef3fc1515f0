"""A gateway in a process of its own, as `embolens serve` runs it, and the Redis that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.accounts.key_store import FIRST_KEY_FILE
from services.embedded_redis import free_port, start_embedded_redis
from services.secret_file import bearer_token

_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class GatewayProcess:
    """`authorization` is the header that shows the first key, which may do everything; empty where others were made."""

    pid: int
    port: int
    data_dir: Path
    authorization: str


@contextmanager
def running_gateway(directory: Path, **environment: str) -> Iterator[GatewayProcess]:
    """With its data below `directory`, and the shipped settings but for `environment` (without `EMBOLENS_`)."""
    redis, port, data_dir = start_embedded_redis(directory / "redis"), free_port(), directory / "data"
    chosen = {"DATA_DIR": str(data_dir), "REDIS_URL": redis.url, "GATEWAY_PORT": str(port)} | environment
    process = subprocess.Popen(
        [sys.executable, "-m", "api.server"],
        env=os.environ | {f"EMBOLENS_{name}": value for name, value in chosen.items()},
        stderr=(directory / "log").open("wb"),
    )
    try:
        wait_until_answers(f"http://127.0.0.1:{port}/health/live", process)
        yield GatewayProcess(process.pid, port, data_dir, _first_key(data_dir))
    finally:
        process.terminate()
        process.wait(timeout=30)
        redis.stop()


def wait_until_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _first_key(data_dir: Path) -> str:
    path = data_dir / FIRST_KEY_FILE
    return bearer_token(path)["Authorization"] if path.exists() else ""
