"""What lies below a folder in which others make and remove things meanwhile."""

from __future__ import annotations

import os
from pathlib import Path


def paths_below(folder: Path) -> list[Path]:
    """Files and folders. `Path.rglob` raises where a folder goes away while it looks into it."""
    return [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)]
