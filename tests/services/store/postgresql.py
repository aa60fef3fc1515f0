"""A PostgreSQL server of the tests, on a unix socket. initdb refuses root, so root lends it to somebody else."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_READY_TIMEOUT_S = 30.0


class PostgreSql:
    """Use as a context manager: a fresh server, gone with its directory in the end."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.fail("PostgreSQL's server is not installed (Debian: postgresql)")
        self._binaries = found[-1].parent
        self._user = None
        self._directory = Path(tempfile.mkdtemp(prefix="embolens-postgresql-"))
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = next(name for name in ("postgres", "nobody") if name in names)
            shutil.chown(self._directory, self._user)
        self.url = f"postgresql+psycopg://embolens@/postgres?host={self._directory}"

    def __enter__(self) -> Self:
        subprocess.run(
            [self._binaries / "initdb", "-D", self._data, "-U", "embolens", "-A", "trust", "--no-sync"],
            user=self._user, check=True, stdout=subprocess.DEVNULL, cwd=self._directory,
        )  # fmt: skip
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(signal.SIGINT)
        shutil.rmtree(self._directory)

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def start(self) -> None:
        options = ["-k", str(self._directory), "-c", "listen_addresses=", "-c", "fsync=off"]
        self._server = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, *options],
            user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._directory,
        )  # fmt: skip
        is_ready = [str(self._binaries / "pg_isready"), "-h", str(self._directory), "-q"]
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while subprocess.run(is_ready, check=False).returncode != 0:
            assert self._server.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.02)

    def stop(self, number: signal.Signals) -> None:
        """SIGINT ends it in order; SIGQUIT at once (`pg_ctl stop -m immediate`): it recovers at its next start."""
        self._server.send_signal(number)
        self._server.wait(timeout=30)
