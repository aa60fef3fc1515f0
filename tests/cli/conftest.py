"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
Embolens = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No settings but a data directory of this test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMBOLENS_")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "EMBOLENS_DATA_DIR": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def embolens(environment: dict[str, str], tmp_path: Path) -> Embolens:
    """Run `embolens ...` to its end."""

    def run(*arguments: str | Path, timeout_s: float = 100, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.app", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | settings,
            timeout=timeout_s,
            check=False,
        )

    return run
