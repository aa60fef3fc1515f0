"""Small disks to fill."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1024**2


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own."""

    path: Path

    def fill(self, *, leave_bytes: int = 0) -> None:
        """With a file that is nobody's, until so much is free; 0: until it takes no byte more."""
        with (self.path / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
            while (free := self.free_bytes) > leave_bytes or not leave_bytes:
                ballast.write(bytes(min(MIB, max(free - leave_bytes, 1))))

    def make_room(self) -> None:
        (self.path / "ballast").unlink()

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Mounts file systems of so many bytes; they are gone with the test."""
    mounted: list[Path] = []

    def mount(size_bytes: int) -> SmallDisk:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", path], capture_output=True, check=False
        )
        if done.returncode:
            pytest.fail("a disk cannot be mounted here: run `make test`, which gives the tests mounts of their own")
        mounted.append(path)
        return SmallDisk(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)
