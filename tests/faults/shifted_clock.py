"""Runs a program of the system with a wall clock that the test sets: shifted_clock.py SHIFT_FILE PROGRAM [ARGUMENT...]

SHIFT_FILE holds seconds and is read at every look at the clock. Everything that compares times reads the wall clock
through one function.
"""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import services.store.jobs


def run(shift_file: Path, program: str) -> None:
    def shifted_now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=float(shift_file.read_text()))

    services.store.jobs.utc_now = shifted_now
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    shift_file, program = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    run(Path(shift_file), program)
