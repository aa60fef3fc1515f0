"""What tools that are not ours say of a DICOM object: dicom3tools and dcmtk."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def dciodvfy_errors(path: Path) -> list[str]:
    return _errors(["dciodvfy", "-new", str(path)])


def dcentvfy_errors(paths: Sequence[Path]) -> list[str]:
    """Whether objects agree on their patient, study, series and frame of reference."""
    return _errors(["dcentvfy", *map(str, paths)])


def dsrdump(path: Path) -> str:
    """The report as dcmtk prints it; fails where it cannot read it."""
    done = subprocess.run(["dsrdump", "+Pl", str(path)], capture_output=True, timeout=60, check=True)
    assert b"E:" not in done.stderr, done.stderr
    return done.stdout.decode(errors="replace")


def _errors(command: list[str]) -> list[str]:
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [line for line in (report.stdout + report.stderr).splitlines() if line.startswith("Error")]
