"""What this machine can do at best: its processor, and the measured rates that physical floors follow from."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def description() -> str:
    """One line: processor, cores, memory, system."""
    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    graphics = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores, {memory_gib:.0f} GiB{graphics}, {platform.system()} {platform.release()}"


def version(package: str) -> str:
    """E.g. "pynetdicom 3.0.4"."""
    return f"{package} {metadata.version(package)}"


def program_version(program: str) -> str:
    """E.g. "1.10.1", of a program that tells with `--version`."""
    said = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else "of unknown version"


@functools.cache
def memory_copy_bytes_per_s() -> float:
    """Bytes copied per second by one thread, each read once and written once."""
    source = np.zeros(2**28, np.uint8)
    target = np.empty_like(source)
    return len(source) / _best_of(lambda: np.copyto(target, source))


@functools.cache
def file_write_bytes_per_s(folder: Path | None = None) -> float:
    """Bytes per second that one thread writes into the page cache of that folder's file system, in files of 0.5 MB."""
    data = bytes(2**19)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:

        def write() -> None:
            for number in range(200):
                with (Path(scratch) / str(number)).open("wb") as file:
                    file.write(data)

        return 200 * len(data) / _best_of(write)


@functools.cache
def matrix_flops_per_s(dtype: torch.dtype = torch.float32) -> float:
    """FLOPs per second (2 per multiply-add) of a large matrix product on every core of this machine."""
    side = 2048
    left, right = torch.rand(side, side, dtype=dtype), torch.rand(side, side, dtype=dtype)
    return 2 * side**3 / _best_of(lambda: left @ right)


def flops_of(network: nn.Module, shape: Sequence[int]) -> int:
    """Of one forward of an input of this shape, in eager PyTorch."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(*shape))
    return int(counter.get_total_flops())


def _best_of(run: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of some runs: a floor is what is possible, not what is usual."""
    took = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        run()
        took.append(time.perf_counter() - begun)
    return min(took)
