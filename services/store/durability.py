"""What an acknowledged file survives, and what that takes."""

from __future__ import annotations

import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path


class Durability(StrEnum):
    """`process`: the end of any process, since the kernel has the file. `power`: the end of the kernel too, since the
    file and every directory on the way to it were written through (fsync) before anybody was told."""

    PROCESS = "process"
    POWER = "power"


def sync(path: Path) -> None:
    """Write a file, or what a directory lists, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """All files below a directory, every directory after what it lists."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))


def sync_way(directory: Path, top: Path) -> None:
    """A directory and those above it up to `top`: which of them are new is another process's knowledge too."""
    for one in (directory, *directory.parents):
        sync(one)
        if one == top:
            return


def sync_to_mount_point(directory: Path) -> None:
    """A directory and those above it on its file system: whoever made them, they may be new."""
    for one in (directory, *directory.parents):
        with suppress(PermissionError):  # what this account may not list, it has not made
            sync(one)
        if one.is_mount():
            return
