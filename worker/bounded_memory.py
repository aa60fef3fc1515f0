"""A job that wants more memory than there is gets an error, instead of making the kernel kill a neighbour."""

from __future__ import annotations

import logging
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_LIMITS_OF_THE_CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_FIRST_TO_GO = 500  # of -1000..1000: where the kernel must kill all the same, it takes this process (proc(5))


def bound_memory(job_bytes: int) -> None:
    """From now on this process may take `job_bytes` more than it has; 0: as much as the machine or its container has.

    What counts is private writable memory (RLIMIT_DATA): unlike the address space it leaves alone what CUDA only
    reserves. Who asks for more gets a MemoryError, from torch a RuntimeError. Linux only.
    """
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO))
    limit = _data_bytes() + (job_bytes or _available_bytes())
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        log.info("a job may take %.1f GB of memory", (limit - _data_bytes()) / 1e9)


def _data_bytes() -> int:
    """Private writable memory that this process has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def _available_bytes() -> int:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in map(Path, _LIMITS_OF_THE_CONTAINER):
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            return min(physical, int(limit))
    return physical
