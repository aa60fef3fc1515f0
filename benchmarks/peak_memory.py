"""The most memory that something took: run in a process of its own and told by the kernel."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_TELL = "import atexit, pathlib; atexit.register(lambda: print(pathlib.Path('/proc/self/status').read_text()))\n"


def peak_memory_mb(code: str, arguments: Sequence[str] = ()) -> float:
    """MB (10^6 bytes) resident at most while a new Python process ran this code (VmHWM), imports included.

    Raises:
        subprocess.CalledProcessError: the code failed.
    """
    command = [sys.executable, "-c", _TELL + code, *arguments]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return _high_water_mb(said)


def peak_memory_of_process_mb(pid: int) -> float:
    """MB resident at most so far in a running process."""
    return _high_water_mb(Path(f"/proc/{pid}/status").read_text())


def _high_water_mb(status: str) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found, "Linux tells the high-water mark of every living process"
    return int(found[1]) * 1024 / 1e6
