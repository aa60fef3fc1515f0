"""An HTTP client that says what it likes, and a gateway process to say it to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.accounts.key_store import FIRST_KEY_FILE
from services.embedded_redis import free_port
from services.secret_file import bearer_token
from tests.paths_below import paths_below

ROOT = Path(__file__).parents[2]
# The gateway's own bounds, lowered: a test does not wait for 20 s.
CONNECTIONS_MAX = 300
_IMPATIENT = f"import api.bounded_protocol as p; p.LOOK_S, p.TAKE_S, p.CONNECTIONS_MAX = 2.0, 2.0, {CONNECTIONS_MAX};"
_RUN = "from services.settings import *; from api.server import *; log_to_stderr(); run_gateway(Settings())"


@dataclass
class WatchedGateway:
    """`run_gateway` in a process of its own, with what /proc says of it."""

    process: subprocess.Popen[bytes]
    port: int
    data_dir: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def highest_memory_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def seconds_to_answer(self) -> float:
        began = time.monotonic()
        httpx.get(f"{self.url}/health/ready", timeout=30).raise_for_status()
        return time.monotonic() - began

    def connect(self, *, receive_buffer: int = 0) -> socket.socket:
        opened = socket.socket()
        if receive_buffer:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        opened.settimeout(60)
        opened.connect(("127.0.0.1", self.port))
        return opened

    @property
    def authorization(self) -> str:
        return bearer_token(self.data_dir / FIRST_KEY_FILE)["Authorization"]

    def upload_head(
        self, size: int | None, path: str = "/segment", content_type: str = "application/octet-stream"
    ) -> bytes:
        """The header of a POST; without a size, chunked."""
        length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", length]
        return "\r\n".join([*head, f"Authorization: {self.authorization}", "", ""]).encode()

    def left_behind(self) -> list[Path]:
        roots = (self.data_dir / "arriving", self.data_dir / "jobs")
        return [path for root in roots for path in paths_below(root)]


@contextmanager
def watched_gateway(directory: Path, redis_url: str, *, impatient: bool) -> Iterator[WatchedGateway]:
    port = free_port()
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(directory / "data"),
        "EMBOLENS_REDIS_URL": redis_url,
        "EMBOLENS_GATEWAY_PORT": str(port),
    }
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-c", (_IMPATIENT if impatient else "") + _RUN]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
    gateway = WatchedGateway(process, port, directory / "data", directory / "log")
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                gateway.seconds_to_answer()
                break
            except httpx.TransportError:
                assert process.poll() is None, "the gateway ended"
                assert time.monotonic() < deadline, "the gateway did not start"
                time.sleep(0.05)
        yield gateway
    finally:
        process.terminate()
        process.wait(timeout=30)


def seconds_until_gone(connection: socket.socket, at_most_s: float) -> float:
    began = time.monotonic()
    connection.settimeout(at_most_s)
    try:
        while connection.recv(1 << 16):
            assert time.monotonic() - began < at_most_s, "still connected"
    except ConnectionError:
        pass
    return time.monotonic() - began
