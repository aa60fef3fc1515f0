"""The published fault matrix says what the tests say."""

from __future__ import annotations

import subprocess
import sys

from tests.faults.matrix import DOCUMENT, REPOSITORY


def test_the_fault_matrix_is_up_to_date() -> None:
    code = "from tests.faults.matrix import marked_faults, matrix; print(matrix(marked_faults()), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)

    assert DOCUMENT.read_text("utf-8") == made.stdout, "run `python -m tests.faults.matrix`"
