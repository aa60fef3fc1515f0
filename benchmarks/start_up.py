"""How long the processes take from their start until they work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks import machine
from benchmarks.page import Figure, Goal, Page, Row
from benchmarks.side_by_side import side_by_side
from services.embedded_redis import free_port, start_embedded_redis

_LOOK_EVERY_S = 0.005
_TIMEOUT_S = 60.0


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory() as scratch:
        redis = start_embedded_redis(Path(scratch) / "redis")
        try:
            start = _Start(Path(scratch), redis.url)
            figures = side_by_side(
                {
                    "gateway": lambda: start.until("gateway", start.gateway_answers),
                    "listener": lambda: start.until("listener", start.listener_echoes),
                    "worker": lambda: start.until("worker", start.worker_is_ready),
                    "serve": lambda: start.until("", lambda: start.gateway_answers() and start.listener_echoes()),
                    "python": _python,
                    "torch": lambda: _python("import torch, scipy, highdicom, cc3d"),
                },
                rounds=rounds,
            )
        finally:
            redis.stop()
    python, libraries = figures["python"], figures["torch"]
    return Page(
        title="Start",
        how=_HOW.format(
            versions=", ".join(machine.version(name) for name in ("fastapi", "pynetdicom", "celery", "torch")),
            python=python.median,
            libraries=libraries.median,
        ),
        rows=(
            _row("gateway: `/health/live` answers", figures["gateway"], 2.0),
            _row("listener: C-ECHO is answered", figures["listener"], 2.0),
            _row("worker: takes jobs, its networks loaded", figures["worker"], 8.0),
            _row("`embolens serve`, all processes and Redis: both answer", figures["serve"], None),
        ),
    )


def _row(what: str, figure: Figure, goal_s: float | None) -> Row:
    return Row(
        what=what,
        unit="s",
        higher_is_better=False,
        ours=figure,
        goals=() if goal_s is None else (Goal(says=f"within {goal_s:g} s", met=figure.median <= goal_s),),
    )


def _python(code: str = "pass") -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


class _Start:
    """Processes on one data directory, whose database is there already; each is ended before the next is started."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._log = folder / "log"
        self._gateway_port, self._dicom_port = free_port(), free_port()
        (folder / "intake.toml").write_text("[associations]\npromiscuous = true\n")
        self._environment = os.environ | {
            "EMBOLENS_DATA_DIR": str(folder / "data"),
            "EMBOLENS_REDIS_URL": redis_url,
            "EMBOLENS_GATEWAY_PORT": str(self._gateway_port),
            "EMBOLENS_DICOM_PORT": str(self._dicom_port),
            "EMBOLENS_INTAKE_RULES": str(folder / "intake.toml"),
        }

    def until(self, process: str, works: Callable[[], bool]) -> float:
        """Seconds from the start of the process (none named: of `embolens serve`) until it works."""
        began = time.perf_counter()
        with self._running(process) as running:
            while not works():
                if running.poll() is not None or time.perf_counter() - began > _TIMEOUT_S:
                    raise RuntimeError(f"{process or 'serve'} did not start: {self._log.read_text()[-2000:]}")
                time.sleep(_LOOK_EVERY_S)
            return time.perf_counter() - began

    def gateway_answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._gateway_port}/health/live").is_success
        except httpx.TransportError:
            return False

    def listener_echoes(self) -> bool:
        command = ["echoscu", "-to", "1", "-aec", "EMBOLENS", "127.0.0.1", str(self._dicom_port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def worker_is_ready(self) -> bool:
        """Celery listens to the queue, and the process of its pool has loaded the networks."""
        said = self._log.read_text()
        return " ready." in said and "model package" in said

    @contextmanager
    def _running(self, process: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "cli.app", "serve", *(["--only", process] if process else [])]
        with self._log.open("wb") as log:
            running = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        try:
            yield running
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(timeout=60)


_HOW = """\
From the start of a process to the first answer, on a data directory that has its database, everything it reads in the
page cache; Redis runs, but for `embolens serve`, which is given the same one. The worker counts as ready when it
takes jobs: Celery listens, and the process of its pool has loaded the networks of the shipped package. Python alone
takes {python:.2f} s, Python with torch, scipy, highdicom and cc3d {libraries:.2f} s: that is what the worker cannot
go below. {versions}.
"""
