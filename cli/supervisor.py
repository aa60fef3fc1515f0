"""The processes of one machine: an embedded Redis, one child per process, restarts, and an end in order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TextIO
from urllib.parse import urlsplit

from cli.gateway_client import GatewayClient
from cli.processes import Process
from cli.serve import PARENT_PID
from imaging.errors import EmbolensError, QueueUnavailable
from services.accounts.exposure import check_authentication, check_secrets
from services.accounts.key_store import KeyStore
from services.embedded_redis import EmbeddedRedis, free_port, start_embedded_redis
from services.settings import Settings
from services.store.database import Database
from services.store.directory_lock import lock_directory

log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 120.0
_DRAIN_S = {Process.LISTENER: 15.0, Process.GATEWAY: 15.0, Process.WORKER: 300.0, Process.RELAY: 15.0}
_SHORT_WAIT_S = 3.0
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 30.0
_STEADY_AFTER_S = 60.0
_ROOT = Path(__file__).resolve().parents[1]


class Supervisor:
    """Use as a context manager, from the main thread: leaving it drains and ends everything it started, by pid.

    Raises:
        ConfigurationError: another supervisor works in the same data directory, or a process would be open to whom it
            must not be.
    """

    def __init__(self, settings: Settings, processes: Sequence[Process], *, output: TextIO | None = None) -> None:
        self._settings = settings
        self._output = output or sys.stdout
        self._gateway_port = settings.gateway_port or free_port()
        self._children = [_Child(process, self._output) for process in processes]
        self._redis: EmbeddedRedis | None = None
        self._redis_directory = settings.data_dir.resolve() / "redis"
        self._redis_restart_at = 0.0
        self._lock: IO[str] | None = None
        self._environment = {
            # The settings say all; what is None in them must not come from our own environment.
            **{name: value for name, value in os.environ.items() if not name.startswith("EMBOLENS_")},
            **_as_environment(settings),
            "EMBOLENS_DATA_DIR": str(settings.data_dir.resolve()),
            "EMBOLENS_GATEWAY_PORT": str(self._gateway_port),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            PARENT_PID: str(os.getpid()),
        }

    @property
    def page_url(self) -> str:
        return f"http://{reachable(self._settings.gateway_host)}:{self._gateway_port}/"

    def __enter__(self) -> Self:
        data_dir = self._settings.data_dir.resolve()
        self._lock = lock_directory(data_dir, "serve", "`embolens serve`")
        database = Database.of(self._settings)
        database.upgrade()
        try:
            self._check_exposure(KeyStore(database))
        finally:
            database.close()
        if not self._settings.redis_url:
            self._redis = start_embedded_redis(self._redis_directory)
        self._environment["EMBOLENS_REDIS_URL"] = self._settings.redis_url or self.embedded_redis_url
        for child in self._children:
            child.start(self._environment)
        return self

    def _check_exposure(self, keys: KeyStore) -> None:
        """As the processes do themselves, and here before they are started again and again."""
        wanted = {child.process for child in self._children}
        if Process.LISTENER in wanted:
            check_secrets(self._settings, self._settings.dicom_host)
        if Process.GATEWAY in wanted:
            check_secrets(self._settings, self._settings.gateway_host)
            check_authentication(self._settings, has_key=keys.has_usable())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on Ctrl-C means: do not wait for it
        try:
            for child in self._children:
                child.drain()
        finally:
            if self._redis is not None:
                self._redis.stop()
            if self._lock is not None:
                self._lock.close()

    @property
    def embedded_redis_url(self) -> str:
        return self._redis.url if self._redis else ""

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Until gateway and listener answer, as far as they are wanted, or `stop` is set.

        Raises:
            EmbolensError: they did not within two minutes (code ``serve.not_ready``).
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not stop.is_set() and not self._ready():
            self.restart_crashed()
            if time.monotonic() > deadline:
                raise EmbolensError("the processes did not become ready", code="serve.not_ready", remedy="see the log")
            stop.wait(0.2)

    def watch(self, stop: threading.Event) -> None:
        """Start again what crashes, until `stop` is set."""
        while not stop.wait(0.2):
            self.restart_crashed()

    def restart_crashed(self) -> None:
        if self._redis is not None and self._redis.process.poll() is not None:
            self._restart_redis(self._redis)
        for child in self._children:
            child.restart_if_crashed(self._environment)

    def _restart_redis(self, ended: EmbeddedRedis) -> None:
        """On the same port, which its clients know; its append-only file brings the queue back."""
        if time.monotonic() < self._redis_restart_at:
            return
        log.error("redis ended with %d; it starts again", ended.process.returncode)
        try:
            self._redis = start_embedded_redis(self._redis_directory, urlsplit(ended.url).port or 0)
        except QueueUnavailable as error:
            log.error("%s; tried again in %.0f s", error, _LONGEST_BACKOFF_S)
            self._redis_restart_at = time.monotonic() + _LONGEST_BACKOFF_S

    def crashes(self, process: Process) -> int:
        """How often this process has ended by itself."""
        return next(child.crashes for child in self._children if child.process is process)

    def _ready(self) -> bool:
        wanted = {child.process for child in self._children}
        if Process.GATEWAY in wanted and not GatewayClient(self.page_url).is_ready():
            return False
        address = (reachable(self._settings.dicom_host), self._settings.dicom_port)
        return Process.LISTENER not in wanted or _accepts(address)


class _Child:
    """One process: its output gets its name in front, its crash a restart after a growing wait."""

    def __init__(self, process: Process, output: TextIO) -> None:
        self.process = process
        self._output = output
        self._backoff_s = _FIRST_BACKOFF_S
        self._restart_at: float | None = None
        self.crashes = 0

    def start(self, environment: dict[str, str]) -> None:
        self._started_at = time.monotonic()
        self._restart_at = None
        self._child = subprocess.Popen(
            [sys.executable, "-m", "cli.app", "serve", "--only", self.process.value],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then drains in order
        )
        assert self._child.stdout is not None
        self._printer = threading.Thread(target=self._print_lines, args=(self._child.stdout,), daemon=True)
        self._printer.start()

    def restart_if_crashed(self, environment: dict[str, str]) -> None:
        code = self._child.poll()
        if code is None:
            return
        now = time.monotonic()
        if self._restart_at is None:
            self.crashes += 1
            if now - self._started_at > _STEADY_AFTER_S:
                self._backoff_s = _FIRST_BACKOFF_S
            log.error("%s ended with %d; it starts again in %.0f s", self.process, code, self._backoff_s)
            self._restart_at = now + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, _LONGEST_BACKOFF_S)
        elif now >= self._restart_at:
            self.start(environment)

    def drain(self) -> None:
        """SIGTERM, time to finish what is in hand, then SIGKILL: what was lost by that comes back by its lease."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            if not self._ends_within(_SHORT_WAIT_S):
                log.warning("%s finishes what it has in hand; Ctrl-C ends it at once", self.process)
                self._child.wait(_DRAIN_S[self.process])
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            log.warning("%s is killed", self.process)
            self._child.kill()
            self._child.wait()
        self._printer.join(timeout=5)

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _print_lines(self, lines: IO[str]) -> None:
        for line in lines:
            self._output.write(f"{self.process:<8} | {line}")
            self._output.flush()
        lines.close()


def _as_environment(settings: Settings) -> dict[str, str]:
    """The settings as the children read them."""
    values = settings.model_dump(exclude_none=True)
    return {f"EMBOLENS_{name.upper()}": str(value) for name, value in values.items()}


def reachable(host: str) -> str:
    """The address under which something bound to `host` is reached from this machine."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def _accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True
