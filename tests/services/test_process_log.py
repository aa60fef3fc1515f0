"""What a process may write into its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

PROGRAM = """
import logging, warnings
from services.process_log import log_to_stderr
log_to_stderr()
logging.getLogger("worker.pipeline").info("job 1: embolus_found")
logging.getLogger("pydicom").error("PatientName DOE^JANE is too long")
logging.getLogger("pydicom.valuerep").warning("PatientName DOE^JANE is too long")
warnings.warn("PatientName DOE^JANE is too long")
try:
    open("/DOE^JANE/a.dcm")
except OSError:
    logging.getLogger("uvicorn.error").exception("an error in the application")
"""


def test_our_lines_are_logged_and_what_a_library_quotes_from_a_header_is_not() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert "job 1: embolus_found" in ran.stderr
    assert "FileNotFoundError" in ran.stderr
    assert "DOE" not in ran.stderr + ran.stdout
