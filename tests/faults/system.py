"""The system that is broken on purpose: its real processes, started again by this harness as an orchestrator would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil
from redis import Redis

from imaging.errors import QueueUnavailable
from services.accounts.key_store import FIRST_KEY_FILE
from services.embedded_redis import EmbeddedRedis, free_port, start_embedded_redis
from services.secret_file import bearer_token
from services.store.database import Database
from tests.end_to_end.hospital import END_STATES, Orthanc, answers, echoes, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
REDIS = "redis"
_SHORTEST_LIFE_S = 0.5  # of a process that crashes as soon as it is started
_DRAIN_S = 60.0


class System:
    """Use as a context manager. Every part that ends is started again, unless it is to stay down.

    Parts are `gateway`, `listener`, `relay`, `worker-1` and so on, and `redis`. The workers have a light segmenter: a
    job takes them about four times `stage_s`.
    """

    def __init__(
        self,
        directory: Path,
        pacs: Orthanc,
        *,
        workers: int = 1,
        stage_s: float = 0.2,
        database_url: str = "",
        wrapper: Sequence[str] = (),
        **settings: str,
    ) -> None:
        """`wrapper` is a Python program, with its arguments, that runs the commands of gateway, listener and relay."""
        self.data_dir = directory / "data"
        self.log = directory / "processes.log"
        self.dicom_port = free_port()
        self.parts = ["redis", "gateway", "listener", "relay", *(f"worker-{n}" for n in range(1, workers + 1))]
        destinations = directory / "destinations.toml"
        destinations.write_text(
            f'[[nodes]]\nae_title = "{pacs.ae_title}"\nhost = "127.0.0.1"\nport = {pacs.dicom_port}\n'
            f'[[routes]]\nto = ["node:{pacs.ae_title}"]\n'
        )
        intake = directory / "intake.toml"
        intake.write_text('[associations]\ncalling_ae_titles = ["CT1"]\n')
        gateway_port = free_port()
        self._redis_directory, self._redis_port = directory / "redis", free_port()
        self.redis_url = f"redis://127.0.0.1:{self._redis_port}/0"
        self._wrapper = list(wrapper)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EMBOLENS_")}
        self._environment = kept | {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "STAGE_S": str(stage_s),
            "EMBOLENS_DATA_DIR": str(self.data_dir),
            "EMBOLENS_DATABASE_URL": database_url,
            "EMBOLENS_REDIS_URL": self.redis_url,
            "EMBOLENS_GATEWAY_PORT": str(gateway_port),
            "EMBOLENS_DICOM_PORT": str(self.dicom_port),
            "EMBOLENS_DESTINATIONS": str(destinations),
            "EMBOLENS_INTAKE_RULES": str(intake),
            "EMBOLENS_SERIES_QUIET_S": "4",
            "EMBOLENS_LEASE_S": "6",
            "EMBOLENS_SWEEP_S": "1",
            "EMBOLENS_DELIVERY_FIRST_BACKOFF_S": "1",
            "EMBOLENS_DELIVERY_MAX_BACKOFF_S": "5",
            **settings,
        }
        self.url = f"http://127.0.0.1:{gateway_port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.database = Database(database_url or f"sqlite:///{self.data_dir / 'embolens.sqlite'}")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started_at: dict[str, float] = {}
        self._stay_down: set[str] = set()
        self._own_environment: dict[str, dict[str, str]] = {}
        self._lock = threading.RLock()
        self._leaving = threading.Event()
        self._keeper = threading.Thread(target=self._keep_running, name="keeper")

    def __enter__(self) -> Self:
        for part in self.parts:
            self._start(part)
        self._keeper.start()
        self.wait_until_ready()
        self.http.headers.update(bearer_token(self.data_dir / FIRST_KEY_FILE))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._keeper.join()
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self.http.close()
        self.database.close()

    def wait_until_ready(self, timeout_s: float = 90) -> None:
        """Gateway and listener answer; relay and workers have been told by their own means."""
        wait_for("the gateway is ready", lambda: answers(self.http, "/health/ready"), timeout_s)
        wait_for("the listener is ready", lambda: echoes(self.dicom_port), timeout_s)

    def pid(self, part: str) -> int:
        return self._processes[part].pid

    def processes_of(self, part: str) -> list[psutil.Process]:
        """What the part runs in: a worker is a process that hands out the work and one that does it."""
        process = psutil.Process(self.pid(part))
        return [process, *process.children(recursive=True)]

    def send_signal(self, part: str, number: signal.Signals) -> None:
        for process in self.processes_of(part):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self, part: str) -> None:
        """kill -9 of its first process; it is started again at once."""
        with self._lock, suppress(ProcessLookupError):
            os.kill(self.pid(part), signal.SIGKILL)

    def is_up(self, part: str) -> bool:
        return part not in self._stay_down

    def put_down(self, part: str, number: signal.Signals = signal.SIGKILL) -> int:
        """End it and leave it down until `start`; returns its exit status."""
        with self._lock:
            self._stay_down.add(part)
            self._processes[part].send_signal(number)
        return self._processes[part].wait(_DRAIN_S)

    def start(self, part: str, **environment: str) -> None:
        """Start what was put down, or one more worker; `environment` is for this part alone."""
        with self._lock:
            self._own_environment[part] = environment
            self._stay_down.discard(part)
            if part not in self.parts:
                self.parts.append(part)
            self._start(part)

    def remove(self, part: str) -> None:
        """End a worker that was one more."""
        self.put_down(part)
        self.parts.remove(part)

    def empty_redis(self) -> None:
        Redis.from_url(self.redis_url).flushall()

    def replace_redis(self) -> None:
        """Another Redis under the same address, which knows nothing."""
        self.put_down(REDIS)
        self._redis_directory = self._redis_directory.with_name(f"{self._redis_directory.name}-next")
        self.start(REDIS)

    def jobs(self, **query: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        params: dict[str, str] = {"limit": "100", **query}
        while True:
            page = self.http.get("/segment", params=params).raise_for_status().json()
            listed += page["jobs"]
            if not (cursor := page.get("next")):
                return listed
            params["cursor"] = cursor

    def job(self, job_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get(f"/segment/{job_id}").raise_for_status().json()
        return answer

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 60) -> dict[str, Any]:
        """The job as it is in one of these states, or in any end where none is named."""
        wanted = set(states) or END_STATES

        def reached() -> dict[str, Any] | None:
            try:
                job = self.job(job_id)
            except httpx.HTTPError:
                return None
            return job if job["state"] in wanted else None

        return wait_for(f"job {job_id} is {' or '.join(sorted(wanted))}", reached, timeout_s)

    def _keep_running(self) -> None:
        while not self._leaving.wait(0.1):
            with self._lock:
                for part in list(self.parts):
                    ended = self._processes[part].poll() is not None
                    old_enough = time.monotonic() - self._started_at[part] > _SHORTEST_LIFE_S
                    if ended and old_enough and part not in self._stay_down:
                        self._start(part)

    def _start(self, part: str) -> None:
        self._started_at[part] = time.monotonic()
        if part == REDIS:
            with suppress(QueueUnavailable):  # tried again by the keeper
                self._processes[part] = self._start_redis().process
            return
        with self.log.open("ab") as log:
            self._processes[part] = subprocess.Popen(
                [sys.executable, *self._command(part)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env=self._environment | self._own_environment.get(part, {}),
            )

    def _start_redis(self) -> EmbeddedRedis:
        return start_embedded_redis(self._redis_directory, urlsplit(self.redis_url).port or 0)

    def _command(self, part: str) -> list[str]:
        if part.startswith("worker"):
            return [*self._wrapper, "tests/worker/threshold_worker.py"]
        return [*(self._wrapper or ["-m"]), "cli.app", "serve", "--only", part]
