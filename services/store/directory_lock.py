"""One process of a kind per data directory."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from imaging.errors import ConfigurationError


def lock_directory(data_dir: Path, name: str, holder: str) -> IO[str]:
    """Hold `<name>.lock` in the data directory until the returned file is closed, or the process ends however it may.

    Raises:
        ConfigurationError: another process, called `holder` in the message, holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    lock = (data_dir / f"{name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigurationError(
            f"another {holder} works in {data_dir}", remedy="stop it, or set EMBOLENS_DATA_DIR"
        ) from None
    return lock
